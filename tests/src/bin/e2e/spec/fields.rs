//! Each field of the spec with a value that shows, and where it shows.

use crate::bundle::Bundle;
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;

/// A field, a value for it, and what a process sees of it.
pub struct Field {
    /// Where it stands in the spec; `/-` at the end: one more item of a list.
    pub pointer: &'static str,
    /// As JSON; `BUNDLE` stands for the bundle's directory.
    value: &'static str,
    /// A command in the container.
    look: &'static str,
    /// What the command, or the common probe, then says.
    shows: &'static str,
}

const fn field(
    pointer: &'static str,
    value: &'static str,
    look: &'static str,
    shows: &'static str,
) -> Field {
    Field { pointer, value, look, shows }
}

impl Field {
    /// The line of the probe's script that looks at it.
    pub fn script(&self) -> String {
        if self.look.is_empty() {
            return String::new();
        }
        format!("p 'at {}' eval '{}'\n", self.pointer, self.look.replace('\'', "'\\''"))
    }

    /// Puts it into a spec.
    pub fn set(&self, spec: &mut Value, bundle: &Bundle) -> Result<()> {
        let directory = bundle.0.to_str().context("a bundle's path is text")?;
        let value: Value = serde_json::from_str(&self.value.replace("BUNDLE", directory))?;
        let mut place = spec;
        for key in self.pointer.split('/').skip(1) {
            place = match (key, place) {
                ("-", place) => {
                    if place.is_null() {
                        *place = json!([]);
                    }
                    let list = place.as_array_mut().context("a list")?;
                    list.push(Value::Null);
                    list.last_mut().context("an item")?
                }
                (key, place) => &mut place[key.replace("~1", "/")],
            };
        }
        *place = value;
        Ok(())
    }

    /// A complaint unless its effect is in what the process said.
    pub fn missing_in(&self, said: &str) -> Option<String> {
        let at = format!("at {} ", self.pointer);
        let found = said.lines().any(|line| {
            let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
            (self.look.is_empty() || line.starts_with(at.trim_end())) && line.contains(self.shows)
        });
        (!found).then(|| format!("\n{}: nothing shows {:?}", self.pointer, self.shows))
    }
}

/// Files that the fields' values name.
pub fn prepare(bundle: &Bundle) -> Result<()> {
    let root = bundle.0.join("rootfs");
    for directory in ["etc", "copied/below", "masked", "volume", "target", "new/one"] {
        fs::create_dir_all(root.join(directory))?;
    }
    for (file, text) in
        [("copied/below/file", "text\n"), ("masked/file", "secret\n"), ("hidden", "secret\n")]
    {
        fs::write(root.join(file), text)?;
    }
    symlink("below/file", root.join("copied/link"))?;
    symlink("target", root.join("link"))?;
    for directory in ["host/one", "host/two"] {
        fs::create_dir_all(bundle.0.join(directory))?;
    }
    fs::write(bundle.0.join("host/one/file"), "of the host\n")?;
    fs::write(bundle.0.join("host/file"), "a file of the host\n")?;
    Ok(())
}

/// Every limit of the runtime-spec, and its name in `/proc/PID/limits`.
pub const LIMITS: [(&str, &str); 16] = [
    ("RLIMIT_AS", "Max address space"),
    ("RLIMIT_CORE", "Max core file size"),
    ("RLIMIT_CPU", "Max cpu time"),
    ("RLIMIT_DATA", "Max data size"),
    ("RLIMIT_FSIZE", "Max file size"),
    ("RLIMIT_LOCKS", "Max file locks"),
    ("RLIMIT_MEMLOCK", "Max locked memory"),
    ("RLIMIT_MSGQUEUE", "Max msgqueue size"),
    ("RLIMIT_NICE", "Max nice priority"),
    ("RLIMIT_NOFILE", "Max open files"),
    ("RLIMIT_NPROC", "Max processes"),
    ("RLIMIT_RSS", "Max resident set"),
    ("RLIMIT_RTPRIO", "Max realtime priority"),
    ("RLIMIT_RTTIME", "Max realtime timeout"),
    ("RLIMIT_SIGPENDING", "Max pending signals"),
    ("RLIMIT_STACK", "Max stack size"),
];

/// Of a process with root's rights, and of the container.
const ROOTS: &[Field] = &[
    field("/process/env/-", r#""FIELD=a value""#, "", "env FIELD=a value"),
    field("/process/env/-", r#""A=1""#, "", "env A=1"),
    field("/process/cwd", r#""/tmp""#, "", "cwd /tmp"),
    field("/process/user/umask", "23", "", "umask 0027"),
    field("/process/user/additionalGids", "[7, 1234]", "", "status Groups: 7 1234"),
    field(
        "/process/rlimits/-",
        r#"{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 101}"#,
        "",
        "limit Max open files 100 101",
    ),
    field(
        "/process/rlimits/-",
        r#"{"type": "RLIMIT_CORE", "soft": 1, "hard": 2}"#,
        "",
        "limit Max core file size 1 2",
    ),
    field(
        "/process/rlimits/-",
        r#"{"type": "RLIMIT_SIGPENDING", "soft": 20, "hard": 21}"#,
        "",
        "limit Max pending signals 20 21",
    ),
    field(
        "/process/rlimits/-",
        r#"{"type": "RLIMIT_RTTIME", "soft": 5000, "hard": 18446744073709551615}"#,
        "",
        "limit Max realtime timeout 5000 unlimited",
    ),
    field(
        "/process/capabilities",
        r#"{"bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_DAC_OVERRIDE"], "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_MKNOD"],
        "effective": ["CAP_CHOWN", "CAP_MKNOD"], "inheritable": ["CAP_KILL", "CAP_CHOWN"], "ambient": ["CAP_KILL"]}"#,
        "",
        "status CapInh: 0000000000000021",
    ),
    field("/process/noNewPrivileges", "true", "", "status NoNewPrivs: 1"),
    field("/process/oomScoreAdj", "123", "", "oom 123"),
    field("/root/readonly", "true", "", "root touch: /made: Read-only file system"),
    field("/hostname", r#""named""#, "", "host named"),
    field(
        "/mounts/-",
        r#"{"destination": "/volume", "type": "bind", "source": "BUNDLE/host", "options": ["rbind", "ro", "nosuid"]}"#,
        "cat /volume/one/file; touch /volume/made",
        "of the host",
    ),
    field(
        "/mounts/-",
        r#"{"destination": "/made/on/the/way", "type": "bind", "source": "BUNDLE/host/file", "options": ["bind", "rprivate"]}"#,
        "cat /made/on/the/way",
        "a file of the host",
    ),
    field(
        "/mounts/-",
        r#"{"destination": "/link", "type": "bind", "source": "BUNDLE/host/two", "options": ["bind", "noexec", "nodev", "noatime"]}"#,
        "echo x > /target/written; touch -d '2001-01-01 00:00:00' /target/written; cat /target/written; \
         stat -c %x /target/written | cut -c1-4; ls /target; grep /target /proc/self/mountinfo | grep -o noatime",
        "noatime",
    ),
    field(
        "/mounts/-",
        r#"{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "size=1m", "mode=1770", "uid=3", "gid=4", "nr_inodes=100", "sync"]}"#,
        "stat -c '%a %u %g' /tmp; grep ' /tmp ' /proc/self/mountinfo | grep -o sync",
        "sync",
    ),
    field(
        "/mounts/-",
        r#"{"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["ro", "noexec", "relatime"]}"#,
        "touch /etc/x; stat -c %a /etc",
        "755",
    ),
    field(
        "/mounts/-",
        r#"{"destination": "/copied", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "size=1m"]}"#,
        "cat /copied/link; touch /copied/below/x; stat -c %a /copied",
        "text",
    ),
    field(
        "/linux/sysctl",
        r#"{"kernel.shmmni": "77", "net.ipv4.ip_unprivileged_port_start": "81", "net.ipv4.ping_group_range": "0 9", "fs.mqueue.msg_max": "12"}"#,
        "cat /proc/sys/kernel/shmmni /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range /proc/sys/fs/mqueue/msg_max",
        "81",
    ),
    field(
        "/linux/maskedPaths",
        r#"["/masked", "/hidden", "/proc/interrupts", "/no/such/file"]"#,
        "ls /masked; cat /hidden; stat -c %F /hidden",
        "character special file",
    ),
    field(
        "/linux/readonlyPaths",
        r#"["/proc/sys", "/proc/bus", "/no/such/file"]"#,
        "sh -c 'echo 1 > /proc/sys/kernel/shmmni'",
        "Read-only file system",
    ),
    field(
        "/linux/resources/memory",
        r#"{"limit": 41943040, "reservation": 20971520, "swap": 62914560}"#,
        "",
        "memory.max 41943040",
    ),
    field("/linux/resources/pids", r#"{"limit": 55}"#, "", "pids.max 55"),
    field(
        "/linux/resources/cpu",
        r#"{"quota": 60000, "period": 120000}"#,
        "",
        "cpu.max 60000 120000",
    ),
    field("/linux/resources/cpu/shares", "2048", "", "cpu.weight 174"),
    field(
        "/linux/resources/unified",
        r#"{"memory.high": "40960000", "memory.oom.group": "1"}"#,
        "",
        "memory.oom.group 1",
    ),
    field(
        "/linux/resources/hugepageLimits",
        r#"[{"pageSize": "2MB", "limit": 4194304}]"#,
        "",
        "hugetlb.2MB.max 4194304",
    ),
    field(
        "/linux/resources/devices/-",
        r#"{"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"}"#,
        "sh -c ': < /dev/fuse' && echo opened",
        "opened",
    ),
    field(
        "/linux/devices/-",
        r#"{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "uid": 5, "gid": 6}"#,
        "",
        "666 5:6 a:e5",
    ),
    field(
        "/linux/devices/-",
        r#"{"path": "/dev/again", "type": "c", "major": 1, "minor": 7, "fileMode": 292, "uid": 7, "gid": 8}"#,
        "",
        "444 7:8 1:7",
    ),
    field(
        "/linux/devices/-",
        r#"{"path": "/dev/pipe", "type": "p", "fileMode": 384, "uid": 7, "gid": 8}"#,
        "",
        "fifo 600 7:8",
    ),
    field(
        "/linux/seccomp",
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["sethostname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}, {"names": ["sync"], "action": "SCMP_ACT_KILL_PROCESS"},
                     {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 448, "op": "SCMP_CMP_EQ"}]}]}"#,
        "sh -c sync; echo $?; hostname x; mkdir -m 700 /dev/shm/no; mkdir /dev/shm/yes",
        "159",
    ),
];

/// Of a process without root's rights.
const USERS: &[Field] = &[
    field(
        "/process/user",
        r#"{"uid": 1000, "gid": 1001, "additionalGids": [5]}"#,
        "",
        "status Uid: 1000 1000 1000 1000",
    ),
    field(
        "/process/capabilities",
        r#"{"bounding": ["CAP_CHOWN", "CAP_KILL"], "permitted": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_CHOWN"], "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]}"#,
        "",
        "status CapEff: 0000000000000020",
    ),
    field("/linux/seccomp", r#"{"defaultAction": "SCMP_ACT_LOG"}"#, "", "status Seccomp: 2"),
    field(
        "/mounts/-",
        r#"{"destination": "/volume", "type": "tmpfs", "source": "tmpfs", "options": ["rshared"]}"#,
        "grep /volume /proc/self/mountinfo | grep -o shared:",
        "shared:",
    ),
    field(
        "/mounts/-",
        r#"{"destination": "/target", "type": "bind", "source": "BUNDLE/host", "options": ["bind", "unbindable"]}"#,
        "grep /target /proc/self/mountinfo | grep -o unbindable",
        "unbindable",
    ),
    field(
        "/mounts/-",
        r#"{"destination": "/shared", "type": "bind", "source": "BUNDLE/host", "options": ["bind", "shared"]}"#,
        "grep ' /shared ' /proc/self/mountinfo | grep -o shared:",
        "shared:",
    ),
    field("/linux/resources/pids", r#"{"limit": -1}"#, "", "pids.max max"),
    field("/linux/resources/memory", r#"{"limit": -1}"#, "", "memory.max max"),
];

/// In a user namespace, without capabilities.
const MAPPED: &[Field] = &[
    field("/linux/namespaces/-", r#"{"type": "user"}"#, "", ""),
    field(
        "/linux/uidMappings",
        r#"[{"containerID": 0, "hostID": 0, "size": 1000}, {"containerID": 1000, "hostID": 70000, "size": 10}]"#,
        "",
        "uids 1000 70000 10",
    ),
    field(
        "/linux/gidMappings",
        r#"[{"containerID": 0, "hostID": 0, "size": 2000}]"#,
        "",
        "gids 0 0 2000",
    ),
];

/// What the lab's runc knows.
pub const OF_RUNC: &[&[Field]] = &[ROOTS, USERS, MAPPED];

/// What only the lab's crun knows.
pub const OF_CRUN: &[&[Field]] = &[&[
    field(
        "/linux/seccomp",
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"],
        "syscalls": [{"names": ["sethostname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}"#,
        "hostname x",
        "Function not implemented",
    ),
    field("/domainname", r#""domain.test""#, "", "host domain.test"),
    field(
        "/linux/rootfsPropagation",
        r#""shared""#,
        r#"awk '$5 == "/"' /proc/self/mountinfo | grep -o shared:"#,
        "shared:",
    ),
    field(
        "/process/ioPriority",
        r#"{"class": "IOPRIO_CLASS_BE", "priority": 6}"#,
        "",
        "ioprio best-effort: prio 6",
    ),
    field("/process/scheduler", r#"{"policy": "SCHED_BATCH", "nice": 7}"#, "", "sched 27 7 0 3"),
    field("/linux/namespaces/-", r#"{"type": "time"}"#, "", ""),
    field(
        "/linux/timeOffsets",
        r#"{"monotonic": {"secs": 1000, "nanosecs": 5}, "boottime": {"secs": 2000, "nanosecs": 6}}"#,
        "",
        "time boottime 2000 6",
    ),
    field("/linux/personality", r#"{"domain": "LINUX32"}"#, "", "machine i686"),
    field(
        "/mounts/-",
        r#"{"destination": "/volume", "type": "bind", "source": "BUNDLE/host", "options": ["rbind", "rro"]}"#,
        "touch /volume/made",
        "Read-only",
    ),
    field(
        "/mounts/-",
        r#"{"destination": "/target", "type": "bind", "source": "BUNDLE/host/one", "options": ["bind", "idmap"],
        "uidMappings": [{"containerID": 0, "hostID": 5000, "size": 10}], "gidMappings": [{"containerID": 0, "hostID": 6000, "size": 10}]}"#,
        "stat -c '%u %g' /target/file",
        "5000 6000",
    ),
]];
