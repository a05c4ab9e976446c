//! The loop: messages of the VMM, notifications of the guest.

use crate::device::{Device, QUEUES};
use crate::file_system::Files;
use crate::queue::Progress;
use crate::slow::Slow;
use anyhow::{Context, Result, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use vhost::vhost_user::{BackendReqHandler, Error};

/// What there is to do.
#[derive(Debug, Default)]
struct Work {
    message: bool,
    /// Requests that took long are done.
    done: bool,
    notified: [bool; QUEUES],
}

/// Serves until the VMM closes its end of the socket.
///
/// # Errors
/// The VMM breaks the protocol such that its next message can't be told from this one, or hands over what is no
/// notifier.
pub fn serve(socket: UnixStream, files: Files, slow: Option<Slow>) -> Result<()> {
    let poll_socket = socket.try_clone().context("cannot duplicate the vhost-user socket")?;
    // The library wants a lock; with one thread nobody ever waits for it.
    let device = Arc::new(Mutex::new(Device::new(files, slow)?));
    let mut messages = BackendReqHandler::from_stream(socket, Arc::clone(&device));
    let mut pending = [false; QUEUES];
    loop {
        let work = wait(&poll_socket, &*lock(&device)?, pending.contains(&true))?;
        if work.message {
            match messages.handle_request() {
                Ok(()) => {}
                Err(Error::Disconnected | Error::SocketBroken(_) | Error::PartialMessage) => {
                    return Ok(());
                }
                // The VMM has been answered, or will notice that it is not.
                Err(e) if survivable(&e) => log::warn!("vhost-user: {e}"),
                Err(e) => return Err(e).context("vhost-user"),
            }
        }
        if work.done {
            lock(&device)?.finish();
        }
        for (index, pending) in pending.iter_mut().enumerate() {
            let notified = work.notified[index];
            if notified || *pending {
                *pending = lock(&device)?.serve(index, notified)? == Progress::More;
            }
        }
    }
}

/// Whether the next message can be told from the rest of this one.
fn survivable(error: &Error) -> bool {
    matches!(error, Error::InvalidParam | Error::InvalidOperation(_) | Error::ReqHandlerError(_))
}

fn lock(device: &Mutex<Device>) -> Result<MutexGuard<'_, Device>> {
    device.lock().map_err(|_| anyhow!("the device is in an undefined state"))
}

fn wait(socket: &UnixStream, device: &Device, busy: bool) -> Result<Work> {
    let mut polled = Vec::with_capacity(2 + QUEUES);
    let mut which = Vec::with_capacity(QUEUES);
    polled.push(PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN));
    for (index, queue) in device.queues().iter().enumerate() {
        if let Some(notifier) = queue.notifier() {
            polled.push(PollFd::from_borrowed_fd(notifier, PollFlags::IN));
            which.push(index);
        }
    }
    if let Some(done) = device.slow_notifier() {
        polled.push(PollFd::from_borrowed_fd(done, PollFlags::IN));
    }
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut polled, busy.then_some(&at_once)) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok(Work::default()),
        Err(e) => return Err(e).context("poll"),
    }
    let mut work = Work { message: !polled[0].revents().is_empty(), ..Work::default() };
    let queues = which.len();
    for (index, entry) in which.into_iter().zip(&polled[1..]) {
        work.notified[index] = entry.revents().contains(PollFlags::IN);
    }
    // The last one, if it is no queue's.
    work.done = polled.get(1 + queues).is_some_and(|entry| !entry.revents().is_empty());
    Ok(work)
}
