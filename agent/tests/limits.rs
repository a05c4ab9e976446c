//! What the processes of a container may use.

mod support;

use serde_json::{Value, json};
use support::{Streams, code, command, shell, start};
use ttrpc::Code;

/// Each less than it takes to make a container.
const SMALL: [(&str, u64, &str); 4] = [
    ("RLIMIT_NOFILE", 4, "Max open files"),
    ("RLIMIT_AS", 10 << 20, "Max address space"),
    ("RLIMIT_FSIZE", 0, "Max file size"),
    ("RLIMIT_STACK", 128 << 10, "Max stack size"),
];

fn limited(args: &[&str]) -> Value {
    let mut process = command(args);
    process["rlimits"] =
        SMALL.map(|(kind, limit, _)| json!({ "type": kind, "soft": limit, "hard": limit })).into();
    process
}

fn assert_limited(said: &str) {
    for (_, limit, name) in SMALL {
        let line = said.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        let limits: Vec<_> = line.split_whitespace().take(2).collect();
        assert_eq!(limits, [limit.to_string(), limit.to_string()], "{name}: {said}");
    }
}

#[tokio::test]
async fn limits_hold_for_the_program_and_not_while_it_is_made() {
    let agent = start();
    let streams = Streams::new(&agent.prefix);
    let output = streams.read_stdout();
    let show = limited(&["cat", "/proc/self/limits"]);
    let (id, _streams) = agent.create_with("c", show.clone(), json!({}), streams).await.unwrap();
    agent.start_container(&id).await.unwrap();
    agent.wait(&id, "").await;
    assert_limited(&String::from_utf8(output.join().unwrap()).unwrap());
    agent.delete(&id).await.unwrap();

    let (id, _streams) = agent.create("d", shell("exec sleep 100")).await.unwrap();
    agent.start_container(&id).await.unwrap();
    let streams = Streams::new(&agent.prefix);
    let output = streams.read_stdout();
    agent.exec(&id, "e", show, &streams).await.unwrap();
    agent.wait(&id, "e").await;
    assert_limited(&String::from_utf8(output.join().unwrap()).unwrap());
}

/// A filter that allows no limit to be set, and users that may raise none.
#[tokio::test]
async fn limits_are_set_before_the_filter_and_above_what_a_user_may() {
    let agent = start();
    let streams = Streams::new(&agent.prefix);
    let output = streams.read_stdout();
    let mut process = limited(&["cat", "/proc/self/limits"]);
    process["user"] = json!({ "uid": 1000, "gid": 1000 });
    process["rlimits"][1]["hard"] = json!(u64::MAX);
    let set = json!([{ "index": 2, "value": 0, "op": "SCMP_CMP_NE" }]);
    let calls = json!([{ "names": ["setrlimit"], "action": "SCMP_ACT_KILL_PROCESS" },
        { "names": ["prlimit64"], "action": "SCMP_ACT_KILL_PROCESS", "args": set }]);
    let linux = json!({ "seccomp": { "defaultAction": "SCMP_ACT_ALLOW", "syscalls": calls } });
    let (id, _streams) = agent.create_with("c", process, linux, streams).await.unwrap();
    agent.start_container(&id).await.unwrap();
    assert_eq!(agent.wait(&id, "").await.exit_status, 0);
    let said = String::from_utf8(output.join().unwrap()).unwrap();
    let line = said.lines().find(|line| line.starts_with("Max address space")).unwrap();
    assert!(line.contains("10485760") && line.contains("unlimited"), "{said}");
    agent.delete(&id).await.unwrap();
}

#[tokio::test]
async fn limits_that_cannot_be_are_refused_at_the_create() {
    let agent = start();
    for (limits, message) in [
        (("RLIMIT_CPU", 5, 4), "RLIMIT_CPU: the soft limit 5 is above the hard limit 4"),
        (("RLIMIT_NOFILE", 1, u64::MAX - 1), "RLIMIT_NOFILE of 18446744073709551614: EPERM"),
    ] {
        let mut process = shell("true");
        process["rlimits"] = json!([{ "type": limits.0, "soft": limits.1, "hard": limits.2 }]);
        let (code, text) = code(agent.create("c", process).await.map(drop));
        assert!(code == Code::INVALID_ARGUMENT && text.contains(message), "{text}");
    }
    agent.assert_nothing_left().await;
}

/// A hook is started with what is left of the limit, not of what made the container.
#[tokio::test]
async fn a_start_hook_has_room_below_the_limit() {
    let agent = start();
    let streams = Streams::new(&agent.prefix);
    let (output, errors) = (streams.read_stdout(), streams.read_stderr());
    let mut process = command(&["cat", "/tmp/hook"]);
    process["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 8, "hard": 8 }]);
    let hook = json!({ "path": "/bin/cp", "args": ["cp", "/proc/self/limits", "/tmp/hook"] });
    let parts = json!({ "process": process, "hooks": { "startContainer": [hook] } });
    let (id, _streams) = agent.create_whole("c", parts, streams).await.unwrap();
    agent.start_container(&id).await.unwrap();
    agent.wait(&id, "").await;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (said, errors) = (text(output.join().unwrap()), text(errors.join().unwrap()));
    assert!(said.lines().any(|line| line.starts_with("Max open files            8 ")), "{errors}");
}
