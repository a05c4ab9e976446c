use super::*;
use crate::events::{self, DeviceEvent, EventReceiver};
use crate::virtio::interrupt::IrqLine;
use crate::virtio::io_loop::{IoHandle, IoLoop, WorkerId};
use crate::virtio::testing::registers;
use crate::virtio::testing::{self, MEMORY, TestQueue, wait_for};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use vm_memory::FileOffset;
use vmm_sys_util::eventfd::EventFd;

// Requests, by the numbers of the vhost-user specification.
const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;
const RESET_DEVICE: u32 = 34;

const ALL_FEATURES: u64 = 1 << 30 | F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC;
/// MQ, REPLY_ACK, RESET_DEVICE.
const PROTOCOL: u64 = 1 | 1 << 3 | 1 << 13;

/// One request as the server got it.
struct Asked {
    request: u32,
    body: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// A server that agrees to everything and says that each ring was served up to `base`.
fn serve(socket: UnixStream, features: u64, base: u32) -> Receiver<Asked> {
    serve_after(socket, features, base, |_| ())
}

/// The same, where `delay` runs before each request is answered.
fn serve_after(
    mut socket: UnixStream,
    features: u64,
    base: u32,
    delay: impl Fn(u32) + Send + 'static,
) -> Receiver<Asked> {
    let (log, asked) = channel();
    std::thread::spawn(move || {
        while let Some((flags, message)) = receive(&mut socket) {
            delay(message.request);
            let answer = match message.request {
                GET_FEATURES => Some(features.to_le_bytes()),
                GET_PROTOCOL_FEATURES => Some(PROTOCOL.to_le_bytes()),
                GET_VRING_BASE => {
                    let ring = u64::from(message.body[0]);
                    Some((ring | u64::from(base) << 32).to_le_bytes())
                }
                _ if flags & 8 != 0 => Some([0; 8]),
                _ => None,
            };
            if let Some(body) = answer {
                let header = [message.request, 1 | 4, 8].map(u32::to_le_bytes).concat();
                if socket.write_all(&[&header[..], &body].concat()).is_err() {
                    return;
                }
            }
            if log.send(message).is_err() {
                return;
            }
        }
    });
    asked
}

fn receive(socket: &mut UnixStream) -> Option<(u32, Asked)> {
    let mut header = [0; 12];
    let mut space = nix::cmsg_space!([RawFd; 8]);
    let mut fds = Vec::new();
    {
        let mut iov = [IoSliceMut::new(&mut header)];
        let flags = MsgFlags::MSG_WAITALL;
        let got = recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), flags).ok()?;
        for part in got.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(raw) = part {
                // SAFETY: the kernel has just made these descriptors for this process.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        if got.bytes < 12 {
            return None;
        }
    }
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
    let mut body = vec![0; word(8) as usize];
    socket.read_exact(&mut body).ok()?;
    Some((word(4), Asked { request: word(0), body, fds }))
}

/// A device in a loop, and a server on its other side.
struct Rig {
    device: SharedDir,
    irq: Arc<IrqLine>,
    memory: GuestMemoryMmap,
    queues: [TestQueue; 2],
    events: EventReceiver,
    io: IoHandle,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Rig {
    /// The device and the server's end of its socket.
    fn new() -> (Self, UnixStream) {
        let file = nix::sys::memfd::memfd_create(c"ram", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
        let file = File::from(file.unwrap());
        file.set_len(MEMORY).unwrap();
        let range = (GuestAddress(0), MEMORY as usize, Some(FileOffset::new(file, 0)));
        Self::with_memory(GuestMemoryMmap::from_ranges_with_files([range]).unwrap())
    }

    fn with_memory(memory: GuestMemoryMmap) -> (Self, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (sender, events) = events::channel().unwrap();
        let io_loop = IoLoop::new("test", sender).unwrap();
        let io = io_loop.handle();
        let rig = Self {
            device: SharedDir::new("shared", ours.into()).unwrap(),
            irq: Arc::new(IrqLine::new(registers()).unwrap()),
            queues: [0x10_0000, 0x20_0000].map(|base| TestQueue::new(&memory, base, 64)),
            memory,
            events,
            io,
            thread: Some(io_loop.spawn(Box::new(|| Ok(()))).unwrap()),
        };
        (rig, theirs)
    }

    fn activate(&mut self, queues: Vec<Option<ActiveQueue>>) -> WorkerId {
        let worker = self.device.activate(Activation {
            memory: self.memory.clone(),
            queues,
            interrupt: self.irq.clone(),
            features: F_VERSION_1 | F_EVENT_IDX,
        });
        self.io.add(worker.unwrap(), self.irq.clone())
    }

    fn start(&mut self) -> WorkerId {
        let queues = self.queues.iter().map(|q| Some(q.active())).collect();
        self.activate(queues)
    }

    fn fault(&self) -> String {
        let error = wait_for(|| match self.events.next() {
            Some(DeviceEvent::Fault(error)) => Some(error),
            _ => None,
        });
        assert!(self.irq.needs_reset());
        error.to_string()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.io.exit();
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

fn next(asked: &Receiver<Asked>) -> Asked {
    asked.recv_timeout(Duration::from_secs(60)).expect("a request")
}

fn expect(asked: &Receiver<Asked>, requests: &[u32]) -> Vec<Asked> {
    requests
        .iter()
        .map(|wanted| {
            let got = next(asked);
            assert_eq!(got.request, *wanted);
            got
        })
        .collect()
}

const GREETING: [u32; 4] = [SET_OWNER, GET_FEATURES, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES];
const RING: [u32; 6] = [
    SET_VRING_NUM,
    SET_VRING_ADDR,
    SET_VRING_BASE,
    SET_VRING_CALL,
    SET_VRING_KICK,
    SET_VRING_ENABLE,
];

fn u32_of(body: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(body[at..at + 4].try_into().unwrap())
}

#[test]
fn the_server_gets_memory_rings_and_both_notifications() {
    let (mut rig, socket) = Rig::new();
    let asked = serve(socket, ALL_FEATURES, 0);
    rig.start();
    expect(&asked, &GREETING);
    let set_up = expect(&asked, &[SET_FEATURES, SET_MEM_TABLE]);
    assert_eq!(set_up[0].body, (F_VERSION_1 | F_EVENT_IDX | 1 << 30).to_le_bytes());
    assert_eq!(u32_of(&set_up[1].body, 0), 1, "one region");
    assert_eq!(set_up[1].fds.len(), 1);
    for index in 0..2 {
        let ring = expect(&asked, &RING);
        assert_eq!((u32_of(&ring[0].body, 0), u32_of(&ring[0].body, 4)), (index, 64));

        // The server raises the interrupt without us, and the guest notifies it without us.
        let call = File::from(ring[3].fds[0].try_clone().unwrap());
        (&call).write_all(&1u64.to_ne_bytes()).unwrap();
        assert_eq!(rig.irq.line().read().unwrap(), 1);
        let kick: OwnedFd = ring[4].fds[0].try_clone().unwrap();
        // SAFETY: the descriptor is an eventfd, and owned.
        let kick = unsafe { EventFd::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(kick)) };
        // Requests from before the handshake are to be looked at.
        assert!(wait_for(|| kick.read().ok()) > 0);
        rig.queues[index as usize].set_available_index(0);
        assert_eq!(kick.read().unwrap(), 1);
    }
    assert!(!rig.irq.needs_reset());
}

#[test]
fn rings_come_back_for_a_pause_and_go_on_where_they_were() {
    let (mut rig, socket) = Rig::new();
    let asked = serve(socket, ALL_FEATURES, 7);
    let worker = rig.start();
    expect(&asked, &GREETING);
    expect(&asked, &[SET_FEATURES, SET_MEM_TABLE]);
    expect(&asked, &[RING, RING].concat());
    let queues = rig.io.remove(&worker, Duration::from_secs(10)).unwrap();
    expect(&asked, &[GET_VRING_BASE, GET_VRING_BASE]);
    assert!(queues.iter().all(|q| q.as_ref().unwrap().queue.next_avail() == 7));

    rig.activate(queues);
    expect(&asked, &[SET_FEATURES, SET_MEM_TABLE]);
    let ring = expect(&asked, &RING);
    assert_eq!(u32_of(&ring[2].body, 4), 7);
}

#[test]
fn a_server_that_is_too_slow_to_give_the_rings_back_gets_them_again() {
    let (mut rig, socket) = Rig::new();
    let (finish, busy) = channel::<()>();
    let asked = serve_after(socket, ALL_FEATURES, 7, move |request| {
        if request == GET_VRING_BASE {
            // It has a request of the guest's to finish first.
            busy.recv().unwrap();
        }
    });
    let worker = rig.start();
    let set_up = [&[SET_FEATURES, SET_MEM_TABLE][..], &RING, &RING].concat();
    expect(&asked, &[&GREETING[..], &set_up].concat());
    assert!(rig.io.remove(&worker, Duration::from_millis(50)).is_err());
    (0..4).for_each(|_| finish.send(()).unwrap());
    expect(&asked, &[GET_VRING_BASE, GET_VRING_BASE]);
    let again = expect(&asked, &set_up);
    assert_eq!(u32_of(&again[4].body, 4), 7, "it goes on where it was");
    assert_eq!(rig.io.remove(&worker, Duration::from_secs(10)).unwrap().len(), 2);
    assert!(!rig.irq.needs_reset());
}

#[test]
fn the_server_forgets_what_it_did_for_a_driver_that_reset_the_device() {
    let (mut rig, socket) = Rig::new();
    let asked = serve(socket, ALL_FEATURES, 0);
    let worker = rig.start();
    expect(&asked, &[&GREETING[..], &[SET_FEATURES, SET_MEM_TABLE], &RING, &RING].concat());
    rig.io.remove(&worker, Duration::from_secs(10)).unwrap();
    rig.device.reset();
    rig.start();
    expect(&asked, &[GET_VRING_BASE, GET_VRING_BASE, RESET_DEVICE, SET_FEATURES, SET_MEM_TABLE]);
}

#[test]
fn the_guest_does_not_wait_for_the_server() {
    let (mut rig, socket) = Rig::new();
    rig.start();
    assert_eq!(rig.device.features(), F_EVENT_IDX | F_INDIRECT_DESC);
    assert!(!rig.irq.needs_reset());
    let asked = serve(socket, ALL_FEATURES, 0);
    expect(&asked, &GREETING);
}

#[test]
fn a_server_that_dies_is_reported() {
    let (mut rig, socket) = Rig::new();
    let theirs = socket.try_clone().unwrap();
    let asked = serve(socket, ALL_FEATURES, 0);
    let worker = rig.start();
    expect(&asked, &[&GREETING[..], &[SET_FEATURES, SET_MEM_TABLE], &RING, &RING].concat());
    assert!(rig.events.next().is_none());
    theirs.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(rig.fault().contains("the file server is gone"));
    // The driver may reset the device, but it won't come back.
    assert_eq!(rig.io.remove(&worker, Duration::from_secs(10)).unwrap().len(), 2);
    rig.device.reset();
    rig.irq.clear();
    rig.start();
    rig.fault();
}

#[test]
fn a_server_that_dies_during_the_handshake_is_reported() {
    let (mut rig, socket) = Rig::new();
    drop(socket);
    rig.start();
    rig.fault();
}

#[test]
fn a_server_without_the_features_the_guest_was_offered_is_refused() {
    for missing in [F_VERSION_1, F_EVENT_IDX, F_INDIRECT_DESC] {
        let (mut rig, socket) = Rig::new();
        let _asked = serve(socket, ALL_FEATURES & !missing, 0);
        rig.start();
        assert!(rig.fault().contains("lacks features"));
    }
}

#[test]
fn memory_that_can_not_be_shared_is_refused() {
    let (mut rig, socket) = Rig::with_memory(testing::memory());
    let _asked = serve(socket, ALL_FEATURES, 0);
    rig.start();
    assert!(rig.fault().contains("map guest memory"));
}

#[test]
fn both_queues_are_needed() {
    let (mut rig, _socket) = Rig::new();
    let queues = vec![Some(rig.queues[0].active()), None];
    let memory = rig.memory.clone();
    let interrupt = rig.irq.clone();
    let result = rig.device.activate(Activation { memory, queues, interrupt, features: 0 });
    assert!(matches!(result, Err(ActivateError::MissingQueue(1))));
}

#[test]
fn the_configuration_names_the_tag() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let device = SharedDir::new("shared", ours.into()).unwrap();
    let mut config = [0xff; 44];
    device.read_config(0, &mut config);
    assert_eq!(&config[..7], b"shared\0");
    assert_eq!(config[36..], [1, 0, 0, 0, 0, 0, 0, 0]);
    assert!(SharedDir::new("", theirs.try_clone().unwrap().into()).is_none());
    assert!(SharedDir::new(&"x".repeat(37), theirs.into()).is_none());
}
