//! Real programs of a Debian, each on runc and on ours in turn: what they say and how they end is the same.

mod disk;
mod host;
mod systemd;

use crate::bundle::Bundle;
use crate::command::Running;
use crate::context::Context;
use anyhow::{Context as _, Result, bail};
use disk::Root;
use host::sandboxes_are_scopes_where_systemd_is_the_first_process;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use systemd::systemd_is_the_first_process;

crate::cases!(
    crate::Scope::AllOnce;
    sqlite_writes_ahead,
    gcc_makes_a_program_that_runs,
    sudo_gives_and_takes_rights,
    runc_runs_in_a_privileged_container,
    redis_answers_on_a_socket,
    ping_reaches_localhost,
    a_program_that_is_written_to_loses_its_owners_rights,
    sandboxes_are_scopes_where_systemd_is_the_first_process,
    git_commits_and_finds_nothing_wrong,
    postgresql_recovers_from_being_killed,
    systemd_is_the_first_process,
    dpkg_builds_installs_and_removes,
    stress_ng_finds_nothing_wrong,
);

/// Both runtimes; runc first, for what it says is what is expected.
const RUNTIMES: [&str; 2] = ["runc", "/usr/bin/kata-like"];

/// Files on virtio-fs are slow today, and a lab under load is slow at everything.
const PATIENCE: Duration = Duration::from_secs(1100);

/// What Docker gives a container.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// A container as Docker has it, with 512 MiB, on this root.
fn spec(root: &Root, args: &[&str]) -> Value {
    let mut spec = crate::bundle::config(args);
    spec["root"] = json!({"path": root.path()});
    spec["process"]["env"] = json!([
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME=/root",
        "LC_ALL=C"
    ]);
    let all = json!(CAPABILITIES);
    spec["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
    spec["mounts"] = json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "nodev", "mode=1777"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
    ]);
    let namespaces = ["pid", "mount", "uts", "ipc", "network", "cgroup"];
    spec["linux"] = json!({
        "namespaces": namespaces.map(|kind| json!({"type": kind})),
        "resources": {"memory": {"limit": 512 << 20}, "cpu": {"quota": 200_000, "period": 100_000}},
    });
    spec
}

/// What a script says on both runtimes, which must be the same, and must contain `words`.
fn alike(context: &Context, script: &str, words: &[&str]) -> Result<()> {
    alike_with(context, script, words, |_| ())
}

fn alike_with(
    context: &Context,
    script: &str,
    words: &[&str],
    change: impl Fn(&mut Value),
) -> Result<()> {
    let mut expected = None;
    for runtime in RUNTIMES {
        let root = Root::mount(context)?;
        let bundle = Bundle::new(context, &[])?;
        let mut spec = spec(&root, &["bash", "-ec", script]);
        change(&mut spec);
        bundle.write_config(&spec)?;
        let started = Instant::now();
        let mut run = bundle.run_command(runtime)?;
        let said = Running::start(&mut run, Vec::new())?.finish(PATIENCE)?;
        println!("{runtime}: {:.1} s", started.elapsed().as_secs_f32());
        let told = (said.code, said.text());
        if let Some(word) = words.iter().find(|word| !told.1.contains(**word)) {
            bail!("on {runtime} nothing says {word:?}: {told:?}, {}", said.stderr);
        }
        match &expected {
            None => expected = Some(told),
            Some(expected) if *expected == told => {}
            Some(expected) => bail!("runc: {expected:?}\n{runtime}: {told:?}, {}", said.stderr),
        }
    }
    Ok(())
}

fn git_commits_and_finds_nothing_wrong(context: &Context) -> Result<()> {
    let script = "export GIT_AUTHOR_DATE='1 Jan 2026 00:00 +0000' GIT_COMMITTER_DATE='1 Jan 2026 00:00 +0000'
        git config --global user.name n; git config --global user.email e@x
        git init -q -b main /work; cd /work
        for i in $(seq 12); do mkdir d$i; echo $i > d$i/file; ln -s file d$i/link; done; chmod +x d3/file
        git add .; git commit -qm one; git mv d1 moved; git commit -qam two
        git status --short; git fsck --strict; git log --format='%H %s'; git gc -q; git fsck; git count-objects";
    alike(context, script, &[" two\n", "0 objects"])
}

fn sqlite_writes_ahead(context: &Context) -> Result<()> {
    let script = "cd /var/tmp
        sqlite3 db 'PRAGMA journal_mode=WAL; CREATE TABLE t (n INTEGER PRIMARY KEY, v TEXT);'
        for writer in 1 2; do (for i in $(seq 10); do
            sqlite3 -cmd '.timeout 60000' db \"INSERT INTO t (v) VALUES ('$writer');\"; done) & done; wait
        sqlite3 db 'SELECT count(*), sum(v) FROM t; PRAGMA integrity_check; PRAGMA wal_checkpoint;'";
    alike(context, script, &["wal", "20|30", "ok"])
}

/// The database that Debian's package makes: to make another takes 45,000 requests to the file server. All files are
/// synced by one call before the recovery, for there are a thousand.
fn postgresql_recovers_from_being_killed(context: &Context) -> Result<()> {
    let script = r#"d=/var/lib/postgresql/17/main; cd /var/tmp; touch log; chown postgres log
        as() { su postgres -c "PATH=$PATH:$(echo /usr/lib/postgresql/*/bin) $*"; }
        set='-c config_file=/etc/postgresql/17/main/postgresql.conf -k /run -h \"\"'
        start() { as "pg_ctl -D $d -w -t 900 -l /var/tmp/log -o '$set -c recovery_init_sync_method=syncfs' start" > /dev/null; }
        chmod 1777 /run; start
        echo 'CREATE TABLE t (n serial PRIMARY KEY, v int); INSERT INTO t (v) VALUES (0)' > s
        as "psql -h /run -qf /var/tmp/s"
        echo 'BEGIN; INSERT INTO t (v) VALUES (1); UPDATE t SET v = v + 1 WHERE n = 1; COMMIT' > s
        as "pgbench -h /run -n -c 2 -t 10 -f /var/tmp/s" 2> /dev/null | grep -E 'transactions actually|failed'
        kill -9 $(head -n 1 $d/postmaster.pid); while pkill -9 postgres; do sleep 1; done
        start; grep -c 'automatic recovery' log
        as "psql -h /run -At -c 'select count(*), sum(v) from t'"; as "pg_ctl -D $d -w -t 900 stop" > /dev/null"#;
    alike(context, script, &["20/20", "\n1\n21|40"])
}

fn redis_answers_on_a_socket(context: &Context) -> Result<()> {
    let script = "cd /var/tmp; redis-server --port 0 --unixsocket /run/r.sock --daemonize yes --dir /var/tmp > log
        r() { redis-cli -s /run/r.sock \"$@\"; }
        until [ \"$(r ping 2>&1)\" = PONG ]; do sleep 0.2; done
        r set a 1; for i in 1 2 3; do r incr a; done; r rpush l x y z; r lrange l 0 -1; r save; r get a
        r shutdown; ls dump.rdb";
    alike(context, script, &["OK", "4", "dump.rdb"])
}

fn gcc_makes_a_program_that_runs(context: &Context) -> Result<()> {
    let script = r#"cd /var/tmp; cat > p.c <<'C'
#include <pthread.h>
#include <stdio.h>
static void *half(void *n) { *(long *)n /= 2; return 0; }
int main(void) { long n = 84; pthread_t t; pthread_create(&t, 0, half, &n); pthread_join(t, 0);
    printf("hello %ld\n", n); return 7; }
C
gcc -O2 -Wall -o p p.c -pthread; ./p || echo $?; strip p; ./p"#;
    alike(context, script, &["hello 42\n7\n"])
}

fn sudo_gives_and_takes_rights(context: &Context) -> Result<()> {
    let script = "useradd -m u; echo 'u ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/u
        sudo -u u sh -c 'id; sudo id; sudo -u nobody id -un; sudo grep CapEff /proc/self/status; ! cat /etc/shadow'";
    alike(context, script, &["uid=0(root)", "nobody"])
}

fn ping_reaches_localhost(context: &Context) -> Result<()> {
    let script = "ping -c 2 -i 0.2 127.0.0.1 | grep -o '2 received, 0% packet loss'; ip -br link | grep -c lo";
    alike(context, script, &["2 received"])
}

/// At once: nobody looks at the file in between.
fn a_program_that_is_written_to_loses_its_owners_rights(context: &Context) -> Result<()> {
    let script = "cd /var/tmp; u() { setpriv --reuid 1000 --regid 1000 --clear-groups \"$@\"; }
        cp /usr/bin/id x; chmod 6777 x; u ./x -u; u sh -c 'printf more >> x'; u ./x -u
        chmod 6777 x; u ./x -u; u cp /usr/bin/id x; u ./x -u; stat -c %a x";
    alike(context, script, &["0\n1000\n0\n1000\n777"])
}

fn runc_runs_in_a_privileged_container(context: &Context) -> Result<()> {
    let script = r#"mkdir -p /run/b/rootfs/bin; cd /run/b; cp -L /bin/dash rootfs/bin/sh
        for lib in $(ldd /bin/dash | grep -o '/[^ ]*'); do cp --parents -L $lib rootfs; done
        runc spec; sed -i 's/"terminal": true/"terminal": false/' config.json
        python3 - <<'P'
import json
c = json.load(open("config.json")); c["process"]["args"] = ["sh", "-c", "echo inner $$; exit 5"]
json.dump(c, open("config.json", "w"))
P
        runc run inner || echo "ended $?""#;
    alike_with(context, script, &["inner 1", "ended 5"], privileged)
}

/// All rights, and file systems of the kernel that can be written.
fn privileged(spec: &mut Value) {
    let every = (0..=40).filter_map(capability).collect::<Vec<_>>();
    spec["process"]["capabilities"] =
        json!({"bounding": every, "effective": every, "permitted": every});
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        mounts.retain(|mount| mount["destination"] != "/sys");
        mounts.push(json!({"destination": "/sys", "type": "sysfs", "source": "sysfs"}));
        mounts.push(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}));
    }
    spec["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
}

/// The name of a capability, by its number.
fn capability(number: u8) -> Option<String> {
    const NAMES: &str = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP \
        LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO \
        SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE \
        AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON \
        BPF CHECKPOINT_RESTORE";
    NAMES.split_whitespace().nth(number.into()).map(|name| format!("CAP_{name}"))
}

fn dpkg_builds_installs_and_removes(context: &Context) -> Result<()> {
    let script = r"cd /var/tmp; mkdir -p p/DEBIAN p/usr/share/made
        printf 'Package: made\nVersion: 1\nArchitecture: all\nMaintainer: m <m@x>\nDescription: d\n' > p/DEBIAN/control
        for i in $(seq 30); do echo $i > p/usr/share/made/$i; done
        dpkg-deb --root-owner-group --build p made.deb; dpkg -i made.deb; dpkg -L made | sort; dpkg -V made
        cat /usr/share/made/* | md5sum; dpkg -P made; ls /usr/share/made 2>&1; dpkg --audit";
    alike(context, script, &["Setting up made", "No such file"])
}

fn stress_ng_finds_nothing_wrong(context: &Context) -> Result<()> {
    for cpus in [1, 2, 4] {
        let script = format!(
            "cd /var/tmp; stress-ng --cpu {cpus} --vm 1 --vm-bytes 32M --fork 1 --pipe 1 --switch 1 --futex 1 \
             --verify -t 4s > log 2>&1 || {{ cat log; exit 1; }}; grep -o 'passed: .*' log | sort"
        );
        let quota = |spec: &mut Value| {
            spec["linux"]["resources"]["cpu"]["quota"] = json!(cpus * 100_000);
        };
        alike_with(context, &script, &["passed"], quota).with_context(|| format!("{cpus} CPUs"))?;
    }
    Ok(())
}
