//! Pods whose sandbox containerd makes by the sandbox API (`sandboxer = "shim"`): they have no pause container.

use super::pod::{Member, Pod, crictl};
use crate::command::{self, DEADLINE};
use crate::context::Context;
use crate::{leaks, outage, task_api};
use anyhow::{Context as _, Result, bail, ensure};
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use protocol::sandbox_update::UpdateSandboxRequest;
use serde_json::{Value, json};
use std::time::Duration;

crate::cases!(
    crate::Scope::Newest;
    containers_share_what_a_pod_shares,
    it_lives_without_containers_until_it_is_stopped,
    kernel_parameters_and_names_are_the_pods,
    what_is_only_the_hosts_is_refused;
    crate::Scope::AllNewest;
    the_end_of_any_of_our_processes_is_every_containers,
    the_machine_follows_the_pods_size,
    each_has_pids_of_its_own_where_the_pod_says_so,
    another_containers_processes_are_seen_by_who_asks_for_them,
    users_of_a_pods_own_are_those_of_its_processes,
    its_processes_are_in_the_pods_cgroup,
    a_pod_outlives_containerd,
    what_containerd_gives_up_at_its_start_is_ended,
    a_port_is_forwarded_and_one_where_nobody_listens_is_reset,
    many_at_once_leave_nothing,
    the_machine_follows_what_is_updated_of_a_container,
    a_container_without_a_limit_is_not_held_by_its_neighbours,
);

/// The handler's name in containerd's configuration.
const OURS: &str = "kata-like-sandbox";

fn containers_share_what_a_pod_shares(context: &Context) -> Result<()> {
    super::share_what_a_pod_shares(context, OURS, "readlink /proc/self/ns/ipc | wc -l").map(drop)
}

/// What kubelet says of a pod is the sum of those limits that there are.
fn a_container_without_a_limit_is_not_held_by_its_neighbours(context: &Context) -> Result<()> {
    let half = json!({"linux": {"resources": {"cpu_quota": 50_000, "cpu_period": 100_000}}});
    let pod = Pod::run(context, OURS, &half)?;
    let limited = pod.start(&["sleep", "1000000"], &half)?;
    let busy = "while :; do :; done & while :; do :; done";
    let container = pod.start(&["sh", "-c", busy], &Value::Null)?;
    container.await_line("test $(grep -c ^processor /proc/cpuinfo) -gt 1 && echo more", "more")?;
    limited.remove()?;
    pod.remove()
}

fn it_lives_without_containers_until_it_is_stopped(context: &Context) -> Result<()> {
    super::come_and_go(context, OURS, ("2", "1"))?;
    let pod = Pod::run(context, OURS, &Value::Null)?;
    for _ in 0..2 {
        ensure!(pod.state()? == "SANDBOX_READY", "{}", pod.state()?);
        pod.sleeper()?.remove()?;
        // Longer than a shim would wait that ends with its last container.
        std::thread::sleep(Duration::from_secs(3));
    }
    // Its first process has nothing, can't be ended from within, and collects those who lose their parent.
    let container = pod.sleeper()?;
    let look =
        "kill -9 1; (sleep 0.1 & exec true); sleep 0.5; cat /proc/[0-9]*/stat | grep -c ') Z '
        tr '\\0' ' ' < /proc/1/cmdline; awk '/^(Uid|CapPrm|NoNewPrivs)/ {print $2}' /proc/1/status
        ls -A /proc/1/root/ 2>/dev/null | wc -l";
    let said = container.sh(look)?;
    let none = "0000000000000000";
    ensure!(said.lines().collect::<Vec<_>>() == ["0", "/pause 65535", none, "1", "0"], "{said:?}");
    pod.remove()?;
    command::eventually("no process is left", DEADLINE, || Ok(leaks::our_processes()?.is_empty()))
}

fn each_has_pids_of_its_own_where_the_pod_says_so(context: &Context) -> Result<()> {
    super::have_pids_of_their_own(context, OURS)
}

fn another_containers_processes_are_seen_by_who_asks_for_them(context: &Context) -> Result<()> {
    super::target(context, OURS)
}

fn what_is_only_the_hosts_is_refused(context: &Context) -> Result<()> {
    super::refuse_what_is_the_hosts(context, OURS)
}

fn users_of_a_pods_own_are_those_of_its_processes(context: &Context) -> Result<()> {
    super::own_users(context, OURS)?;
    super::share_memory_as_users_of_their_own(context, OURS)?;
    let users = |mappings: &[Value]| {
        let options = json!({"userns_options": {"mode": 0, "uids": mappings, "gids": mappings}});
        json!({"linux": {"security_context": {"namespace_options": options}}})
    };
    // Fewer than the first process's usual id; it has no rights over the pod's.
    let few = users(&[json!({"container_id": 0, "host_id": 200_000, "length": 100})]);
    let pod = Pod::run(context, OURS, &few)?;
    let container = pod.start(&["sleep", "1000000"], &few)?;
    let look = "tr '\\0' ' ' < /proc/1/cmdline; awk '/^(Uid|CapPrm)/ {print $2}' /proc/1/status
        cat /proc/1/uid_map | awk '{print $2}'; ls -A /proc/1/fd | wc -l";
    let said = container.sh(look)?;
    let none = "0000000000000000";
    ensure!(
        said.lines().collect::<Vec<_>>() == ["/pause of-users 99 99", none, "200000", "0"],
        "{said:?}"
    );
    pod.remove()?;
    // What containerd leaves to who makes the sandbox.
    for (mode, first, words) in
        [(0, 1, "no UID is mapped to 0"), (1, 0, "CONTAINER is not supported")]
    {
        let mapping = json!({"container_id": first, "host_id": 200_000, "length": 100});
        let mut options = users(&[mapping]);
        options["linux"]["security_context"]["namespace_options"]["userns_options"]["mode"] =
            mode.into();
        match Pod::run(context, OURS, &options) {
            Ok(_) => bail!("a pod was made: {words}"),
            Err(error) => ensure!(format!("{error:#}").contains(words), "{error:#}"),
        }
    }
    Ok(())
}

fn the_end_of_any_of_our_processes_is_every_containers(context: &Context) -> Result<()> {
    super::end_with_any_of_our_processes(context, OURS)
}

fn its_processes_are_in_the_pods_cgroup(context: &Context) -> Result<()> {
    super::be_in_the_pods_cgroup(context, OURS)
}

fn many_at_once_leave_nothing(context: &Context) -> Result<()> {
    super::come_and_go_at_once(context, OURS, context.many.div_ceil(2))
}

fn a_port_is_forwarded_and_one_where_nobody_listens_is_reset(context: &Context) -> Result<()> {
    super::forward::ports_are_forwarded(context, OURS)
}

fn a_pod_outlives_containerd(context: &Context) -> Result<()> {
    super::outlive_containerd(context, OURS)
}

fn what_containerd_gives_up_at_its_start_is_ended(context: &Context) -> Result<()> {
    let pod = Pod::run(context, OURS, &Value::Null)?;
    let _container = pod.sleeper()?;
    outage::give_up(context)?;
    pod.remove()
}

fn kernel_parameters_and_names_are_the_pods(context: &Context) -> Result<()> {
    let more = json!({"linux": {"sysctls": {"net.core.somaxconn": "77", "kernel.shmmni": "99"}},
        "dns_config": {"servers": ["10.0.0.10"], "searches": ["a.local", "local"], "options": ["ndots:5"]}});
    let pod = Pod::run(context, OURS, &more)?;
    let container = pod.sleeper()?;
    let read = "cd /proc/sys/net; cat core/somaxconn ../kernel/shmmni ipv4/ip_unprivileged_port_start \
        ipv4/ping_group_range; cat /etc/resolv.conf /etc/hostname";
    let said = container.sh(read)?;
    let expected = "77\n99\n0\n0\t2147483647\nsearch a.local local\nnameserver 10.0.0.10\noptions ndots:5\nin-a-pod";
    ensure!(said == expected, "{said:?}");
    pod.remove()
}

/// As containerd's CRI says it, of what kubelet names only.
fn resize(pod: &Pod, resources: &Value) -> Result<()> {
    let mut update = UpdateSandboxRequest::new();
    update.sandbox_id.clone_from(&pod.id);
    let value = json!({"Overhead": null, "Resources": resources}).to_string().into_bytes();
    let extensions = &mut update.sandbox.mut_or_insert_default().extensions;
    extensions.insert("updated-resources".into(), Any { value, ..Any::default() });
    let request = ttrpc::Request {
        service: "containerd.runtime.sandbox.v1.Sandbox".into(),
        method: "UpdateSandbox".into(),
        payload: update.write_to_bytes()?,
        timeout_nano: 50_000_000_000,
        ..Default::default()
    };
    task_api::connect_to_pod(pod.context(), &pod.id)?.request(request)?;
    Ok(())
}

/// CPUs of the guest, and MiB of its memory.
fn machine(container: &Member) -> Result<(u64, u64)> {
    let look = "grep -c ^processor /proc/cpuinfo; awk '/^MemTotal/ {print $2}' /proc/meminfo";
    let said = container.sh(look)?;
    let (cpus, kib) = said.split_once('\n').context("two lines")?;
    Ok((cpus.parse()?, kib.parse::<u64>()? / 1024))
}

/// The host has two CPUs or more.
fn the_machine_follows_the_pods_size(context: &Context) -> Result<()> {
    let mib = |mib: u64| json!({"memory_limit_in_bytes": mib << 20});
    let cpus = |n: u64| json!({"cpu_quota": n * 100_000, "cpu_period": 100_000});
    let size =
        json!({"memory_limit_in_bytes": 200 << 20, "cpu_quota": 100_000, "cpu_period": 100_000});
    let pod = Pod::run(context, OURS, &json!({"linux": {"resources": size}}))?;
    let container = pod.sleeper()?;
    let at_first = machine(&container)?;
    let (one, small) = at_first;
    ensure!(one == 1 && (200..=264).contains(&small), "at first the guest has {at_first:?}");
    for (change, expected) in [
        // What is not named stays.
        (cpus(2), (2, small)),
        (mib(200 + 256), (2, small + 256)),
        (json!({"cpu_shares": 512}), (2, small + 256)),
        (cpus(1), (1, small + 256)),
        (mib(200), (1, small)),
    ] {
        resize(&pod, &change)?;
        let seen = machine(&container)?;
        ensure!(seen == expected, "after {change} the guest has {seen:?}, at first {at_first:?}");
    }
    pod.remove()
}

/// As kubelet resizes a pod in place: containerd tells the runtime of the container alone.
fn the_machine_follows_what_is_updated_of_a_container(context: &Context) -> Result<()> {
    let limits = |mib: u64| {
        json!({"linux": {"resources":
        {"memory_limit_in_bytes": mib << 20, "cpu_quota": 200_000, "cpu_period": 100_000}}})
    };
    let pod = Pod::run(context, OURS, &limits(456))?;
    let container = pod.start(&["sleep", "1000000"], &limits(400))?;
    let (cpus, large) = machine(&container)?;
    ensure!(cpus == 2 && large >= 456, "at first the guest has {large} MiB");
    for (change, expected) in [
        (["--memory", "150994944"], (2, large - 256)),
        (["--cpu-quota", "100000"], (1, large - 256)),
        (["--memory", "419430400"], (1, large)),
    ] {
        crictl(context, &["update", change[0], change[1], &container.id])?.expect_code(0)?;
        let seen = machine(&container)?;
        ensure!(seen == expected, "after {change:?} the guest has {seen:?}, at first {large} MiB");
    }
    pod.remove()
}
