//! What a container sees of its mounts and paths, where the agent does what libcontainer leaves undone.

mod support;

use serde_json::{Value, json};
use support::{Agent, Streams, shell, start};

/// Runs a script in a container with these mounts after the usual ones; its output and what it complains of.
async fn run(agent: &Agent, script: &str, mounts: Vec<Value>, parts: Value) -> String {
    let streams = Streams::new(&agent.prefix);
    let (out, err) = (streams.read_stdout(), streams.read_stderr());
    let mut whole = json!({ "process": shell(script), "linux": {} });
    let all = [usual(), mounts].concat();
    whole["mounts"] = json!(all);
    whole["linux"] = parts["linux"].clone();
    for (name, value) in parts["process"].as_object().into_iter().flatten() {
        whole["process"][name] = value.clone();
    }
    let (id, _streams) = agent.create_whole("c", whole, streams).await.unwrap();
    agent.start_container(&id).await.unwrap();
    agent.wait(&id, "").await;
    agent.delete(&id).await.unwrap();
    String::from_utf8([out.join().unwrap(), err.join().unwrap()].concat()).unwrap()
}

fn mount(kind: &str, at: &str, options: &[&str]) -> Value {
    json!({ "destination": at, "type": kind, "source": kind, "options": options })
}

fn usual() -> Vec<Value> {
    vec![
        mount("proc", "/proc", &["nosuid", "noexec", "nodev"]),
        mount("tmpfs", "/dev", &["nosuid", "mode=755", "ro"]),
        mount("devpts", "/dev/pts", &["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ]
}

#[tokio::test]
async fn masked_directories_share_one_file_system_and_are_masked_once() {
    let agent = start();
    let masked = [
        "/usr/bin/../games",
        "/usr/share",
        "/etc/passwd",
        "/usr/games/",
        "/no/such",
        "/etc/passwd",
    ];
    let linux = json!({ "maskedPaths": masked });
    let script = "exec </proc/self/mountinfo; while read -r _ _ d _ at _; do
        case $at in /usr/*|/etc/*) echo \"$d $at\";; esac; done; read -r x </etc/passwd || echo empty;
        (: >/usr/share/x); (: >/usr/games/x)";
    let said = run(&agent, script, Vec::new(), json!({ "linux": linux })).await;
    let lines: Vec<Vec<&str>> = said.lines().map(|l| l.split(' ').collect()).collect();
    let at =
        |path: &str| lines.iter().filter(|line| line.get(1) == Some(&path)).collect::<Vec<_>>();
    assert_eq!(
        (at("/usr/games").len(), at("/usr/share").len(), at("/etc/passwd").len()),
        (1, 1, 1),
        "{said}"
    );
    assert_eq!(at("/usr/games")[0][0], at("/usr/share")[0][0], "{said}");
    assert!(said.contains("empty"), "{said}");
    assert_eq!(said.matches("Read-only file system").count(), 2, "{said}");
    agent.assert_nothing_left().await;
}

#[tokio::test]
async fn what_is_to_be_read_only_is_when_all_in_it_is_made() {
    let agent = start();
    let mounts =
        vec![mount("tmpfs", "/mnt", &["ro", "nosuid"]), mount("tmpfs", "/mnt/below", &["nosuid"])];
    let script = "touch /mnt/x; touch /mnt/below/x && echo made; touch /dev/x; echo y >/dev/null && echo written";
    let said = run(&agent, script, mounts, json!({ "linux": {} })).await;
    assert!(said.contains("made") && said.contains("written"), "{said}");
    assert_eq!(said.matches("Read-only file system").count(), 2, "{said}");
    agent.assert_nothing_left().await;
}

#[tokio::test]
async fn a_missing_working_directory_is_made_wherever_it_is() {
    let agent = start();
    for (cwd, mounts) in [
        ("/not/there/yet", Vec::new()),
        ("/mnt/not/there", vec![mount("tmpfs", "/mnt", &["nosuid"])]),
    ] {
        let parts = json!({ "linux": {}, "process": { "cwd": cwd } });
        let said = run(&agent, "pwd; stat -c '%a %u' .", mounts, parts).await;
        assert_eq!(said, format!("{cwd}\n755 0\n"));
    }
    agent.assert_nothing_left().await;
}

#[tokio::test]
async fn a_mount_goes_where_links_to_nothing_lead() {
    let agent = start();
    let script = "ln -s /far/away/dir /link && echo made";
    let said = run(&agent, script, Vec::new(), json!({ "linux": {} })).await;
    // The root is the test's own, and stays as the container left it.
    assert_eq!(said, "made\n");
    let mounts = vec![mount("tmpfs", "/link/below", &["nosuid"])];
    let said = run(
        &agent,
        "grep -o ' /far/away/dir/below ' /proc/self/mountinfo",
        mounts,
        json!({ "linux": {} }),
    )
    .await;
    assert_eq!(said.trim(), "/far/away/dir/below");
    agent.assert_nothing_left().await;
}

#[tokio::test]
async fn a_bind_that_follows_no_links_does_not() {
    let agent = start();
    let script = "mkdir -p /source && ln -s /etc/hostname /source/link && echo made";
    assert_eq!(run(&agent, script, Vec::new(), json!({ "linux": {} })).await, "made\n");
    // The source is in the container's root, which the next container has as well.
    let root = format!("/run/kata-like/{}-root", agent.id("c"));
    let bind = json!({ "destination": "/mnt", "source": format!("{root}/source"), "options": ["bind", "nosymfollow"] });
    let said = run(
        &agent,
        "cat /mnt/link; cat /source/link >/dev/null && echo read",
        vec![bind],
        json!({ "linux": {} }),
    )
    .await;
    assert!(said.contains("Too many levels of symbolic links") && said.contains("read"), "{said}");
    agent.assert_nothing_left().await;
}

#[tokio::test]
async fn file_systems_of_the_guests_namespaces_are_there_for_a_containers_own_users() {
    let agent = start();
    let users = json!([{ "containerID": 0, "hostID": 1000, "size": 2000 }]);
    let namespaces = ["pid", "mount", "user"].map(|kind| json!({ "type": kind }));
    let linux = json!({ "namespaces": namespaces, "uidMappings": users, "gidMappings": users });
    let mounts = vec![
        mount("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
        mount("sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"]),
    ];
    let script = "exec </proc/self/mountinfo; while read -r _ _ _ _ at rest; do
        case $at in /sys|/dev/mqueue) echo \"$at ${rest##* - }\";; esac; done; ls /sys/class/net";
    let said = run(&agent, script, mounts, json!({ "linux": linux })).await;
    assert!(said.contains("/dev/mqueue mqueue") && said.contains("/sys sysfs"), "{said}");
    assert!(said.contains("lo"), "{said}");
}
