use super::*;
use crate::virtio::testing::{TestInterrupt, TestQueue, activation, memory};
use crate::virtio::{F_VERSION_1, io_loop::IoLoop};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Mutex;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// A kernel that takes everything, and remembers what it was told.
#[derive(Default)]
struct Played {
    told: Mutex<Vec<String>>,
    owned: Mutex<bool>,
    lacks: u64,
    fails: Option<&'static str>,
    /// Which entry of the first ring comes next.
    got_to: u16,
    /// For which ring that fails: for those before it nothing does.
    fails_at: usize,
    /// What the rings that it has wake it by, and what it raises.
    ends: Mutex<Vec<[EventFd; 3]>>,
}

fn refusal(errno: i32) -> vhost::Error {
    vhost::Error::IoctlError(io::Error::from_raw_os_error(errno))
}

impl Played {
    fn told(&self) -> Vec<String> {
        std::mem::take(&mut self.told.lock().unwrap())
    }

    fn note(&self, what: &str, details: &str) -> vhost::Result<()> {
        self.told.lock().unwrap().push(format!("{what}{details}"));
        let fails = self.fails == Some(what) && !(self.fails_at == 1 && details == " 0");
        if fails { Err(refusal(libc::EIO)) } else { Ok(()) }
    }
}

impl Host for Arc<Played> {
    fn own(&self) -> vhost::Result<()> {
        self.note("own", "")?;
        let owned = std::mem::replace(&mut *self.owned.lock().unwrap(), true);
        if owned { Err(refusal(libc::EBUSY)) } else { Ok(()) }
    }

    fn features(&self) -> vhost::Result<u64> {
        Ok(!self.lacks)
    }

    fn set_up(&self, features: u64, memory: &GuestMemoryMmap) -> vhost::Result<()> {
        self.note("set up", &format!(" {features:#x} {}", memory.num_regions()))
    }

    fn give(&self, index: usize, ring: &Ring<'_>, _: &GuestMemoryMmap) -> vhost::Result<()> {
        let Ring { size, descriptors, available, used, next_available, .. } = ring;
        let at = format!(" {index} {size} {descriptors:x} {available:x} {used:x} {next_available}");
        let ends = [ring.kick, ring.call, ring.broken].map(|end| end.try_clone().unwrap());
        self.ends.lock().unwrap().push(ends);
        self.note("give", &at)
    }

    fn connect(&self, index: usize, tap: Option<BorrowedFd<'_>>) -> vhost::Result<()> {
        self.note(if tap.is_some() { "connect" } else { "disconnect" }, &format!(" {index}"))
    }

    fn take_back(&self, index: usize) -> vhost::Result<u16> {
        self.note("take back", &format!(" {index}"))?;
        Ok(self.got_to + index as u16)
    }
}

struct Rig {
    host: Arc<Played>,
    backend: Backend,
    memory: GuestMemoryMmap,
    queues: [TestQueue; 2],
    interrupt: Arc<TestInterrupt>,
    tap: Arc<File>,
    /// Where frames go.
    _peer: UnixDatagram,
}

impl Rig {
    fn new(host: Played) -> Self {
        let (host, memory) = (Arc::new(host), memory());
        let backend = Backend::served_by(Arc::new(host.clone())).unwrap();
        let queues = [0x10_0000, 0x20_0000].map(|base| TestQueue::new(&memory, base, 256));
        let (tap, peer) = UnixDatagram::pair().unwrap();
        tap.set_nonblocking(true).unwrap();
        let tap = Arc::new(File::from(OwnedFd::from(tap)));
        Self { host, backend, memory, queues, interrupt: Arc::default(), tap, _peer: peer }
    }

    fn worker(&mut self) -> HostWorker {
        let [rx, tx] = &self.queues;
        let (activation, interrupt) =
            activation(&self.memory, &[rx, tx], super::super::FEATURES | F_VERSION_1);
        self.interrupt = interrupt;
        self.backend.worker(activation, &self.tap, 1500).unwrap()
    }
}

const HANDED_OVER: [&str; 6] = [
    "own",
    "set up 0x130008000 1",
    "give 0 256 100000 104000 108000 0",
    "connect 0",
    "give 1 256 200000 204000 208000 0",
    "connect 1",
];
const TAKEN_BACK: [&str; 4] = ["disconnect 0", "disconnect 1", "take back 0", "take back 1"];

#[test]
fn rings_are_handed_over_and_come_back_as_far_as_they_were_served() {
    let mut rig = Rig::new(Played { got_to: 40, ..Played::default() });
    let mut worker = rig.worker();
    worker.hand_over().unwrap();
    assert_eq!(rig.host.told(), HANDED_OVER);
    for [kick, ..] in &*rig.host.ends.lock().unwrap() {
        assert_eq!(kick.read().ok(), Some(1), "what came before is not looked at");
    }
    // The kernel has used three buffers of the second ring.
    rig.memory.write_obj(3u16, GuestAddress(0x20_8002)).unwrap();
    worker.quiesce();
    worker.quiesce();
    assert_eq!(rig.host.told(), TAKEN_BACK);
    let queues = Box::new(worker).stop();
    let at = queues.iter().flatten().map(|q| (q.queue.next_avail(), q.queue.next_used()));
    assert_eq!(at.collect::<Vec<_>>(), [(40, 0), (41, 3)]);
    // And again, after a pause: this process owns it by now.
    rig.worker().hand_over().unwrap();
    assert_eq!(rig.host.told(), HANDED_OVER);
}

#[test]
fn what_the_kernel_can_not_do_is_named_and_leaves_nothing_to_it() {
    for (host, said) in [
        (Played { lacks: F_EVENT_IDX, ..Played::default() }, "vhost-net lacks features"),
        (Played { fails: Some("own"), ..Played::default() }, "vhost-net: serve this process"),
        (Played { fails: Some("set up"), ..Played::default() }, "vhost-net: take guest memory"),
        (Played { fails: Some("give"), ..Played::default() }, "vhost-net: take a ring"),
        (Played { fails: Some("connect"), ..Played::default() }, "vhost-net: take a tap"),
    ] {
        let mut rig = Rig::new(host);
        let mut worker = rig.worker();
        let error = worker.hand_over().unwrap_err().to_string();
        assert!(error.starts_with(said), "{error}");
        rig.host.told();
        worker.quiesce();
        assert!(rig.host.told().is_empty(), "{said}");
    }
}

#[test]
fn each_ring_is_taken_back_whatever_the_kernel_says_of_another() {
    for fails in ["disconnect", "take back"] {
        let mut rig = Rig::new(Played { fails: Some(fails), ..Played::default() });
        let mut worker = rig.worker();
        worker.hand_over().unwrap();
        rig.host.told();
        let error = worker.take_back().unwrap_err().to_string();
        assert!(error.starts_with("vhost-net: "), "{error}");
        assert_eq!(rig.host.told(), TAKEN_BACK);
    }
}

#[test]
fn an_interface_that_the_kernel_does_not_take_is_served_all_the_same() {
    for host in [
        Played { lacks: F_EVENT_IDX, ..Played::default() },
        Played { fails: Some("connect"), ..Played::default() },
        // With the first ring handed over.
        Played { fails: Some("connect"), fails_at: 1, ..Played::default() },
    ] {
        let mut rig = Rig::new(host);
        let (sender, faults) = crate::events::channel().unwrap();
        let mut io = IoLoop::new("test", sender).unwrap();
        let first = rig.worker();
        let interrupt = rig.interrupt.clone();
        // A frame that is sent.
        let tx = &mut rig.queues[1];
        tx.send(&[&[0; super::super::HEADER + 60]], &[]);
        let id = io.handle().add(Box::new(first), interrupt.clone());
        io.turn(-1).unwrap();
        assert!(!interrupt.needs_reset() && faults.next().is_none());
        assert!(rig.queues[1].used().is_some(), "it is sent");
        let handle = io.handle();
        let ten = std::time::Duration::from_secs(10);
        let removed = std::thread::spawn(move || handle.remove(&id, ten));
        while !removed.is_finished() {
            io.turn(10).unwrap();
        }
        assert_eq!(removed.join().unwrap().unwrap().len(), 2);
    }
}

#[test]
fn a_ring_that_the_guest_breaks_is_taken_from_the_kernel_until_there_is_another_driver() {
    let mut rig = Rig::new(Played::default());
    let (sender, faults) = crate::events::channel().unwrap();
    let mut io = IoLoop::new("test", sender).unwrap();
    let first = rig.worker();
    let interrupt = rig.interrupt.clone();
    let id = io.handle().add(Box::new(first), interrupt.clone());
    io.turn(-1).unwrap();
    assert!(!interrupt.needs_reset());
    rig.host.told();
    let [_, _, broken] = rig.host.ends.lock().unwrap().pop().unwrap();
    broken.write(1).unwrap();
    io.turn(-1).unwrap();
    assert!(interrupt.needs_reset());
    assert_eq!(rig.host.told(), TAKEN_BACK);
    assert!(faults.next().is_some());
    let handle = io.handle();
    let removed = std::thread::spawn(move || handle.remove(&id, std::time::Duration::from_secs(9)));
    io.turn(-1).unwrap();
    assert_eq!(removed.join().unwrap().unwrap().len(), 2);
    let second = rig.worker();
    io.handle().add(Box::new(second), rig.interrupt.clone());
    io.turn(-1).unwrap();
    assert_eq!(io.turn(0).unwrap(), Some(0));
    assert!(!rig.interrupt.needs_reset());
    assert_eq!(rig.host.told(), HANDED_OVER);
}
