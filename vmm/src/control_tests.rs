use super::*;
use crate::machine::testing::{MEMORY, bare};
use crate::memory::BLOCK;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use protocol::machine::{MEMORY_BLOCK_MIB, Size};
use std::os::linux::fs::MetadataExt as _;
use std::os::unix::fs::FileExt as _;

/// The shim's end and ours.
fn sockets() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
}

fn say(shim: &OwnedFd, command: &Command) {
    control::send(shim.as_fd(), command, &[]).unwrap();
}

fn hear(shim: &OwnedFd) -> Event {
    control::receive::<Event>(shim.as_fd()).unwrap().0
}

fn blocks(count: u64) -> Command {
    Command::Resize(Size { vcpus: 0, added_mib: count * MEMORY_BLOCK_MIB })
}

#[test]
fn events_without_end_keep_no_command_waiting() {
    let (shim, ours) = sockets();
    let (mut machine, _, events) = bare(0);
    for port in 0..2 * EVENTS_A_TURN as u32 {
        let stream = std::fs::File::open("/dev/null").unwrap().into();
        events.send(DeviceEvent::Accepted { port, stream }).unwrap();
    }
    say(&shim, &Command::Stop);
    assert!(matches!(serve(ours.as_fd(), &mut machine), ExitReason::Stopped));
    let heard = std::iter::from_fn(|| matches!(hear(&shim), Event::Accepted { .. }).then_some(()));
    assert_eq!(heard.count(), EVENTS_A_TURN);
}

#[test]
fn memory_goes_back_to_the_host_before_the_answer() {
    let (shim, ours) = sockets();
    let (mut machine, file, _events) = bare(4);
    let held = || file.metadata().unwrap().st_blocks() * 512;
    std::thread::scope(|scope| {
        scope.spawn(|| serve(ours.as_fd(), &mut machine));
        say(&shim, &blocks(4));
        assert!(matches!(hear(&shim), Event::Done { outcome: Ok(_) }));
        for block in 0..4 {
            file.write_all_at(b"a page", MEMORY + block * BLOCK).unwrap();
        }
        // What comes next is not answered first.
        say(&shim, &blocks(1));
        say(&shim, &Command::Counters);
        assert!(matches!(hear(&shim), Event::Done { outcome: Ok(_) }));
        assert_eq!(held(), 4096);
        assert!(matches!(hear(&shim), Event::Counters(_)));
        say(&shim, &Command::Stop);
        assert!(matches!(hear(&shim), Event::Exited { reason: ExitReason::Stopped }));
    });
}

#[test]
fn a_stop_does_not_wait_until_memory_has_gone_back() {
    let (shim, ours) = sockets();
    let (mut machine, _, _events) = bare(4);
    for command in [blocks(4), blocks(0), Command::Stop] {
        say(&shim, &command);
    }
    serve(ours.as_fd(), &mut machine);
    assert!(matches!(hear(&shim), Event::Done { outcome: Ok(_) }));
    assert!(matches!(hear(&shim), Event::Exited { reason: ExitReason::Stopped }));
}
