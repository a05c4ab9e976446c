//! Pods by way of containerd's CRI: several containers in one machine, as runc has them on one kernel.

pub mod crio;
pub mod forward;
pub mod limits;
pub mod network;
pub mod nri;
pub mod pod;
pub mod sandbox_api;
pub mod vhost_net;

use crate::command::DEADLINE;
use crate::context::Context;
use crate::{cgroup, command, confinement, inside, leaks, outage};
use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pod::{Member, OURS, Pod, RUNC, crictl};
use serde_json::{Value, json};
use std::fs;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Barrier, Mutex};

crate::cases!(
    crate::Scope::EachContainerd;
    a_container_comes_and_goes_while_the_pod_lives;
    crate::Scope::OneOrEach;
    limits_change_beside_those_that_are_left_out,
    users_of_a_pods_own_own_its_files;
    crate::Scope::Once;
    what_is_only_the_hosts_is_refused,
    the_end_of_any_of_our_processes_is_every_containers,
    its_processes_are_in_the_pods_cgroup,
    volumes_are_seen_as_kubelet_changes_them_and_memory_is_shared;
    crate::Scope::AllEach;
    containers_share_what_a_pod_shares,
    what_is_written_to_a_root_is_on_a_disk_and_counted,
    another_containers_processes_are_seen_by_who_asks_for_them,
    a_pod_outlives_containerd;
    crate::Scope::AllOnce;
    many_at_once_leave_nothing,
    each_has_pids_of_its_own_where_the_pod_says_so,
    a_part_of_a_volume_in_memory_is_what_others_have_there,
    a_mount_of_the_hosts_is_followed_where_that_is_asked_for,
    thirty_at_once_leave_nothing,
);

/// PID namespaces of their own.
fn own_pids() -> Value {
    json!({"linux": {"security_context": {"namespace_options": {"pid": 1}}}})
}

/// Says the same of a pod on runc's handler and on one of ours.
fn same_on_both(
    context: &Context,
    ours: &str,
    look: impl Fn(&Pod) -> Result<String>,
) -> Result<String> {
    let mut said = Vec::new();
    for handler in [RUNC, ours] {
        let pod = Pod::run(context, handler, &Value::Null)?;
        said.push(look(&pod).with_context(|| handler.to_owned())?);
        pod.remove()?;
    }
    ensure!(said[0] == said[1], "runc says {:?}, ours {:?}", said[0], said[1]);
    Ok(said.remove(0))
}

fn containers_share_what_a_pod_shares(context: &Context) -> Result<()> {
    // But for a process that is just ending, in brackets: an exec's, on runc.
    let ps = "ps | awk '{print $2, $3, $4, $5}' | grep -v -e ps -e awk -e grep -e '\\['; \
        readlink /proc/1/ns/ipc | wc -l";
    let said = share_what_a_pod_shares(context, OURS, ps)?;
    ensure!(said.contains("sh -c trap"), "{said}");
    Ok(())
}

/// What a container says of a pod on runc and on this handler, and of one more line.
fn share_what_a_pod_shares(context: &Context, ours: &str, more: &str) -> Result<String> {
    let said = same_on_both(context, ours, |pod| {
        let serve = "echo on localhost > /dev/shm/file; nc -l -p 80 < /dev/shm/file";
        let first = pod.start(&["sh", "-c", serve], &Value::Null)?;
        let second = pod.sleeper()?;
        // Of the memory that they share, of the network, of processes, and the pod's name.
        second.await_line("cat /dev/shm/file", "on localhost")?;
        second.await_line("netstat -ltn | grep -c :80", "1")?;
        let mut said = vec![second.sh("nc 127.0.0.1 80 < /dev/null")?];
        ensure!(first.ended()? == 0);
        for line in [
            "hostname; cat /proc/sys/kernel/hostname",
            "df /dev/shm | awk 'NR > 1 {print $2}'; stat -c %a /dev/shm",
            more,
            "echo 7 > /proc/sys/kernel/shmmni 2>&1; true",
            "id; pwd; cat /etc/hosts; cat /etc/resolv.conf",
        ] {
            said.push(second.sh(line)?);
        }
        Ok(said.join("\n"))
    })?;
    for words in ["on localhost", "in-a-pod\nin-a-pod", "65536\n1777"] {
        ensure!(said.contains(words), "no {words:?}: {said}");
    }
    Ok(said)
}

fn a_container_comes_and_goes_while_the_pod_lives(context: &Context) -> Result<()> {
    // The pause container sleeps as well, and its shell's line says so.
    come_and_go(context, OURS, ("4", "3"))
}

/// With how many processes that sleep it has, before and after one of its containers has gone.
fn come_and_go(context: &Context, handler: &str, sleepers: (&str, &str)) -> Result<()> {
    let pod = Pod::run(context, handler, &Value::Null)?;
    let lived = |container: &Member| container.sh("ps | grep -c '[s]leep 1000000'");
    for round in 0..2 {
        // The sole container is restarted: between them there is none but, on some, the pause container.
        let said = format!("round {round}");
        let container = pod.start(&["sh", "-c", &format!("echo {said}; exit 7")], &Value::Null)?;
        ensure!(container.ended()? == 7);
        ensure!(container.log()? == said, "{:?}", container.log()?);
        container.remove()?;
    }
    let (first, second) = (pod.sleeper()?, pod.sleeper()?);
    let before = lived(&second)?;
    first.remove()?;
    let after = lived(&second)?;
    ensure!((&*before, &*after) == sleepers, "{before} slept, then {after}");
    let stats = crictl(context, &["stats", "--output", "json", &second.id])?.expect_code(0)?;
    let stats: Value = serde_json::from_str(&stats.text())?;
    let used = stats["stats"][0]["memory"]["workingSetBytes"]["value"].as_str();
    ensure!(used.is_some_and(|bytes| bytes.parse::<u64>().is_ok_and(|b| b > 0)), "{stats}");
    pod.remove()
}

/// What a container's snapshot takes on the host, as kubelet hears of it, bytes.
fn written(context: &Context, id: &str) -> Result<u64> {
    let stats = crictl(context, &["stats", "--output", "json", id])?.expect_code(0)?;
    let stats: Value = serde_json::from_str(&stats.text())?;
    let used = stats["stats"][0]["writableLayer"]["usedBytes"]["value"].as_str();
    Ok(used.and_then(|bytes| bytes.parse().ok()).unwrap_or_default())
}

fn what_is_written_to_a_root_is_on_a_disk_and_counted(context: &Context) -> Result<()> {
    const MIB: u64 = 1 << 20;
    let pod = Pod::run(context, OURS, &Value::Null)?;
    let container = pod.sleeper()?;
    let before = container.sh("ls -A / | sort; grep ' / ' /proc/mounts | cut -d ' ' -f 1,3")?;
    ensure!(before.ends_with("overlay overlay") && !before.contains("disk"), "{before:?}");
    container.sh("head -c 40000000 /dev/urandom > /large && rm /bin/yes && sync")?;
    command::eventually("40 MB are counted", DEADLINE, || {
        Ok((38 * MIB..60 * MIB).contains(&written(context, &container.id)?))
    })?;
    container.remove()?;
    // Only mount points are made above one that is read-only, and that takes no disk.
    let read_only = json!({"linux": {"security_context": {"readonly_rootfs": true}}});
    let container = pod.start(&["sleep", "1000000"], &read_only)?;
    let said = container.sh("ls -d /etc; touch /new 2>&1 || grep ' / ' /proc/mounts")?;
    ensure!(said.contains("/etc") && said.contains("Read-only") && said.contains(" ro,"), "{said}");
    // One more than the machine has room for: the last ones write to the host.
    let many = (0..9).map(|_| pod.sleeper()).collect::<Result<Vec<_>>>()?;
    for (n, container) in many.iter().enumerate() {
        let said = container.sh("echo written > /new && cat /new")?;
        ensure!(said == "written", "container {n}: {said:?}");
    }
    pod.remove()
}

/// The CRI sends all limits again with those that change.
fn limits_change_beside_those_that_are_left_out(context: &Context) -> Result<()> {
    let pod = Pod::run(context, OURS, &Value::Null)?;
    let limits = json!({"linux": {"resources": {"cpuset_cpus": "0", "cpu_shares": 512}}});
    let container = pod.start(&["sleep", "1000000"], &limits)?;
    crictl(context, &["update", "--memory", "67108864", &container.id])?.expect_code(0)?;
    let said = container.sh("cat /sys/fs/cgroup/memory.max")?;
    ensure!(said == "67108864", "{said:?}");
    // Processors are the host's: the machine has those that its containers have among them.
    let all = fs::read_to_string("/sys/fs/cgroup/cpuset.cpus.effective")?;
    for cpus in ["0", all.trim()] {
        crictl(context, &["update", "--cpuset-cpus", cpus, &container.id])?.expect_code(0)?;
        let has = cgroup::read(&cgroup::of(confinement::pid_of("kata-like-vmm")?)?, "cpuset.cpus")?;
        ensure!(has == cpus, "cpuset.cpus is {has:?}, not {cpus:?}");
    }
    pod.remove()
}

fn users_of_a_pods_own_own_its_files(context: &Context) -> Result<()> {
    own_users(context, OURS)
}

fn own_users(context: &Context, handler: &str) -> Result<()> {
    let ids = json!([{"container_id": 0, "host_id": 100_000, "length": 65536}]);
    let options = json!({"userns_options": {"mode": 0, "uids": ids, "gids": ids}});
    let options = json!({"linux": {"security_context": {"namespace_options": options}}});
    let pod = Pod::run(context, handler, &options)?;
    let container = pod.start(&["sleep", "1000000"], &options)?;
    let script = "awk '{print $1, $2, $3}' /proc/self/uid_map; touch /made; stat -c '%u %n' /bin/sh /made; \
                  echo mine > /dev/shm/file; ls /dev/mqueue /sys/class/net; kill -0 1 && echo same users";
    let said = container.sh(script)?;
    for words in ["0 100000 65536\n", "0 /bin/sh\n0 /made\n", "lo", "same users"] {
        ensure!(said.contains(words), "no {words:?}: {said}");
    }
    pod.remove()
}

fn each_has_pids_of_its_own_where_the_pod_says_so(context: &Context) -> Result<()> {
    have_pids_of_their_own(context, OURS)
}

fn have_pids_of_their_own(context: &Context, handler: &str) -> Result<()> {
    let pod = Pod::run(context, handler, &own_pids())?;
    let container = pod.start(&["sleep", "1000000"], &own_pids())?;
    let first = container.sh("tr '\\0' ' ' < /proc/1/cmdline")?;
    ensure!(first.trim() == "sleep 1000000", "{first:?}");
    pod.remove()
}

fn another_containers_processes_are_seen_by_who_asks_for_them(context: &Context) -> Result<()> {
    target(context, OURS)
}

/// The pid of the host that is told of a container.
fn pid_of(container: &Member) -> Result<i32> {
    let text = crictl(container.context(), &["inspect", &container.id])?.expect_code(0)?.text();
    let pid = serde_json::from_str::<Value>(&text)?["info"]["pid"].as_i64();
    Ok(i32::try_from(pid.context("a pid")?)?)
}

/// What `kubectl debug --target` asks for, and what the pid is that tells whose processes are meant.
fn target(context: &Context, handler: &str) -> Result<()> {
    let pod = Pod::run(context, handler, &own_pids())?;
    let [first, other] =
        ["1000001", "1000002"].map(|time| pod.start(&["sleep", time], &own_pids()));
    let (first, other) = (first?, other?);
    let options = json!({"linux": {"security_context": {"namespace_options":
        {"pid": 3, "target_id": first.id}}}});
    let debug = pod.start(&["sleep", "1000003"], &options)?;
    let said = debug.sh("tr '\\0' ' ' < /proc/1/cmdline; ps | grep -o 'sleep 100000[0-9]$'")?;
    ensure!(said == "sleep 1000001 sleep 1000001\nsleep 1000003", "{said:?}");
    let pids = [pid_of(&first)?, pid_of(&other)?, pid_of(&debug)?];
    for pid in pids {
        let name = fs::read_to_string(format!("/proc/{pid}/comm"))?;
        ensure!(name.starts_with("kata-like-stand"), "{pid} is {name:?}");
        ensure!(fs::read_dir(format!("/proc/{pid}/fd"))?.count() == 0, "{pid} has descriptors");
        // Its program's pages are the page cache's, for all of the host.
        let held = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let own = held
            .lines()
            .find_map(|line| line.strip_prefix("Anonymous:")?.trim().strip_suffix(" kB"));
        ensure!(own.is_some_and(|kib| kib.parse().is_ok_and(|kib: u64| kib <= 128)), "{held}");
    }
    // With it the container ends, and no other.
    kill(Pid::from_raw(pids[1]), Signal::SIGKILL)?;
    ensure!(other.ended()? == 137);
    ensure!(first.sh("echo lives")? == "lives" && debug.sh("echo lives")? == "lives");
    other.remove()?;
    // The processes are of the one container: with its first they end.
    kill(Pid::from_raw(pids[0]), Signal::SIGKILL)?;
    ensure!(first.ended()? == 137 && debug.ended()? == 137);
    match pod.start(&["true"], &options) {
        Ok(_) => bail!("a container joined one that has ended"),
        Err(error) => ensure!(format!("{error:#}").contains("is not running"), "{error:#}"),
    }
    for pid in pids {
        ensure!(!Path::new(&format!("/proc/{pid}")).exists(), "{pid} is still there");
    }
    pod.remove()
}

fn a_pod_outlives_containerd(context: &Context) -> Result<()> {
    outlive_containerd(context, OURS)
}

fn outlive_containerd(context: &Context, handler: &str) -> Result<()> {
    let run = || Pod::run(context, handler, &Value::Null);
    let (empty, pod) = (run()?, run()?);
    let container = pod.sleeper()?;
    container.sh("echo still here > /dev/shm/file")?;
    outage::stop_containerd(context)?;
    context.containerd.start()?;
    ensure!(pod.state()? == "SANDBOX_READY" && empty.state()? == "SANDBOX_READY");
    ensure!(container.sh("cat /dev/shm/file")? == "still here");
    let said = empty.sleeper()?.sh("hostname")?;
    ensure!(said == "in-a-pod", "{said:?}");
    // What joins is in the same machine.
    ensure!(pod.sleeper()?.sh("cat /dev/shm/file")? == "still here");
    container.remove()?;
    empty.remove()?;
    pod.remove()
}

fn what_is_only_the_hosts_is_refused(context: &Context) -> Result<()> {
    refuse_what_is_the_hosts(context, OURS)
}

fn refuse_what_is_the_hosts(context: &Context, handler: &str) -> Result<()> {
    for (kind, words) in [("network", "host's network namespace"), ("ipc", "host's IPC namespace")]
    {
        let options = json!({"linux": {"security_context": {"namespace_options": {kind: 2}}}});
        match Pod::run(context, handler, &options) {
            Ok(_) => bail!("a pod in the {words} was made"),
            Err(error) => ensure!(format!("{error:#}").contains(words), "{error:#}"),
        }
    }
    Ok(())
}

fn the_end_of_any_of_our_processes_is_every_containers(context: &Context) -> Result<()> {
    end_with_any_of_our_processes(context, OURS)
}

/// Three containers, and then none of them; containerd knows what became of each.
fn end_with_any_of_our_processes(context: &Context, handler: &str) -> Result<()> {
    for program in ["containerd-shim-kata-like-v2", "kata-like-vmm", "kata-like-fs"] {
        let pod = Pod::run(context, handler, &Value::Null)?;
        let members = [pod.sleeper()?, pod.sleeper()?, pod.sleeper()?];
        let pid = crate::confinement::pid_of(program)?;
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL)?;
        for member in &members {
            let code = member.ended().with_context(|| program.to_owned())?;
            ensure!(code != 0, "after the end of {program} a container ended with {code}");
        }
        command::eventually("the pod is not ready", DEADLINE, || {
            Ok(pod.state()? != "SANDBOX_READY")
        })
        .with_context(|| program.to_owned())?;
        pod.remove().with_context(|| program.to_owned())?;
        command::eventually("no process is left", DEADLINE, || {
            Ok(leaks::our_processes()?.is_empty())
        })?;
    }
    Ok(())
}

fn its_processes_are_in_the_pods_cgroup(context: &Context) -> Result<()> {
    be_in_the_pods_cgroup(context, OURS)
}

fn be_in_the_pods_cgroup(context: &Context, handler: &str) -> Result<()> {
    let pod = Pod::run(context, handler, &Value::Null)?;
    let _container = pod.sleeper()?;
    let below = format!("/{}/", pod.cgroup().file_name().context("a name")?.display());
    for (pid, line) in leaks::our_processes()? {
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        ensure!(cgroup.contains(&below), "{line} is in {cgroup}");
    }
    pod.remove()
}

/// A mount that goes with the test.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn volumes_are_seen_as_kubelet_changes_them_and_memory_is_shared(context: &Context) -> Result<()> {
    let directory = Path::new("/tmp").join(context.fresh_id());
    let volumes = directory.join("volumes");
    let (map, cache) = (
        volumes.join("kubernetes.io~configmap/map"),
        volumes.join("kubernetes.io~empty-dir/cache"),
    );
    for (version, text) in [("..1", "old"), ("..2", "new")] {
        fs::create_dir_all(map.join(version))?;
        fs::write(map.join(version).join("key"), text)?;
    }
    symlink("..1", map.join("..data"))?;
    symlink("..data/key", map.join("key"))?;
    // A part of a volume, and a file of the container's: kubelet gives their own paths, and a group.
    let part = volumes.join("kubernetes.io~empty-dir/data/part");
    fs::create_dir_all(&part)?;
    chown(&part, None, Some(4321))?;
    fs::set_permissions(&part, Permissions::from_mode(0o2775))?;
    let data = part.parent().context("the volume")?;
    fs::set_permissions(data, Permissions::from_mode(0o777))?;
    let last_words = directory.join("termination-log");
    fs::write(&last_words, "")?;
    fs::set_permissions(&last_words, Permissions::from_mode(0o666))?;
    let shared = directory.join("shared");
    fs::create_dir_all(&shared)?;
    fs::set_permissions(&shared, Permissions::from_mode(0o777))?;
    fs::create_dir_all(&cache)?;
    let flags = MsFlags::empty();
    mount(Some("tmpfs"), &cache, Some("tmpfs"), flags, Some("size=1m,mode=0777"))?;
    let mounted = Mounted(cache.clone());
    // Before it, as kubelet mounts them; the lab's mounts are not told to other namespaces later.
    let pod = Pod::run(context, OURS, &Value::Null)?;
    let mounts = json!({"mounts": [
        {"container_path": "/map", "host_path": map, "readonly": true},
        {"container_path": "/cache", "host_path": cache},
        {"container_path": "/part", "host_path": part},
        {"container_path": "/data", "host_path": data},
        {"container_path": "/shared", "host_path": shared},
        {"container_path": "/dev/termination-log", "host_path": last_words},
        {"container_path": "/e2e", "host_path": std::env::current_exe()?, "readonly": true},
    ], "linux": {"security_context": {"run_as_user": {"value": 1234}, "supplemental_groups": [4321]}}});
    // In the host's files and in the guest's memory.
    let sockets = ["/data/socket", "/shared/socket", "/cache/socket"];
    let answer = |socket| format!("/e2e {} answer {socket} &", inside::FLAG);
    let answers = sockets.map(answer).join(" ") + " exec sleep 1000000";
    let mut reads = mounts.clone();
    let of_data = reads["mounts"].as_array_mut().and_then(|all| all.get_mut(3));
    of_data.context("the mount of data")?["readonly"] = true.into();
    let (first, second) =
        (pod.start(&["sh", "-c", &answers], &mounts)?, pod.start(&["sleep", "1000000"], &reads)?);
    for socket in sockets {
        let ask = format!("/e2e {} ask {socket} 2>&1; true", inside::FLAG);
        second
            .await_line(&ask, inside::ANSWER)
            .with_context(|| format!("{:?}", second.sh(&ask)))?;
    }
    // Who may only read there may ask all the same.
    let said = second.sh("touch /data/new 2>&1; grep -c ' /data .* ro,' /proc/mounts")?;
    ensure!(said.ends_with("Read-only file system\n1"), "{said:?}");
    let said = first.sh("cat /map/key; echo shared > /cache/file; stat -c %a /cache")?;
    ensure!(said == "old777", "{said:?}");
    symlink("..2", map.join("..new"))?;
    fs::rename(map.join("..new"), map.join("..data"))?;
    let said = second.sh("cat /map/key /cache/file; df /cache | awk 'NR > 1 {print $2}'")?;
    ensure!(said == "newshared\n1024", "{said:?}");
    let said =
        second.sh("touch /part/made; stat -c '%u %g' /part/made; ! touch /x 2> /dev/null")?;
    ensure!(said == "1234 4321", "{said:?}");
    ensure!(fs::metadata(part.join("made"))?.gid() == 4321);
    ensure!(fs::read_dir(&cache)?.count() == 0, "the memory is the host's");
    // What it holds outlives the containers.
    first.remove()?;
    second.remove()?;
    let script = "cat /cache/file; echo gone > /dev/termination-log";
    let third = pod.start(&["sh", "-c", script], &mounts)?;
    ensure!(third.ended()? == 0 && third.log()? == "shared", "{:?}", third.log()?);
    ensure!(fs::read_to_string(&last_words)? == "gone\n");
    pod.remove()?;
    drop(mounted);
    Ok(fs::remove_dir_all(directory)?)
}

/// Kubelet makes the directory in the host's memory, and binds it elsewhere.
fn a_part_of_a_volume_in_memory_is_what_others_have_there(context: &Context) -> Result<()> {
    let directory = Path::new("/tmp").join(context.fresh_id());
    let cache = directory.join("volumes/kubernetes.io~empty-dir/cache");
    let bound = directory.join("volume-subpaths/cache/c/0");
    fs::create_dir_all(&cache)?;
    fs::create_dir_all(&bound)?;
    mount(Some("tmpfs"), &cache, Some("tmpfs"), MsFlags::empty(), Some("size=1m,mode=0777"))?;
    let mounted = Mounted(cache.clone());
    let part = cache.join("a part");
    fs::create_dir(&part)?;
    chown(&part, None, Some(4321))?;
    fs::set_permissions(&part, Permissions::from_mode(0o2770))?;
    mount(Some(&part), &bound, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    // A file that a container will make: kubelet, which does not see it, makes a directory of that name.
    let (made, bound_file) = (cache.join("settings"), bound.with_file_name("1"));
    for directory in [&made, &bound_file] {
        fs::create_dir(directory)?;
    }
    mount(Some(&made), &bound_file, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    let mounted = [Mounted(bound_file.clone()), Mounted(bound.clone()), mounted];
    let pod = Pod::run(context, OURS, &Value::Null)?;
    let on = |path: &Path| json!({"mounts": [{"container_path": "/volume", "host_path": path}]});
    let start = |path: &Path| pod.start(&["sleep", "1000000"], &on(path));
    let (first, direct, whole) = (start(&bound)?, start(&part)?, start(&cache)?);
    let said = first.sh("echo kept > /volume/file; stat -c '%a %u %g' /volume")?;
    ensure!(said == "2770 0 4321", "{said:?}");
    ensure!(direct.sh("cat /volume/file")? == "kept");
    ensure!(whole.sh("cat '/volume/a part/file'; df /volume | grep -c ' 1024 '")? == "kept\n1");
    ensure!(fs::read_dir(&part)?.count() == 0, "it is in the host's memory");
    whole.sh("echo words > /volume/settings")?;
    let reader = start(&bound_file)?;
    let said = reader.sh("cat /volume; stat -c %F /volume; echo more >> /volume")?;
    ensure!(said == "words\nregular file", "{said:?}");
    ensure!(whole.sh("cat /volume/settings")? == "words\nmore");
    // What a container puts in its place leads nowhere.
    whole.sh("mv '/volume/a part' /volume/was; ln -s / '/volume/a part'")?;
    match start(&bound) {
        Ok(_) => bail!("a link was followed"),
        Err(error) => {
            ensure!(
                format!("{error:#}").contains("Too many levels of symbolic links"),
                "{error:#}"
            );
        }
    }
    pod.remove()?;
    drop(mounted);
    Ok(fs::remove_dir_all(&directory)?)
}

/// As kubelet mounts it for a pod with users of its own, whose files in it are theirs and in the guest's memory.
fn share_memory_as_users_of_their_own(context: &Context, handler: &str) -> Result<()> {
    let directory = Path::new("/tmp").join(context.fresh_id());
    let cache = directory.join("volumes/kubernetes.io~empty-dir/cache");
    fs::create_dir_all(&cache)?;
    mount(Some("tmpfs"), &cache, Some("tmpfs"), MsFlags::empty(), Some("size=1m,mode=0755"))?;
    let mounted = Mounted(cache.clone());
    let ids = json!([{"container_id": 0, "host_id": 100_000, "length": 65536}]);
    let options = json!({"userns_options": {"mode": 0, "uids": ids, "gids": ids}});
    let linux = json!({"security_context": {"namespace_options": options}});
    let pod = Pod::run(context, handler, &json!({"linux": linux}))?;
    let mount = json!({"container_path": "/cache", "host_path": cache, "uidMappings": ids, "gidMappings": ids});
    let with = json!({"linux": linux, "mounts": [mount]});
    let [first, second] = [(); 2].map(|()| pod.start(&["sleep", "1000000"], &with));
    let (first, second) = (first?, second?);
    let said = first.sh("echo ours > /cache/file; stat -c '%u %g %a' /cache /cache/file")?;
    ensure!(said == "0 0 755\n0 0 644", "{said:?}");
    ensure!(second.sh("cat /cache/file; stat -f -c %T /cache")? == "ours\ntmpfs");
    ensure!(fs::read_dir(&cache)?.count() == 0, "it is in the host's memory");
    pod.remove()?;
    drop(mounted);
    Ok(fs::remove_dir_all(&directory)?)
}

fn a_mount_of_the_hosts_is_followed_where_that_is_asked_for(context: &Context) -> Result<()> {
    let directory = Path::new("/tmp").join(context.fresh_id());
    fs::create_dir_all(&directory)?;
    let on = |target: &Path, flags: MsFlags, kind: Option<&str>| {
        mount(Some("tmpfs"), target, kind, flags, None::<&str>)
    };
    on(&directory, MsFlags::empty(), Some("tmpfs"))?;
    let mounted = Mounted(directory.clone());
    on(&directory, MsFlags::MS_SHARED, None)?;
    // As the CRI numbers them: not, from the host, and both ways.
    let mounts = |propagation: u32| json!({"mounts": [{"container_path": "/d", "host_path": directory, "propagation": propagation}]});
    let said = same_on_both(context, OURS, |pod| {
        let members = [0, 1].map(|kind| pod.start(&["sleep", "1000000"], &mounts(kind)));
        let later = directory.join(&pod.id);
        fs::create_dir(&later)?;
        on(&later, MsFlags::empty(), Some("tmpfs"))?;
        let _later = Mounted(later.clone());
        fs::write(later.join("file"), "")?;
        let look = format!("ls /d/{}", pod.id);
        members
            .into_iter()
            .map(|member| member?.sh(&look))
            .collect::<Result<Vec<_>>>()
            .map(|said| said.join("|"))
    })?;
    ensure!(said == "|file", "{said:?}");
    let pod = Pod::run(context, OURS, &Value::Null)?;
    match pod.start(&["true"], &mounts(2)) {
        Ok(_) => bail!("a container has a mount that goes both ways"),
        Err(error) => ensure!(format!("{error:#}").contains("/d: rshared"), "{error:#}"),
    }
    pod.remove()?;
    drop(mounted);
    Ok(fs::remove_dir(directory)?)
}

fn many_at_once_leave_nothing(context: &Context) -> Result<()> {
    come_and_go_at_once(context, OURS, context.many.div_ceil(2))
}

fn thirty_at_once_leave_nothing(context: &Context) -> Result<()> {
    come_and_go_at_once(context, OURS, 30)
}

/// How many start at the same time: more would wait for each other longer than engines do for one.
const AT_ONCE: usize = 4;

fn come_and_go_at_once(context: &Context, handler: &str, pods: u32) -> Result<()> {
    let (turns, all_live) = ([const { Mutex::new(()) }; AT_ONCE], Barrier::new(pods as usize));
    let life = |number: u32| {
        let mut pod = None;
        let lives = || -> Result<()> {
            let turn = turns[number as usize % AT_ONCE].lock();
            let pod = pod.insert(Pod::run(context, handler, &Value::Null)?);
            let containers = [pod.sleeper()?, pod.sleeper()?];
            drop(turn);
            let names = containers.iter().map(|one| one.sh("hostname"));
            let names: Vec<_> = names.collect::<Result<_>>()?;
            ensure!(names == ["in-a-pod", "in-a-pod"], "{names:?}");
            Ok(())
        };
        let lived = { lives }();
        all_live.wait();
        lived?;
        pod.context("a pod")?.remove()
    };
    let life = &life;
    std::thread::scope(|scope| {
        let lives: Vec<_> = (0..pods).map(|number| scope.spawn(move || life(number))).collect();
        let ends = lives.into_iter().map(|life| life.join().unwrap_or_else(|_| bail!("panicked")));
        ends.collect::<Result<()>>()
    })
}
