use super::*;
use crate::command::memory_file;
use oci_spec::runtime::SpecBuilder;
use std::thread::JoinHandle;
use tempfile::TempDir;

const SOON: Duration = Duration::from_millis(100);

/// A container whose monitor is this process.
fn container() -> (TempDir, Home, Record) {
    let root = tempfile::tempdir().unwrap();
    let home = Home::new(root.path(), "c").unwrap();
    let reserved = home.clone().reserve().unwrap();
    reserved.record(&SpecBuilder::default().build().unwrap(), "/b".into(), false).unwrap();
    reserved.leave();
    let record = home.load().unwrap();
    (root, home, record)
}

fn listen_at(home: &Home) -> OwnedFd {
    let (socket, address, _directory) = socket_in(home).unwrap();
    bind(socket.as_raw_fd(), &address).unwrap();
    listen(&socket, Backlog::new(1).unwrap()).unwrap();
    socket
}

/// Takes one connection and answers with what is given.
fn answering(listener: OwnedFd, answer: Answer, file: Option<File>) -> JoinHandle<Call> {
    std::thread::spawn(move || {
        // SAFETY: accept has just made this descriptor for this process; nothing else owns it.
        let one = unsafe {
            OwnedFd::from_raw_fd(nix::sys::socket::accept(listener.as_raw_fd()).unwrap())
        };
        let (call, _) = control::receive(&one).unwrap();
        let fds: Vec<_> = file.iter().map(AsFd::as_fd).collect();
        control::send(&one, &answer, &fds).unwrap();
        call
    })
}

/// Answers whoever asks, until the test ends.
pub(crate) fn always_answering(home: &Home, answer: Answer) {
    let listener = listen_at(home);
    std::thread::spawn(move || {
        while let Ok(one) = nix::sys::socket::accept(listener.as_raw_fd()) {
            // SAFETY: accept has just made this descriptor for this process; nothing else owns it.
            let one = unsafe { OwnedFd::from_raw_fd(one) };
            let asked: Result<(Call, _), _> = control::receive(&one);
            assert!(asked.is_ok());
            control::send(&one, &answer, &[]).unwrap();
        }
    });
}

#[test]
fn a_monitor_that_is_gone_has_ended_its_container() {
    let (_root, home, mut record) = container();
    record.monitor.start += 1;
    assert_eq!(status(&home, &record).unwrap(), Status::Stopped);
    let error = ask(&home, &Call::Start, &[]).unwrap_err();
    assert!(is_not_running(&error), "{error:#}");
}

#[test]
fn one_that_does_not_answer_is_late_and_no_more_is_known() {
    let (_root, home, _) = container();
    let _listener = listen_at(&home);
    let socket = connect_within(&home, SOON).ok().unwrap();
    assert!(matches!(exchange(&socket, &Call::Status, &[]), Err(Silence::Late)));
    // Nor does it take more connections than wait already.
    let all: Vec<_> = (0..4).map(|_| connect_within(&home, SOON)).collect();
    assert!(matches!(all.last(), Some(Err(Silence::Late))));
}

#[test]
fn one_that_closes_without_a_word_has_ended() {
    let (_root, home, _) = container();
    let listener = listen_at(&home);
    let socket = connect_within(&home, SOON).ok().unwrap();
    drop(listener);
    let answer = exchange(&socket, &Call::Status, &[]);
    assert!(matches!(answer, Err(Silence::Error(CallError::NotRunning))));
}

#[test]
fn an_answer_comes_in_a_packet_or_in_a_file() {
    let (_root, home, record) = container();
    let asked = answering(listen_at(&home), Answer::Status(Status::Paused), None);
    assert_eq!(status(&home, &record).unwrap(), Status::Paused);
    assert!(matches!(asked.join().unwrap(), Call::Status));
    std::fs::remove_file(home.path().join("monitor.sock")).unwrap();
    let long = Process { command: "x".repeat(control::MAX_MESSAGE), ..Process::default() };
    let text = serde_json::to_vec(&Answer::Processes(vec![long.clone()])).unwrap();
    let asked = answering(listen_at(&home), Answer::InFile, Some(memory_file(&text).unwrap()));
    match ask(&home, &Call::Processes, &[]).unwrap() {
        Answer::Processes(processes) => assert_eq!(processes, [long]),
        other => panic!("{other:?}"),
    }
    asked.join().unwrap();
}

#[test]
fn what_it_refuses_is_told_in_its_words() {
    let (_root, home, _) = container();
    let asked = answering(listen_at(&home), Answer::Failed("no".into()), None);
    assert_eq!(ask(&home, &Call::Start, &[]).unwrap_err().to_string(), "no");
    asked.join().unwrap();
}
