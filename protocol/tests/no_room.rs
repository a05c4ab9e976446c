//! A process that has as many files open as it may. Alone in this program: the limit is the whole process's.

use protocol::control::{self, Command, Event};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

const EVENT: Event = Event::Done { outcome: Ok(7) };

#[test]
fn a_message_comes_without_descriptors_where_there_is_no_room_for_them() {
    let (a, b) = UnixDatagram::pair().unwrap();
    let (a, b) = (OwnedFd::from(a), OwnedFd::from(b));
    let file = File::open("/dev/null").unwrap();
    let some: [BorrowedFd<'_>; 3] = [file.as_fd(); 3];
    let first_free = file.try_clone().unwrap().as_raw_fd();
    let limit = getrlimit(Resource::Nofile);
    // One fits, of three.
    let low = Rlimit { current: Some(first_free as u64 + 1), ..limit };
    setrlimit(Resource::Nofile, low).unwrap();
    control::send(&a, &Command::Connect { port: 7 }, &some).unwrap();
    control::send(&a, &EVENT, &[]).unwrap();
    let (command, fds) = control::receive::<Command>(&b).unwrap();
    assert_eq!((command, fds.len()), (Command::Connect { port: 7 }, 0));
    assert_eq!(control::receive::<Event>(&b).unwrap().0, EVENT);
    let still_free = file.try_clone().map(|file| file.as_raw_fd());
    setrlimit(Resource::Nofile, limit).unwrap();
    assert_eq!(still_free.unwrap(), first_free, "what came is closed");
}
