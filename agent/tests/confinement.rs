//! What a process is reduced to: as its specification says, and by the guest's own seccomp filter.

mod support;

use protocol::agent::SetupSandboxRequest;
use serde_json::{Value, json};
use support::{Agent, Streams, code, context, shell, start};

/// Runs a script with changes to the process and to `linux`; its status and its output.
async fn run(agent: &Agent, name: &str, process: Value, linux: Value) -> (u32, String) {
    run_whole(agent, name, json!({ "process": process, "linux": linux })).await
}

/// As [`run`], with any members of the specification.
async fn run_whole(agent: &Agent, name: &str, parts: Value) -> (u32, String) {
    let streams = Streams::new(&agent.prefix);
    let (out, err) = (streams.read_stdout(), streams.read_stderr());
    let (id, _streams) = agent.create_whole(name, parts, streams).await.unwrap();
    agent.start_container(&id).await.unwrap();
    let exit = agent.wait(&id, "").await;
    agent.delete(&id).await.unwrap();
    let bytes = [out.join().unwrap(), err.join().unwrap()].concat();
    (exit.exit_status, String::from_utf8(bytes).unwrap())
}

/// A status field of the container's first process.
fn field(text: &str, name: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().to_owned()
}

fn no_mkdir() -> Value {
    json!({ "seccomp": {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }],
    } })
}

const CAPABILITIES: &str = "00000000a80425fb";

#[tokio::test]
async fn user_limits_privileges_and_directory_are_those_of_the_specification() {
    let agent = start();
    let mut process =
        shell("cat /proc/self/status; ulimit -n; pwd; echo $HOME; echo x >/dev/stdout");
    process["user"] = json!({ "uid": 1, "gid": 2, "additionalGids": [3, 4], "umask": 0o77 });
    process["cwd"] = json!("/tmp");
    process["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "hard": 77, "soft": 66 }]);
    let (status, text) = run(&agent, "c", process, json!({})).await;
    assert_eq!(status, 0, "{text}");
    assert_eq!(field(&text, "Uid"), "1\t1\t1\t1");
    assert_eq!(field(&text, "Gid"), "2\t2\t2\t2");
    assert_eq!(field(&text, "Groups"), "3 4");
    assert_eq!(field(&text, "NoNewPrivs"), "1");
    assert_eq!(field(&text, "Umask"), "0077");
    // A user other than root keeps none over the execution of a program.
    assert_eq!(field(&text, "CapEff"), "0000000000000000");
    assert_eq!(field(&text, "CapBnd"), CAPABILITIES);
    assert!(text.ends_with("66\n/tmp\n/usr/sbin\nx\n"), "{text}");
}

#[tokio::test]
async fn a_filter_is_applied_with_and_without_no_new_privs_and_capabilities_come_out_right() {
    let agent = start();
    for no_new_privs in [true, false] {
        let mut process = shell("cat /proc/self/status; mkdir /tmp/made || exit 5");
        process["noNewPrivileges"] = json!(no_new_privs);
        let name = format!("c{no_new_privs}");
        let (status, text) = run(&agent, &name, process, no_mkdir()).await;
        assert_eq!(status, 5, "{text}");
        assert!(text.contains("Operation not permitted"), "{text}");
        assert_eq!(field(&text, "Seccomp"), "2");
        assert_eq!(field(&text, "NoNewPrivs"), u8::from(no_new_privs).to_string());
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            assert_eq!(field(&text, set), CAPABILITIES, "{set}");
        }
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(field(&text, set), "0000000000000000", "{set}");
        }
    }
}

#[tokio::test]
async fn an_exec_gets_the_containers_filter() {
    let agent = start();
    let (id, _streams) = agent
        .create_with("c", shell("exec sleep 100"), no_mkdir(), Streams::new(&agent.prefix))
        .await
        .unwrap();
    agent.start_container(&id).await.unwrap();
    let streams = Streams::new(&agent.prefix);
    let mut process = shell("mkdir /tmp/made 2>/dev/null || exit 5");
    process["noNewPrivileges"] = json!(false);
    agent.exec(&id, "e", process, &streams).await.unwrap();
    assert_eq!(agent.wait(&id, "e").await.exit_status, 5);
}

#[tokio::test]
async fn a_filter_that_the_guest_cannot_apply_is_refused() {
    let agent = start();
    let linux = json!({ "seccomp": { "defaultAction": "SCMP_ACT_NOTIFY" } });
    let streams = Streams::new(&agent.prefix);
    let refused = agent.create_with("c", shell("true"), linux, streams).await.map(drop);
    let (code, text) = code(refused);
    assert_eq!(code, ttrpc::Code::INVALID_ARGUMENT);
    assert!(text.contains("seccomp"), "{text}");
}

#[tokio::test]
async fn signals_are_as_a_program_expects_them() {
    let agent = start();
    let (_, text) = agent.run("c", "grep -E 'SigBlk|SigIgn' /proc/self/status").await;
    assert_eq!(field(&text, "SigBlk"), "0000000000000000");
    // The agent itself ignores SIGPIPE. Whoever started this test may ignore the two signals that glibc keeps
    // for itself and lets nobody reset.
    let ignored = u64::from_str_radix(&field(&text, "SigIgn"), 16).unwrap();
    assert_eq!(ignored & !(0b11 << 31), 0);
}

#[tokio::test]
async fn no_descriptor_of_the_agent_reaches_a_container() {
    let agent = start();
    let (_, text) = agent.run("c", "ls /proc/self/fd | wc -l").await;
    // 0, 1, 2 and the directory that `ls` reads. (Descriptor 9 is this test's.)
    assert_eq!(text, "4\n");
}

#[tokio::test]
async fn the_guest_takes_its_identity_from_the_host() {
    let agent = start();
    let request = SetupSandboxRequest {
        hostname: "guest-1".to_owned(),
        entropy: vec![7; 32],
        ..SetupSandboxRequest::default()
    };
    agent.client.setup_sandbox(context(), &request).await.unwrap();
    agent.client.setup_sandbox(context(), &request).await.unwrap();
    let request = SetupSandboxRequest { hostname: "x".repeat(65), ..request };
    let (_, text) = code(agent.client.setup_sandbox(context(), &request).await);
    assert!(text.contains("host name"), "{text}");
}

#[tokio::test]
async fn a_working_directory_below_a_read_only_path_is_read_only() {
    let agent = start();
    let script = "pwd; cat kernel/shm_next_id; echo 7 > kernel/shm_next_id";
    let users = [0, 1];
    for (cwd, uid) in ["/proc/sys", "/proc/sys/../sys"].iter().zip(users) {
        let mut process = shell(script);
        process["cwd"] = json!(cwd);
        process["user"]["uid"] = json!(uid);
        let (status, text) = run(&agent, &format!("c{uid}"), process, json!({})).await;
        assert_ne!(status, 0, "{text}");
        assert!(text.starts_with("/proc/sys\n-1\n"), "{text}");
        assert!(text.contains("Read-only file system"), "{text}");
    }
    let mut process = shell("pwd; echo 7 > shm_next_id");
    process["cwd"] = json!("/proc/self/root/proc/sys/kernel");
    let (status, text) = run(&agent, "c", process, json!({})).await;
    assert_ne!(status, 0, "{text}");
    assert!(text.contains("Read-only file system"), "{text}");
}

/// As the program itself: its user, its directory, no more capabilities, and the filter.
#[tokio::test]
async fn a_hook_before_the_program_has_no_more_rights_than_the_program() {
    let agent = start();
    let script = "{ cat; echo; pwd; echo $MINE; cat /proc/self/status; mkdir /tmp/made || true; } > /tmp/told 2>&1";
    let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", script] });
    let mut process = shell("cat /tmp/told");
    process["noNewPrivileges"] = json!(false);
    process["cwd"] = json!("/proc/sys");
    process["env"] = json!(["PATH=/bin:/usr/bin", "MINE=of the program"]);
    let parts = json!({ "process": process, "linux": no_mkdir(),
        "hooks": { "startContainer": [hook, { "path": "/bin/true" }] } });
    let (status, text) = run_whole(&agent, "c", parts).await;
    assert_eq!(status, 0, "{text}");
    let (state, rest) = text.split_once('\n').unwrap();
    let state: Value = serde_json::from_str(state).unwrap();
    assert_eq!((&state["status"], &state["pid"]), (&json!("created"), &json!(1)), "{state}");
    assert!(rest.starts_with("/proc/sys\nof the program\n"), "{text}");
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(field(&text, set), CAPABILITIES, "{set}");
    }
    assert_eq!(field(&text, "Seccomp"), "2");
    assert!(text.contains("/tmp/made"), "{text}");
    assert!(text.contains("Operation not permitted"), "{text}");
}

#[tokio::test]
async fn a_program_does_not_run_after_a_hook_that_fails() {
    let agent = start();
    let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", "exit 3"] });
    let parts = json!({ "process": shell("echo it ran"), "hooks": { "startContainer": [hook] } });
    let (status, text) = run_whole(&agent, "c", parts).await;
    assert_ne!(status, 0, "{text}");
    assert!(text.contains("startContainer hook #0"), "{text}");
    assert!(!text.contains("it ran"), "{text}");
}

#[tokio::test]
async fn limits_are_the_specifications_then_the_sandboxes() {
    let agent = start();
    let limits = json!([
        { "type": "RLIMIT_NOFILE", "soft": 5000, "hard": 6000 },
        { "type": "RLIMIT_CORE", "soft": 8, "hard": u64::MAX },
        { "type": "RLIMIT_NPROC", "soft": 123, "hard": 456 },
    ]);
    let request = SetupSandboxRequest {
        rlimits_json: limits.to_string().into_bytes(),
        ..SetupSandboxRequest::default()
    };
    agent.client.setup_sandbox(context(), &request).await.unwrap();
    let mut process = shell("cat /proc/self/limits; exec sleep 1000");
    process["rlimits"] = json!([{ "type": "RLIMIT_NPROC", "soft": 300, "hard": 400 }]);
    let mappings = json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]);
    let namespaces = ["pid", "mount", "user"].map(|kind| json!({ "type": kind }));
    let linux =
        json!({ "namespaces": namespaces, "uidMappings": mappings, "gidMappings": mappings });
    let streams = Streams::new(&agent.prefix);
    let mut output = streams.connect(streams.stdio.stdout);
    let (id, _streams) = agent.create_with("c", process, linux, streams).await.unwrap();
    agent.start_container(&id).await.unwrap();
    let mut text = [0; 4096];
    let length = std::io::Read::read(&mut output, &mut text).unwrap();
    let text = String::from_utf8_lossy(&text[..length]).into_owned();
    let told = |text: &str, name: &str| -> Vec<String> {
        let line = field(&text.replace(name, &format!("{name}:")), name);
        line.split_whitespace().take(2).map(str::to_owned).collect()
    };
    assert_eq!(told(&text, "Max open files"), ["5000", "6000"]);
    assert_eq!(told(&text, "Max core file size"), ["8", "unlimited"]);
    assert_eq!(told(&text, "Max processes"), ["300", "400"]);
    let streams = Streams::new(&agent.prefix);
    let output = streams.read_stdout();
    let mut process = shell("cat /proc/self/limits");
    process["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 9000 }]);
    agent.exec(&id, "e", process, &streams).await.unwrap();
    assert_eq!(agent.wait(&id, "e").await.exit_status, 0);
    let text = String::from_utf8(output.join().unwrap()).unwrap();
    assert_eq!(told(&text, "Max open files"), ["100", "9000"]);
    assert_eq!(told(&text, "Max processes"), ["123", "456"]);
}

#[tokio::test]
async fn an_exec_is_one_of_the_containers_users() {
    let agent = start();
    let users = json!([{ "containerID": 0, "hostID": 100_000, "size": 2000 }]);
    let namespaces = ["pid", "mount", "user"].map(|kind| json!({ "type": kind }));
    let linux = json!({ "namespaces": namespaces, "uidMappings": users, "gidMappings": users });
    let who = "readlink /proc/self/ns/user; cat /proc/self/uid_map /proc/self/gid_map; id; \
               grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs)' /proc/self/status";
    let of = |user: Value, capabilities: Value, script: &str| {
        let mut process = shell(script);
        process["user"] = user;
        process["capabilities"] = capabilities;
        process
    };
    let some = json!(["CAP_KILL", "CAP_CHOWN"]);
    let sets = json!({ "bounding": some, "effective": some, "permitted": some });
    for (user, sets) in [
        (json!({ "uid": 0, "gid": 0 }), sets.clone()),
        (json!({ "uid": 7, "gid": 8, "additionalGids": [9, 10] }), json!({})),
        (json!({ "uid": 1000, "gid": 0 }), sets),
    ] {
        let streams = Streams::new(&agent.prefix);
        let first = of(user.clone(), sets.clone(), &format!("{{ {who}; }}; exec sleep 1000"));
        let mut output = streams.connect(streams.stdio.stdout);
        let created = agent.create_with("c", first, linux.clone(), streams).await;
        let (id, _streams) = created.unwrap();
        agent.start_container(&id).await.unwrap();
        let streams = Streams::new(&agent.prefix);
        let said = streams.read_stdout();
        agent.exec(&id, "e", of(user, sets, who), &streams).await.unwrap();
        assert_eq!(agent.wait(&id, "e").await.exit_status, 0);
        let said = String::from_utf8(said.join().unwrap()).unwrap();
        assert!(said.contains("100000") && said.contains("Uid"), "{said}");
        let mut expected = vec![0; said.len()];
        std::io::Read::read_exact(&mut output, &mut expected).unwrap();
        assert_eq!(said, String::from_utf8_lossy(&expected));
        agent.signal(&id, "", 9).await.unwrap();
        agent.wait(&id, "").await;
        agent.delete(&id).await.unwrap();
    }
    agent.assert_nothing_left().await;
}

#[tokio::test]
async fn who_joins_a_pid_namespace_has_its_users() {
    let agent = start();
    let users = json!([{ "containerID": 0, "hostID": 100_000, "size": 2000 }]);
    let namespaces = ["mount", "user"].map(|kind| json!({ "type": kind }));
    let linux = json!({ "namespaces": namespaces, "uidMappings": users, "gidMappings": users });
    let mut alone = linux.clone();
    alone["namespaces"].as_array_mut().unwrap().push(json!({ "type": "pid" }));
    let streams = Streams::new(&agent.prefix);
    let (pause, _pauses) =
        agent.create_with("pause", shell("exec sleep 1000"), alone, streams).await.unwrap();
    agent.start_container(&pause).await.unwrap();
    let streams = Streams::new(&agent.prefix);
    let output = streams.read_stdout();
    let process = shell("readlink /proc/1/ns/user /proc/self/ns/user; cat /proc/self/uid_map");
    let mut parts = json!({ "process": process, "linux": linux });
    let mut request = agent.create_request("member", parts.clone(), &streams);
    request.joins_pids_of.clone_from(&pause);
    agent.client.create_container(context(), &request).await.unwrap();
    let member = request.container_id;
    agent.start_container(&member).await.unwrap();
    assert_eq!(agent.wait(&member, "").await.exit_status, 0);
    let text = String::from_utf8(output.join().unwrap()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], lines[1], "{text}");
    assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>(), ["0", "100000", "2000"]);
    // Others would see files as somebody else's.
    parts["linux"]["uidMappings"][0]["hostID"] = json!(200_000);
    let mut other = agent.create_request("other", parts, &streams);
    other.joins_pids_of.clone_from(&pause);
    let error = agent.client.create_container(context(), &other).await.unwrap_err().to_string();
    assert!(error.contains("with others") && error.contains(&pause), "{error}");
    // Of one that has ended nobody's are joined.
    agent.signal(&pause, "", libc::SIGKILL).await.unwrap();
    agent.wait(&pause, "").await;
    request.container_id = format!("{member}-late");
    let error = agent.client.create_container(context(), &request).await.unwrap_err().to_string();
    assert!(error.contains("has ended") && error.contains(&pause), "{error}");
}
