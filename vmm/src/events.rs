//! What devices have to tell the rest of the VMM, as values on one bounded queue.

use crate::causes::chain;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EFD_SEMAPHORE, EventFd};

/// Most events that wait; the sender is told when one does not fit.
const CAPACITY: usize = 256;

/// One thing that happened in a device.
#[derive(Debug)]
pub enum DeviceEvent {
    /// The guest connected to an allowed host port of vsock; here is the host's end of the stream.
    Accepted {
        /// The host port.
        port: u32,
        /// A connected stream socket, blocking.
        stream: OwnedFd,
    },
    /// A device stopped until its driver resets it. Once per activation.
    Fault(WorkerError),
}

/// A worker failed for a reason that lies with the driver or the backend; the device needs a reset.
#[derive(Debug, thiserror::Error)]
#[error("{device}: {reason}")]
pub struct WorkerError {
    /// Which device.
    pub device: &'static str,
    /// What happened, for the log.
    pub reason: String,
}

impl WorkerError {
    /// An error with its causes written out.
    pub fn new(device: &'static str, error: &dyn std::error::Error) -> Self {
        Self { device, reason: chain(error) }
    }
}

/// The sending side; one per I/O loop or device.
#[derive(Clone)]
pub struct EventSender {
    queue: SyncSender<DeviceEvent>,
    wake: Arc<EventFd>,
}

/// The receiving side, for a poll loop.
pub struct EventReceiver {
    queue: Receiver<DeviceEvent>,
    wake: Arc<EventFd>,
}

/// Makes the queue.
///
/// # Errors
/// When no more descriptors can be opened.
pub fn channel() -> io::Result<(EventSender, EventReceiver)> {
    // It counts what waits, so that it stays readable as long as something does.
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_SEMAPHORE)?);
    let (sender, receiver) = sync_channel(CAPACITY);
    Ok((EventSender { queue: sender, wake: wake.clone() }, EventReceiver { queue: receiver, wake }))
}

impl EventSender {
    /// Queues an event; gives it back when the queue is full or nobody listens. Never blocks.
    ///
    /// # Errors
    /// The event itself.
    pub fn send(&self, event: DeviceEvent) -> Result<(), DeviceEvent> {
        self.queue.try_send(event).map_err(|e| match e {
            TrySendError::Full(event) | TrySendError::Disconnected(event) => event,
        })?;
        // Fails only when the counter is full, and then the receiver is woken already.
        let _ = self.wake.write(1);
        Ok(())
    }
}

impl EventReceiver {
    /// The next event, or `None`.
    pub fn next(&self) -> Option<DeviceEvent> {
        let _ = self.wake.read();
        self.queue.try_recv().ok()
    }
}

impl AsFd for EventReceiver {
    /// Readable when events wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the eventfd lives as long as `self`, which the returned borrow is tied to.
        unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&*self.wake)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_readable(receiver: &EventReceiver) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        poll(&mut [PollFd::new(receiver.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).unwrap()
            > 0
    }

    #[test]
    fn a_receiver_that_takes_some_is_told_of_the_rest() {
        let (sender, receiver) = channel().unwrap();
        assert!(!is_readable(&receiver));
        for port in 0..3 {
            let stream = std::fs::File::open("/dev/null").unwrap().into();
            sender.send(DeviceEvent::Accepted { port, stream }).unwrap();
        }
        for _ in 0..3 {
            assert!(is_readable(&receiver));
            receiver.next().unwrap();
        }
        assert!(!is_readable(&receiver) && receiver.next().is_none());
    }

    #[test]
    fn a_full_queue_gives_the_event_back() {
        let (sender, receiver) = channel().unwrap();
        let event = |port| DeviceEvent::Accepted {
            port,
            stream: std::fs::File::open("/dev/null").unwrap().into(),
        };
        for port in 0..CAPACITY as u32 {
            sender.send(event(port)).unwrap();
        }
        assert!(matches!(sender.send(event(7)), Err(DeviceEvent::Accepted { port: 7, .. })));
        for port in 0..CAPACITY as u32 {
            assert!(
                matches!(receiver.next(), Some(DeviceEvent::Accepted { port: p, .. }) if p == port)
            );
        }
        assert!(receiver.next().is_none());
    }
}
