//! Signals to this process, which are meant for the container.

use anyhow::Result;
use std::future::poll_fn;
use std::task::Poll;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that are passed on. SIGWINCH is one of this process's own.
const FORWARDED: [i32; 9] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGCONT,
    libc::SIGWINCH,
];

/// After this many requests to end, the next one can't be ignored.
const PATIENCE: u32 = 3;

/// What is to be done about a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Send it to the container.
    Forward(i32),
    /// Tell the container its terminal's size.
    Resize,
}

/// The signals to come.
pub(crate) struct Signals {
    streams: Vec<(i32, Signal)>,
    insistent: bool,
    requests_to_end: u32,
}

impl Signals {
    /// Begins to listen; from here on they no longer end this process.
    pub(crate) fn listen() -> Result<Self> {
        let listen = |number: i32| Ok((number, signal(SignalKind::from_raw(number))?));
        let streams: Result<_> = FORWARDED.into_iter().map(listen).collect();
        Ok(Self { streams: streams?, insistent: false, requests_to_end: 0 })
    }

    /// For a person at a terminal: the container can't ignore being asked to end for ever.
    pub(crate) fn insistent(self) -> Self {
        Self { insistent: true, ..self }
    }

    /// The next one.
    pub(crate) async fn next(&mut self) -> Action {
        let number = poll_fn(|context| {
            for (number, stream) in &mut self.streams {
                if stream.poll_recv(context).is_ready() {
                    return Poll::Ready(*number);
                }
            }
            Poll::Pending
        });
        let number = number.await;
        self.decide(number)
    }

    fn decide(&mut self, number: i32) -> Action {
        match number {
            libc::SIGWINCH => Action::Resize,
            libc::SIGINT | libc::SIGTERM => {
                self.requests_to_end += 1;
                let ignored = self.insistent && self.requests_to_end > PATIENCE;
                Action::Forward(if ignored { libc::SIGKILL } else { number })
            }
            other => Action::Forward(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_insists_kills() {
        let mut signals = Signals { streams: Vec::new(), insistent: true, requests_to_end: 0 };
        for _ in 0..PATIENCE {
            assert_eq!(signals.decide(libc::SIGINT), Action::Forward(libc::SIGINT));
        }
        assert_eq!(signals.decide(libc::SIGTERM), Action::Forward(libc::SIGKILL));
        assert_eq!(signals.decide(libc::SIGHUP), Action::Forward(libc::SIGHUP));
        assert_eq!(signals.decide(libc::SIGWINCH), Action::Resize);
    }

    #[tokio::test]
    async fn a_signal_arrives() {
        let mut signals = Signals::listen().unwrap();
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGUSR1).unwrap();
        assert_eq!(signals.next().await, Action::Forward(libc::SIGUSR1));
    }
}
