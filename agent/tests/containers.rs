//! The life of containers, from create to nothing left.

mod support;

use nix::sys::signal::{Signal, kill};
use protocol::agent::ListProcessesRequest;
use serde_json::json;
use std::io::Read as _;
use std::process::Command;
use support::{Streams, code, command, container, context, process_ref, shell, start};
use ttrpc::Code;

#[tokio::test]
async fn a_container_runs_and_nothing_is_left() {
    let agent = start();
    let (status, output) = agent.run("c", "echo pid $$; hostname >/dev/null; exit 42").await;
    assert_eq!((status, output.as_str()), (42, "pid 1\n"));
    agent.assert_nothing_left().await;
}

/// It has mounts of its own here, so that it would do no harm.
#[test]
fn started_on_a_host_it_refuses_and_changes_nothing() {
    let mut agent = Command::new("timeout");
    agent.args(["20", "unshare", "--mount", env!("CARGO_BIN_EXE_kata-like-agent")]);
    let said = agent.output().unwrap();
    let text = String::from_utf8(said.stderr).unwrap();
    assert!(said.status.code() == Some(1) && text.contains("first process of a guest"), "{text}");
}

#[tokio::test]
async fn twenty_one_after_the_other_and_five_at_once() {
    let agent = start();
    for number in 0..20 {
        let (status, output) = agent.run(&format!("c{number}"), "echo hello").await;
        assert_eq!((status, output.as_str()), (0, "hello\n"));
    }
    let run = |name: &'static str| agent.run(name, "sleep 0.2; echo hello; exit 1");
    let all = tokio::join!(run("a"), run("b"), run("c"), run("d"), run("e"));
    for result in [all.0, all.1, all.2, all.3, all.4] {
        assert_eq!(result, (1, "hello\n".to_owned()));
    }
    agent.assert_nothing_left().await;
}

#[tokio::test]
async fn states_are_kept_and_wrong_calls_are_refused_by_code() {
    let agent = start();
    let (id, streams) = agent.create("c", shell("exec sleep 100")).await.unwrap();
    let state = async || agent.client.container_state(context(), &container(&id)).await.unwrap();
    assert_eq!(state().await.status.value(), 1);
    assert_eq!(code(agent.create("c", shell("true")).await.map(drop)).0, Code::ALREADY_EXISTS);
    // As with runc: an exec needs no start of its container.
    agent.exec(&id, "early", shell("true"), &streams).await.unwrap();
    assert_eq!(agent.wait(&id, "early").await.exit_status, 0);
    agent.start_container(&id).await.unwrap();
    assert_eq!(state().await.status.value(), 2);
    assert_eq!(code(agent.start_container(&id).await).0, Code::FAILED_PRECONDITION);
    assert_eq!(code(agent.delete(&id).await).0, Code::FAILED_PRECONDITION);
    assert_eq!(code(agent.signal(&id, "nobody", 9).await).0, Code::NOT_FOUND);
    assert_eq!(code(agent.signal(&id, "", 99).await).0, Code::INVALID_ARGUMENT);
    agent.signal(&id, "", 9).await.unwrap();
    assert_eq!(agent.wait(&id, "").await.exit_status, 137);
    assert_eq!(agent.wait(&id, "").await.exit_status, 137);
    assert_eq!(state().await.status.value(), 3);
    let exec = agent.exec(&id, "late", shell("true"), &streams).await;
    assert_eq!(code(exec).0, Code::FAILED_PRECONDITION);
    let finished = code(agent.signal(&id, "", 9).await);
    assert_eq!(finished, (Code::NOT_FOUND, "process already finished".to_owned()));
    agent.delete(&id).await.unwrap();
    assert_eq!(code(agent.delete(&id).await).0, Code::NOT_FOUND);
    agent.assert_nothing_left().await;
}

#[tokio::test]
async fn a_container_that_was_never_started_can_be_deleted() {
    let agent = start();
    let (id, _streams) = agent.create("c", shell("true")).await.unwrap();
    agent.delete(&id).await.unwrap();
    agent.assert_nothing_left().await;
}

#[tokio::test]
async fn programs_that_cannot_be_run_are_named_and_leave_nothing() {
    let agent = start();
    let cases = [
        ("nosuch", "exec: \"nosuch\": executable file not found in $PATH"),
        ("/etc/passwd", "exec: \"/etc/passwd\": permission denied"),
        ("/no/such", "exec: \"/no/such\": stat /no/such: no such file or directory"),
    ];
    for (program, message) in cases {
        let (code, text) = code(agent.create("c", command(&[program])).await.map(drop));
        assert_eq!(code, Code::INVALID_ARGUMENT);
        assert!(text.ends_with(message), "{text}");
        agent.assert_nothing_left().await;
    }
    let (id, streams) = agent.create("c", shell("exec sleep 100")).await.unwrap();
    agent.start_container(&id).await.unwrap();
    for (program, message) in cases {
        let (_, text) = code(agent.exec(&id, "e", command(&[program]), &streams).await);
        assert!(text.ends_with(message), "{text}");
    }
}

#[tokio::test]
async fn broken_specifications_are_refused() {
    let agent = start();
    let mut no_args = shell("true");
    no_args["args"] = json!([]);
    assert_eq!(code(agent.create("c", no_args).await.map(drop)).0, Code::INVALID_ARGUMENT);
    let (code, text) = code(agent.create("c", json!("what")).await.map(drop));
    assert_eq!(code, Code::INVALID_ARGUMENT, "{text}");
    agent.assert_nothing_left().await;
}

#[tokio::test]
async fn what_libcontainer_fails_at_is_named() {
    let agent = start();
    let linux = json!({ "sysctl": { "kernel.shmmax": "no number" }, "namespaces": [{ "type": "ipc" }, { "type": "mount" }] });
    let streams = Streams::new(&agent.prefix);
    let created = agent.create_with("c", shell("true"), linux, streams).await;
    let (_, text) = code(created.map(drop));
    assert!(text.contains("kernel.shmmax=no number"), "{text}");
}

fn all_of(id: &str) -> ListProcessesRequest {
    ListProcessesRequest { container_id: id.into(), ..ListProcessesRequest::default() }
}

#[tokio::test]
async fn execs_are_listed_signalled_and_deleted() {
    let agent = start();
    let (id, _streams) = agent.create("c", command(&["sleep", "100"])).await.unwrap();
    agent.start_container(&id).await.unwrap();
    let streams = Streams::new(&agent.prefix);
    let mut output = streams.connect(streams.stdio.stdout);
    let pid = agent.exec(&id, "e", shell("echo here; exec sleep 100"), &streams).await.unwrap();
    let mut here = [0; 5];
    output.read_exact(&mut here).unwrap();
    assert_eq!(&here, b"here\n");
    let again = agent.exec(&id, "e", shell("true"), &streams).await;
    assert_eq!(code(again).0, Code::ALREADY_EXISTS);
    let list = agent.client.list_processes(context(), &all_of(&id)).await.unwrap();
    assert_eq!(list.processes.len(), 2);
    let named: Vec<_> = list.processes.iter().filter(|p| p.exec_id == "e").collect();
    assert_eq!(named.len(), 1);
    assert_eq!(named[0].pid, pid);
    let mut rest = all_of(&id);
    rest.after = list.processes[0].pid;
    let rest = agent.client.list_processes(context(), &rest).await.unwrap();
    assert_eq!((rest.processes.len(), rest.processes[0].pid, rest.more), (1, pid, false));
    let running = agent.client.delete_process(context(), &process_ref(&id, "e")).await;
    assert_eq!(code(running).0, Code::FAILED_PRECONDITION);
    agent.signal(&id, "e", 15).await.unwrap();
    assert_eq!(agent.wait(&id, "e").await.exit_status, 143);
    assert_eq!(output.read(&mut here).unwrap(), 0);
    agent.client.delete_process(context(), &process_ref(&id, "e")).await.unwrap();
    let gone = agent.client.delete_process(context(), &process_ref(&id, "e")).await;
    assert_eq!(code(gone).0, Code::NOT_FOUND);
    agent.signal(&id, "", 9).await.unwrap();
    agent.wait(&id, "").await;
    agent.delete(&id).await.unwrap();
    agent.assert_nothing_left().await;
}

/// What comes to life again after its caller has gone does not do what nobody waits for any more.
#[tokio::test]
async fn a_worker_that_hangs_is_given_up_and_does_no_harm_later() {
    let agent = start();
    let (id, _streams) = agent.create("c", command(&["sleep", "100"])).await.unwrap();
    agent.start_container(&id).await.unwrap();
    let zygote = agent.zygote();
    kill(zygote, Signal::SIGSTOP).unwrap();
    let streams = Streams::new(&agent.prefix);
    let patience = ttrpc::context::with_timeout(16_000_000_000);
    let (code, text) = code(agent.exec_within(patience, &id, "e", shell("true"), &streams).await);
    kill(zygote, Signal::SIGCONT).unwrap();
    assert_eq!(code, Code::UNAVAILABLE, "{text}");
    assert!(text.contains("did not answer within 14 s: it never began"), "{text}");
    agent.exec(&id, "e", command(&["sleep", "100"]), &streams).await.unwrap();
    let list = agent.client.list_processes(context(), &all_of(&id)).await.unwrap();
    assert_eq!(list.processes.len(), 2);
    agent.signal(&id, "", 9).await.unwrap();
    agent.wait(&id, "").await;
    agent.delete(&id).await.unwrap();
    agent.assert_nothing_left().await;
}

/// Its caller is told while it waits, and then nothing is left of it.
#[tokio::test]
async fn a_create_that_hangs_is_given_up_as_a_whole() {
    let agent = start();
    let zygote = agent.zygote();
    kill(zygote, Signal::SIGSTOP).unwrap();
    let streams = Streams::new(&agent.prefix);
    let patience = ttrpc::context::with_timeout(16_000_000_000);
    let parts = json!({ "process": shell("true") });
    let (code, text) = code(agent.create_within(patience, "c", parts, streams).await.map(drop));
    assert!(code == Code::UNAVAILABLE && text.contains("did not answer within 14 s"), "{text}");
    kill(zygote, Signal::SIGCONT).unwrap();
    agent.assert_nothing_left().await;
    assert_eq!(agent.run("c", "echo hello").await, (0, "hello\n".to_owned()));
    agent.assert_nothing_left().await;
}

#[tokio::test]
async fn a_signal_to_all_reaches_all() {
    let agent = start();
    let (id, _streams) = agent.create("c", shell("sleep 100; sleep 100")).await.unwrap();
    agent.start_container(&id).await.unwrap();
    let streams = Streams::new(&agent.prefix);
    agent.exec(&id, "e", shell("sleep 100; exit 7"), &streams).await.unwrap();
    let request = protocol::agent::SignalProcessRequest {
        container_id: id.clone(),
        signal: 9,
        all: true,
        ..Default::default()
    };
    agent.client.signal_process(context(), &request).await.unwrap();
    assert_eq!(agent.wait(&id, "").await.exit_status, 137);
    assert_eq!(agent.wait(&id, "e").await.exit_status, 137);
    agent.delete(&id).await.unwrap();
    agent.assert_nothing_left().await;
}

#[tokio::test]
async fn an_exec_runs_where_its_affinity_names_processors_that_are_none() {
    let agent = start();
    let (id, _streams) = agent.create("c", shell("exec sleep 100")).await.unwrap();
    agent.start_container(&id).await.unwrap();
    let mut process = shell("echo it runs");
    process["execCPUAffinity"] = json!({"initial": "1000", "final": "1001-1020"});
    let streams = Streams::new(&agent.prefix);
    let output = streams.read_stdout();
    agent.exec(&id, "e", process, &streams).await.unwrap();
    agent.wait(&id, "e").await;
    assert_eq!(output.join().unwrap(), b"it runs\n");
}

#[tokio::test]
async fn an_exec_has_what_its_process_object_says_and_the_rest_from_the_container() {
    let agent = start();
    let (id, _streams) = agent.create("c", shell("exec sleep 100")).await.unwrap();
    agent.start_container(&id).await.unwrap();
    let look = "cd /proc/$$; grep -E '^(CapBnd|Cpus_allowed_list)' status; cut -d ' ' -f 19,41 stat; \
                tr '\\0' ' ' < environ; umask";
    let mut process = shell(look);
    process["env"] = json!(["PATH=/usr/bin:/bin", "Z=1", "A=1", "Z=2", "HOME=/"]);
    process["execCPUAffinity"] = json!({"initial": "0", "final": "0"});
    process["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 3});
    process["user"]["umask"] = json!(0o27);
    process.as_object_mut().unwrap().remove("capabilities");
    let streams = Streams::new(&agent.prefix);
    let output = streams.read_stdout();
    agent.exec(&id, "e", process, &streams).await.unwrap();
    agent.wait(&id, "e").await;
    let said = String::from_utf8(output.join().unwrap()).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    // Docker's capabilities, as the container's init has them.
    assert_eq!(lines[0].split_whitespace().nth(1), Some("00000000a80425fb"), "{said}");
    assert_eq!(lines[1..3], ["Cpus_allowed_list:\t0", "3 3"], "{said}");
    assert_eq!(lines[3], "PATH=/usr/bin:/bin Z=2 A=1 HOME=/ 0027", "{said}");
}

/// One under SCHED_DEADLINE can't fork, so it is given that after all forks that make it. Hooks are forked later, by
/// itself, which as with runc takes the flag.
#[tokio::test]
async fn a_process_with_a_deadline_is_made_and_so_are_its_hooks_where_it_may_fork() {
    let agent = start();
    // Words of the shell's own: a program would take a fork.
    let mut process = shell("read -r stat < /proc/$$/stat; set -- $stat; echo ${41}");
    process["scheduler"] = json!({"policy": "SCHED_DEADLINE", "runtime": 1_000_000,
        "deadline": 50_000_000, "period": 50_000_000});
    let mut forking = process.clone();
    // As the shim writes SCHED_FLAG_RESET_ON_FORK.
    forking["scheduler"]["flags"] = json!(["SCHED_RESET_ON_FORK"]);
    let hooks = json!({"startContainer": [{"path": "/bin/true"}]});
    for (name, parts) in [
        ("plain", json!({"process": process})),
        ("hooked", json!({"process": forking, "hooks": hooks})),
    ] {
        let streams = Streams::new(&agent.prefix);
        let output = streams.read_stdout();
        let (id, _streams) = agent.create_whole(name, parts, streams).await.unwrap();
        agent.start_container(&id).await.unwrap();
        assert_eq!(agent.wait(&id, "").await.exit_status, 0, "{name}");
        assert_eq!(output.join().unwrap(), b"6\n", "{name}");
    }
    let (id, _streams) = agent.create("c", shell("exec sleep 100")).await.unwrap();
    agent.start_container(&id).await.unwrap();
    let streams = Streams::new(&agent.prefix);
    let output = streams.read_stdout();
    agent.exec(&id, "e", process, &streams).await.unwrap();
    assert_eq!(agent.wait(&id, "e").await.exit_status, 0);
    assert_eq!(output.join().unwrap(), b"6\n");
}

#[tokio::test]
async fn execs_leave_no_file_behind() {
    let agent = start();
    let (id, _streams) = agent.create("c", shell("exec sleep 1000")).await.unwrap();
    agent.start_container(&id).await.unwrap();
    let before = agent.files();
    for number in 0..60 {
        let mut process = shell("true");
        process["terminal"] = json!(number % 2 == 0);
        if number % 3 == 0 {
            process["args"] = json!(["/nowhere"]);
        }
        let exec = format!("e{number}");
        let streams = Streams::for_terminal(&agent.prefix);
        if agent.exec(&id, &exec, process, &streams).await.is_ok() {
            agent.wait(&id, &exec).await;
            agent.client.delete_process(context(), &process_ref(&id, &exec)).await.unwrap();
        }
    }
    assert_eq!(agent.files(), before);
    agent.signal(&id, "", 9).await.unwrap();
    agent.wait(&id, "").await;
    agent.delete(&id).await.unwrap();
    agent.assert_nothing_left().await;
}
