//! Watching a machine until it has ended, and saying why it did.

use super::child::Child;
use super::{Control, Message, Outlets};
use nix::sys::signal::Signal;
use protocol::control::{Command, Event, ExitReason};
use protocol::packet::PacketError;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How long a helper may take to end by itself once the machine has.
const GRACE: Duration = Duration::from_secs(2);

/// The two processes of a machine.
#[derive(Debug)]
pub struct Helpers {
    /// The VMM.
    pub vmm: Child,
    /// The file server.
    pub file_server: Child,
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// For people.
    pub reason: String,
    /// Whether somebody asked for it.
    pub expected: bool,
}

/// What was seen first.
#[derive(Debug)]
enum Cause {
    /// [`super::Vm::stop`].
    Asked(String),
    /// The VMM said that it can't start: error and remedy.
    Failed(String, String),
    /// The VMM said that the machine ended.
    Said(ExitReason),
    /// The control socket ended or broke, or the VMM ended.
    Silent(Option<PacketError>),
    /// The file server ended.
    FileServer(ExitStatus),
}

/// What the VMM and the file server exited with; none of one that had to be killed.
type Statuses = Option<[Option<ExitStatus>; 2]>;

/// Forwards what the machine and its helpers say, and returns when they are gone.
pub(super) async fn run(
    control: &Control,
    mut helpers: Option<Helpers>,
    mut stop: mpsc::Receiver<String>,
    outlets: Outlets,
) -> Ended {
    let cause = watch(control, helpers.as_mut(), &mut stop, &outlets).await;
    if let Cause::Asked(_) | Cause::FileServer(_) = cause {
        // The socket may be gone already; the processes are killed below whatever it says.
        let _ = timeout(GRACE, control.send(&Command::Stop, &[])).await;
    }
    let statuses = match helpers {
        Some(helpers) => Some(end(helpers).await),
        None => None,
    };
    let cause = match cause {
        Cause::Silent(error) => last_words(control).await.unwrap_or(Cause::Silent(error)),
        cause => cause,
    };
    describe(cause, statuses)
}

async fn watch(
    control: &Control,
    mut helpers: Option<&mut Helpers>,
    stop: &mut mpsc::Receiver<String>,
    outlets: &Outlets,
) -> Cause {
    let mut stoppable = true;
    loop {
        let (vmm, file_server) = match &mut helpers {
            Some(h) => (Some(&mut h.vmm), Some(&mut h.file_server)),
            None => (None, None),
        };
        tokio::select! {
            biased;
            message = control.receive() => match message {
                Ok((event, fds)) => {
                    if let Some(cause) = heard(event, fds, outlets) { return cause }
                    // A VMM that never stops talking is stopped all the same.
                    if let Ok(why) = stop.try_recv() { return Cause::Asked(why) }
                }
                Err(PacketError::Closed) => return Cause::Silent(None),
                Err(error) => return Cause::Silent(Some(error)),
            },
            _ = exit_of(vmm) => return Cause::Silent(None),
            status = exit_of(file_server) => return Cause::FileServer(status),
            why = stop.recv(), if stoppable => match why {
                Some(why) => return Cause::Asked(why),
                None => stoppable = false,
            },
        }
    }
}

/// The end of a child; never, if there is none or it can't be waited for.
async fn exit_of(child: Option<&mut Child>) -> ExitStatus {
    if let Some(child) = child
        && let Ok(status) = child.wait().await
    {
        return status;
    }
    std::future::pending().await
}

fn heard(event: Event, fds: Vec<OwnedFd>, outlets: &Outlets) -> Option<Cause> {
    let messages = &outlets.messages;
    match event {
        Event::Failed { error, remedy } => return Some(Cause::Failed(error, remedy)),
        Event::Exited { reason } => return Some(Cause::Said(reason)),
        Event::Running(times) => drop(messages.try_send(Message::Running(times))),
        Event::Accepted { port } => match fds.into_iter().next() {
            Some(stream) => drop(messages.try_send(Message::Accepted { port, stream })),
            None => tracing::warn!("a connection of the guest's is lost: too many open files"),
        },
        Event::Done { outcome } => drop(outlets.outcomes.try_send(outcome)),
        Event::Counters(counters) => tracing::debug!("counters: {counters:?}"),
    }
    None
}

/// What the VMM still said before its end was seen.
async fn last_words(control: &Control) -> Option<Cause> {
    while let Ok(Ok((event, _))) = timeout(GRACE, control.receive()).await {
        match event {
            Event::Failed { error, remedy } => return Some(Cause::Failed(error, remedy)),
            Event::Exited { reason } => return Some(Cause::Said(reason)),
            _ => {}
        }
    }
    None
}

/// Both exits. Who does not end within [`GRACE`] is killed, and then has no status of its own making.
async fn end(mut helpers: Helpers) -> [Option<ExitStatus>; 2] {
    let vmm = end_one(&mut helpers.vmm).await;
    let file_server = end_one(&mut helpers.file_server).await;
    [vmm, file_server]
}

async fn end_one(child: &mut Child) -> Option<ExitStatus> {
    if let Ok(Ok(status)) = timeout(GRACE, child.wait()).await {
        return Some(status);
    }
    if let Err(error) = child.kill().await {
        tracing::warn!("kill a helper: {error}");
    }
    None
}

fn describe(cause: Cause, statuses: Statuses) -> Ended {
    let [vmm, file_server] = statuses.unwrap_or_default();
    let unexpected = |reason: String| Ended { reason, expected: false };
    // A signal that was not ours explains more than what the other side noticed of it.
    if let Some(signal) = vmm.and_then(|s| s.signal()) {
        return unexpected(signalled("VMM", signal));
    }
    if let Some(signal) = file_server.and_then(|s| s.signal()) {
        return unexpected(signalled("file server", signal));
    }
    match cause {
        Cause::Asked(reason) => Ended { reason, expected: true },
        Cause::Failed(error, remedy) if remedy.is_empty() => unexpected(error),
        Cause::Failed(error, remedy) => unexpected(format!("{error} ({remedy})")),
        Cause::Said(reason) => {
            Ended { reason: reason.to_string(), expected: matches!(reason, ExitReason::Stopped) }
        }
        Cause::FileServer(status) => unexpected(format!("the file server ended: {status}")),
        Cause::Silent(Some(error)) => {
            unexpected(format!("the VMM broke the control protocol: {error}"))
        }
        Cause::Silent(None) => unexpected(match vmm {
            Some(status) => format!("the VMM ended without a word: {status}"),
            None => "the VMM closed its control socket".into(),
        }),
    }
}

fn signalled(who: &str, signal: i32) -> String {
    match signal {
        libc::SIGSYS => format!("the {who} was killed by seccomp: forbidden system call"),
        signal => match Signal::try_from(signal) {
            Ok(signal) => format!("the {who} was killed by {signal}"),
            Err(_) => format!("the {who} was killed by signal {signal}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::unnecessary_wraps)] // The type of what is tested.
    fn statuses(vmm: i32, file_server: i32) -> Statuses {
        Some([vmm, file_server].map(|raw| Some(ExitStatus::from_raw(raw))))
    }

    #[test]
    fn a_forbidden_system_call_is_called_by_its_name() {
        let end = describe(Cause::Silent(None), statuses(libc::SIGSYS, 0));
        assert_eq!(end.reason, "the VMM was killed by seccomp: forbidden system call");
        assert!(!end.expected);
    }

    #[test]
    fn a_dead_file_server_is_the_reason_although_the_vmm_noticed_first() {
        let noticed = Cause::Said(ExitReason::Internal("vhost-user".into()));
        let end = describe(noticed, statuses(1 << 8, libc::SIGKILL));
        assert_eq!(end.reason, "the file server was killed by SIGKILL");
    }

    #[test]
    fn a_failed_start_comes_with_its_remedy() {
        let end = describe(Cause::Failed("no /dev/kvm".into(), "modprobe kvm".into()), None);
        assert_eq!(end.reason, "no /dev/kvm (modprobe kvm)");
    }
}
