use super::*;

struct Fixture {
    table: Table,
    events: mpsc::UnboundedReceiver<SandboxEvent>,
}

fn with_container() -> Fixture {
    let (sender, events) = mpsc::unbounded_channel();
    let mut table = Table::new(sender);
    let _ = table.reserve("c").unwrap();
    table.created("c", 7, ProcessIo::default(), Undo::new(), ContainerHooks::default());
    Fixture { table, events }
}

fn running() -> Fixture {
    let mut fixture = with_container();
    fixture.table.starting("c", "").unwrap();
    fixture.table.started("c", "");
    fixture
}

fn running_with_exec() -> Fixture {
    let mut fixture = running();
    fixture.table.add_exec("c", "e").unwrap();
    fixture.table.starting("c", "e").unwrap();
    fixture.table.started("c", "e");
    fixture
}

impl Fixture {
    fn told(&mut self) -> Vec<&'static str> {
        let mut out = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            out.push(match event {
                SandboxEvent::Created { .. } => "created",
                SandboxEvent::Started { .. } => "started",
                SandboxEvent::OutOfMemory { .. } => "oom",
                SandboxEvent::Paused { .. } => "paused",
                SandboxEvent::Resumed { .. } => "resumed",
                SandboxEvent::ExecAdded { .. } => "exec-added",
                SandboxEvent::ExecStarted { .. } => "exec-started",
                SandboxEvent::Exited { exec, .. } if exec.is_empty() => "exited",
                SandboxEvent::Exited { .. } => "exec-exited",
                SandboxEvent::Deleted { .. } => "deleted",
            });
        }
        out
    }
}

fn code<T>(result: Result<T>) -> ttrpc::Code {
    result.map(drop).unwrap_err().code()
}

use ttrpc::Code::{ALREADY_EXISTS, FAILED_PRECONDITION, NOT_FOUND, UNAVAILABLE};

#[test]
fn a_container_is_paused_once_and_starts_nothing_then() {
    let mut f = running();
    assert_eq!(code(f.table.pausing("c", false)), FAILED_PRECONDITION);
    f.table.pausing("c", true).unwrap();
    f.table.paused("c", true);
    assert_eq!(code(f.table.pausing("c", true)), FAILED_PRECONDITION);
    f.table.add_exec("c", "e").unwrap();
    assert_eq!(code(f.table.starting("c", "e")), FAILED_PRECONDITION);
    assert_eq!(code(f.table.deleting("c", "")), FAILED_PRECONDITION);
    f.table.pausing("c", false).unwrap();
    f.table.paused("c", false);
    f.table.starting("c", "e").unwrap();
    assert_eq!(f.told(), ["created", "started", "paused", "exec-added", "resumed"]);
}

#[test]
fn a_created_container_is_paused_and_starts_when_it_is_resumed() {
    let mut f = with_container();
    f.table.pausing("c", true).unwrap();
    assert_eq!(code(f.table.starting("c", "")), FAILED_PRECONDITION, "half paused");
    assert_eq!(code(f.table.pausing("c", true)), FAILED_PRECONDITION);
    f.table.paused("c", true);
    assert_eq!(f.table.process("c", "").unwrap().phase, Phase::Paused { started: false });
    assert_eq!(code(f.table.starting("c", "")), FAILED_PRECONDITION);
    f.table.pausing("c", false).unwrap();
    assert_eq!(code(f.table.starting("c", "")), FAILED_PRECONDITION);
    f.table.paused("c", false);
    assert_eq!(f.table.process("c", "").unwrap().phase, Phase::Created);
    // A pause that fails leaves nothing.
    f.table.pausing("c", true).unwrap();
    f.table.not_paused("c");
    f.table.starting("c", "").unwrap();
    assert_eq!(code(f.table.pausing("c", true)), FAILED_PRECONDITION, "nor while it starts");
    f.table.started("c", "");
    assert_eq!(f.told(), ["created", "paused", "resumed", "started"]);
}

#[test]
fn memory_that_runs_out_is_told_for_each_new_kill_and_before_the_exit() {
    let mut f = running();
    for kills in [0, 1, 1, 3] {
        f.table.out_of_memory("c", kills);
    }
    f.table.exited("c", "", Exit::now(137));
    f.table.out_of_memory("c", 4);
    assert_eq!(f.told(), ["created", "started", "oom", "oom", "exited"]);
}

#[test]
fn a_paused_container_may_end_and_is_not_resumed_then() {
    let mut f = running();
    f.table.pausing("c", true).unwrap();
    f.table.paused("c", true);
    f.table.exited("c", "", Exit::now(137));
    f.table.paused("c", false);
    assert_eq!(code(f.table.pausing("c", false)), FAILED_PRECONDITION);
    assert_eq!(f.told(), ["created", "started", "paused", "exited"]);
}

#[test]
fn an_id_is_taken_from_the_moment_it_is_reserved_but_not_there() {
    let (sender, _events) = mpsc::unbounded_channel();
    let mut table = Table::new(sender);
    let _ = table.reserve("c").unwrap();
    assert_eq!(code(table.reserve("c")), ALREADY_EXISTS);
    assert_eq!(code(table.process("c", "").map(drop)), NOT_FOUND);
    table.release("c");
    let _ = table.reserve("c").unwrap();
}

#[test]
fn a_life_in_order() {
    let mut f = running_with_exec();
    f.table.exited("c", "e", Exit::now(1));
    assert_eq!(f.table.deleted("c", "e").1.status, 1);
    f.table.exited("c", "", Exit::now(3));
    f.table.deleting("c", "").unwrap();
    let (pid, exit) = f.table.deleted("c", "");
    assert_eq!((pid, exit.status), (7, 3));
    let all =
        ["created", "started", "exec-added", "exec-started", "exec-exited", "exited", "deleted"];
    assert_eq!(f.told(), all);
    assert_eq!(code(f.table.deleting("c", "")), NOT_FOUND);
}

#[test]
fn an_exit_during_the_start_is_told_after_it() {
    let mut f = with_container();
    f.table.starting("c", "").unwrap();
    f.table.exited("c", "", Exit::now(0));
    assert_eq!(f.told(), ["created"]);
    f.table.started("c", "");
    assert_eq!(f.told(), ["started", "exited"]);
}

#[test]
fn an_exit_is_told_once() {
    let mut f = running();
    f.told();
    f.table.exited("c", "", Exit::now(0));
    f.table.exited("c", "", Exit::now(9));
    f.table.sandbox_ended("late");
    assert_eq!(f.told(), ["exited"]);
    assert_eq!(f.table.deleted("c", "").1.status, 0);
}

#[test]
fn inits_exit_is_the_last_of_its_container() {
    let mut f = running_with_exec();
    f.told();
    assert_eq!(f.table.ending("c").len(), 1);
    assert_eq!(code(f.table.add_exec("c", "late")), FAILED_PRECONDITION);
    f.table.exited("c", "", Exit::now(0));
    assert_eq!(f.told(), ["exec-exited", "exited"]);
}

#[test]
fn the_end_of_the_sandbox_is_the_end_of_all() {
    let mut f = running_with_exec();
    f.told();
    f.table.sandbox_ended("the VMM was killed by signal 9");
    assert_eq!(f.told(), ["exec-exited", "exited"]);
    assert_eq!(code(f.table.reserve("d")), UNAVAILABLE);
    assert!(
        matches!(f.table.process("c", "").unwrap().phase, Phase::Stopped(e) if e.status == 137)
    );
}

#[test]
fn a_container_whose_sandbox_ended_before_it_was_there_is_lost_too() {
    let (sender, events) = mpsc::unbounded_channel();
    let mut f = Fixture { table: Table::new(sender), events };
    let _ = f.table.reserve("c").unwrap();
    f.table.sandbox_ended("gone");
    f.table.created("c", 7, ProcessIo::default(), Undo::new(), ContainerHooks::default());
    assert_eq!(f.told(), ["created", "exited"]);
}

#[test]
fn a_running_process_is_not_deleted_nor_started_again() {
    let mut f = running_with_exec();
    assert_eq!(code(f.table.deleting("c", "")), FAILED_PRECONDITION);
    assert_eq!(code(f.table.deleting("c", "e")), FAILED_PRECONDITION);
    assert_eq!(code(f.table.starting("c", "")), FAILED_PRECONDITION);
    assert_eq!(code(f.table.add_exec("c", "e")), ALREADY_EXISTS);
    assert_eq!(code(f.table.starting("c", "other")), NOT_FOUND);
}

#[test]
fn two_deletes_at_once_are_one() {
    let mut f = with_container();
    f.table.deleting("c", "").unwrap();
    assert_eq!(code(f.table.deleting("c", "")), FAILED_PRECONDITION);
}

#[test]
fn a_failed_exec_is_over_without_an_exit_event() {
    let mut f = running();
    f.table.add_exec("c", "e").unwrap();
    f.told();
    f.table.starting("c", "e").unwrap();
    let exit = f.table.process("c", "e").unwrap().exit();
    f.table.start_failed("c", "e", 127);
    assert_eq!(exit.borrow().map(|e| e.status), Some(127));
    assert_eq!(f.told(), [""; 0]);
    f.table.deleting("c", "e").unwrap();
}

#[test]
fn a_failed_init_may_be_tried_again() {
    let mut f = with_container();
    f.table.starting("c", "").unwrap();
    f.table.start_failed("c", "", 127);
    f.table.starting("c", "").unwrap();
}

#[tokio::test]
async fn an_input_that_is_closed_before_it_flows_ends() {
    use crate::io::{Endpoint, GuestStreams, OpenIo, Stdio};
    use tokio::io::AsyncReadExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("in");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut f = running();
    f.table.add_exec("c", "e").unwrap();
    f.table.process("c", "e").unwrap().close_stdin();
    let (ours, mut guest) = tokio::net::UnixStream::pair().unwrap();
    let stdio = Stdio { stdin: Endpoint::Path(path), ..Default::default() };
    let open = OpenIo::open(stdio).await.unwrap();
    let io = Arc::new(open.join(GuestStreams { stdin: Some(ours), ..Default::default() }));
    f.table.process("c", "e").unwrap().set_io(io.clone());
    io.begin_input().await.unwrap();
    let mut byte = [0; 1];
    let ended = tokio::time::timeout(std::time::Duration::from_secs(10), guest.read(&mut byte));
    assert_eq!(ended.await.unwrap().unwrap(), 0);
}
