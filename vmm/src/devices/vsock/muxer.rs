//! All streams of a guest: finds the stream of a packet, opens and closes streams, shares the
//! guest's receive queue among them in turn.
//!
//! Everything a guest can make it hold is bounded: the number of streams, the bytes buffered for
//! each (its window), the resets that wait to be sent, and each stream waits for its turn once.

use super::VsockError;
use super::connection::{Connection, Ports, Verdict};
use super::packet::{HOST_CID, Header, Op, SHUTDOWN_RECEIVE, TYPE_STREAM};
use super::rx::RxQueue;
use super::stream::{Stream, Turn};
use crate::events::{DeviceEvent, EventSender};
use crate::virtio::Watcher;
use crate::virtio::chain::Cursor;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use vmm_sys_util::epoll::EventSet;

/// Most streams of a guest at a time.
pub const MAX_STREAMS: usize = 1024;
/// Most of these that the guest itself opened: more than the host ports that anything listens on.
pub const MAX_GUEST_STREAMS: usize = 64;
/// What a guest may send ahead on one stream, bytes, while there are few …
const WIDE_WINDOW: u32 = 512 * 1024;
/// … up to this many. All buffers together stay under 80 MiB, and are used only where the host
/// reads slower than the guest writes.
const WIDE_STREAMS: usize = 32;
/// The same for other streams.
const NARROW_WINDOW: u32 = 64 * 1024;
/// Most resets that wait for a buffer of the guest; further ones are not sent.
const MAX_RESETS: usize = 64;
/// First token of a stream; those below are the worker's own.
pub const FIRST_TOKEN: u32 = 16;
/// First of the ports that host-initiated streams seem to come from.
const FIRST_PORT: u32 = 1 << 30;
/// Most turns before other events are looked at.
const MAX_TURNS: usize = 64;

/// The guest's streams.
pub struct Muxer {
    guest_cid: u64,
    host_ports: Vec<u32>,
    events: EventSender,
    streams: BTreeMap<u32, Stream>,
    tokens: BTreeMap<Ports, u32>,
    /// Streams that have something for the guest.
    ready: VecDeque<u32>,
    resets: VecDeque<Header>,
    next_token: u32,
    next_port: u32,
}

impl Muxer {
    /// No streams yet. Streams that the guest opens to `host_ports` go to `events`.
    pub fn new(guest_cid: u64, host_ports: Vec<u32>, events: EventSender) -> Self {
        Self {
            guest_cid,
            host_ports,
            events,
            streams: BTreeMap::new(),
            tokens: BTreeMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            next_token: FIRST_TOKEN,
            next_port: FIRST_PORT,
        }
    }

    /// The guest's context id.
    pub fn guest_cid(&self) -> u64 {
        self.guest_cid
    }

    /// How many streams there are.
    pub fn count(&self) -> usize {
        self.streams.len()
    }

    /// How many packets and streams wait for a buffer of the guest.
    pub fn debt(&self) -> usize {
        self.ready.len() + self.resets.len()
    }

    /// Closes all streams, without a word to the guest: its driver has been reset.
    pub fn clear(&mut self) {
        self.streams.clear();
        self.tokens.clear();
        self.ready.clear();
        self.resets.clear();
    }

    /// Watches all sockets, in a new loop after a pause.
    ///
    /// # Errors
    /// When one can't be watched.
    pub fn attach(&mut self, watcher: &mut Watcher<'_>) -> Result<(), VsockError> {
        for (token, stream) in &self.streams {
            watcher.add(stream, Stream::events(), *token).map_err(VsockError::Watch)?;
        }
        Ok(())
    }

    /// Joins `socket` to the guest's port; closes it when there are too many streams.
    pub fn connect(&mut self, port: u32, socket: OwnedFd, watcher: &mut Watcher<'_>) {
        let host = self.free_port(port);
        let connection =
            Connection::to_guest(self.guest_cid, Ports { host, guest: port }, self.window());
        self.insert(connection, socket, watcher);
    }

    fn window(&self) -> u32 {
        if self.streams.len() < WIDE_STREAMS { WIDE_WINDOW } else { NARROW_WINDOW }
    }

    fn free_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            // The last number means "any port".
            self.next_port = if host >= u32::MAX - 1 { FIRST_PORT } else { host + 1 };
            if !self.tokens.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
    }

    /// Adds a stream; `false` when there are too many, or its socket can't be watched.
    fn insert(
        &mut self,
        connection: Connection,
        socket: OwnedFd,
        watcher: &mut Watcher<'_>,
    ) -> bool {
        let mut token = self.next_token;
        while self.streams.contains_key(&token) {
            token = token.checked_add(1).unwrap_or(FIRST_TOKEN);
        }
        let ports = connection.ports();
        let stream = Stream::new(connection, socket);
        let full = self.streams.len() >= MAX_STREAMS;
        if full || watcher.add(&stream, Stream::events(), token).is_err() {
            return false;
        }
        self.next_token = token.checked_add(1).unwrap_or(FIRST_TOKEN);
        self.streams.insert(token, stream);
        self.tokens.insert(ports, token);
        self.make_ready(token);
        true
    }

    /// Takes in a packet of the guest; `data` is what follows its header.
    ///
    /// # Errors
    /// When guest memory can't be read.
    pub fn receive(
        &mut self,
        packet: &Header,
        data: Cursor<'_>,
        watcher: &mut Watcher<'_>,
    ) -> Result<(), VsockError> {
        if packet.src_cid != self.guest_cid || packet.dst_cid != HOST_CID {
            // Forged, or for a neighbour that doesn't exist: no answer (§5.10.6.4.1 asks for none).
            return Ok(());
        }
        let ports = Ports { host: packet.dst_port, guest: packet.src_port };
        let token = self.tokens.get(&ports).copied();
        match (token, packet.op) {
            _ if packet.kind != TYPE_STREAM => self.refuse(packet),
            (None, Ok(Op::Request)) => self.accept(packet, watcher),
            (None, _) => self.refuse(packet),
            (Some(token), _) => return self.receive_for(token, packet, data, watcher),
        }
        Ok(())
    }

    fn receive_for(
        &mut self,
        token: u32,
        packet: &Header,
        data: Cursor<'_>,
        watcher: &mut Watcher<'_>,
    ) -> Result<(), VsockError> {
        let Some(stream) = self.streams.get_mut(&token) else { return Ok(()) };
        let mut verdict = stream.connection.receive(packet);
        if verdict == Verdict::Deliver && packet.len as usize > data.remaining() {
            verdict = Verdict::Violation;
        }
        match verdict {
            Verdict::Continue => {
                if packet.op == Ok(Op::Shutdown) && packet.flags & SHUTDOWN_RECEIVE != 0 {
                    stream.stop_reading();
                }
            }
            Verdict::Deliver => stream.deliver(data, packet.len as usize)?,
            Verdict::GuestWroteLast => stream.flush(),
            Verdict::Over { answer } => {
                self.end(token, answer, watcher);
                return Ok(());
            }
            Verdict::Violation => {
                let reset = stream.connection.reset();
                self.queue_reset(reset);
                self.remove(token, watcher);
                return Ok(());
            }
        }
        self.make_ready(token);
        Ok(())
    }

    /// The guest asks for a connection to a host port.
    fn accept(&mut self, request: &Header, watcher: &mut Watcher<'_>) {
        let opened = self.streams.values().filter(|s| s.connection.ports().host < FIRST_PORT);
        let allowed = self.host_ports.contains(&request.dst_port)
            && opened.count() < MAX_GUEST_STREAMS
            && self.streams.len() < MAX_STREAMS;
        if !allowed || !self.open(request, watcher) {
            self.refuse(request);
        }
    }

    /// Opens a stream for the guest: one end is ours, the other goes to who listens.
    fn open(&mut self, request: &Header, watcher: &mut Watcher<'_>) -> bool {
        let family = (AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC);
        let Ok((ours, theirs)) = socketpair(family.0, family.1, None, family.2) else {
            return false;
        };
        let accepted = DeviceEvent::Accepted { port: request.dst_port, stream: theirs };
        let connection = Connection::from_guest(self.guest_cid, request, NARROW_WINDOW);
        self.events.send(accepted).is_ok() && self.insert(connection, ours, watcher)
    }

    /// Answers a packet that belongs to no connection.
    fn refuse(&mut self, packet: &Header) {
        if packet.op != Ok(Op::Reset) {
            self.queue_reset(Header {
                src_cid: packet.dst_cid,
                dst_cid: packet.src_cid,
                src_port: packet.dst_port,
                dst_port: packet.src_port,
                len: 0,
                kind: packet.kind,
                op: Ok(Op::Reset),
                flags: 0,
                buf_alloc: 0,
                fwd_cnt: 0,
            });
        }
    }

    fn queue_reset(&mut self, reset: Header) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(reset);
        }
    }

    /// Ends a connection for the guest; what it sent still goes to the host.
    fn end(&mut self, token: u32, answer: bool, watcher: &mut Watcher<'_>) {
        let Some(stream) = self.streams.get_mut(&token) else { return };
        if answer {
            let reset = stream.connection.reset();
            self.queue_reset(reset);
        }
        let Some(stream) = self.streams.get_mut(&token) else { return };
        stream.flush();
        if stream.is_flushed() {
            self.remove(token, watcher);
            return;
        }
        stream.orphan = true;
        stream.stop_reading();
        let ports = stream.connection.ports();
        self.tokens.remove(&ports);
        self.unready(token);
    }

    fn remove(&mut self, token: u32, watcher: &mut Watcher<'_>) {
        let Some(stream) = self.streams.remove(&token) else { return };
        watcher.remove(&stream);
        if !stream.orphan {
            self.tokens.remove(&stream.connection.ports());
        }
        self.unready(token);
    }

    fn unready(&mut self, token: u32) {
        self.ready.retain(|waiting| *waiting != token);
    }

    /// A socket is ready.
    pub fn socket_ready(&mut self, token: u32, events: EventSet, watcher: &mut Watcher<'_>) {
        // The event may be left over from a stream that has just been removed.
        let Some(stream) = self.streams.get_mut(&token) else { return };
        stream.socket_ready(events);
        if stream.orphan && stream.is_flushed() {
            self.remove(token, watcher);
        } else {
            self.make_ready(token);
        }
    }

    fn make_ready(&mut self, token: u32) {
        if let Some(stream) = self.streams.get_mut(&token)
            && !stream.queued
            && stream.has_work()
        {
            stream.queued = true;
            self.ready.push_back(token);
        }
    }

    /// Sends the guest what is due, stream by stream. `true` when there is more, and the driver has
    /// buffers for it: the caller looks after other events first.
    ///
    /// # Errors
    /// When the guest's receive queue is not usable.
    pub fn serve(&mut self, rx: &mut RxQueue) -> Result<bool, VsockError> {
        while let Some(reset) = self.resets.front() {
            if !rx.put(reset)? {
                return Ok(false);
            }
            self.resets.pop_front();
        }
        for _ in 0..MAX_TURNS {
            let Some(token) = self.ready.pop_front() else { return Ok(false) };
            let Some(stream) = self.streams.get_mut(&token) else { continue };
            stream.queued = false;
            // What it had to do may have been done by another event.
            if !stream.has_work() {
                continue;
            }
            if stream.turn(rx)? == Turn::Starved {
                stream.queued = true;
                self.ready.push_front(token);
                return Ok(false);
            }
            rx.interrupt()?;
            self.make_ready(token);
        }
        Ok(!self.ready.is_empty())
    }
}
