//! The VMM and the file server of one sandbox: started together, watched together, ended together.

mod child;
mod control;
mod spawn;
mod supervise;

use crate::error::{Error, Result};
use crate::host::disk::OpenDisk;
use crate::host::paths::SandboxPaths;
use crate::host::persist::ProcessId;
use crate::oci::plan;
use crate::settings::Settings;
pub use child::Child;
pub use control::Control;
use protocol::control::{BootTimes, Command};
use protocol::machine::Size;
pub use spawn::stand_in;
use std::ffi::OsStr;
use std::fs::File;
use std::iter;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Duration;
pub use supervise::{Ended, Helpers};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::{Mutex, mpsc, watch};

/// How long a machine may take to change: more than its vCPUs and devices have to stop.
const PATIENCE: Duration = Duration::from_secs(20);

/// And more for each GiB of memory that it gives back: the host takes a third of a second for it at most, unless it is
/// under load.
const PATIENCE_A_GIB: Duration = Duration::from_secs(1);

/// Most messages that wait to be heard; the guest can have the VMM send them. More are dropped, with their streams.
const WAITING: usize = 64;

/// What a machine says while it lives.
#[derive(Debug)]
pub enum Message {
    /// The vCPUs run.
    Running(BootTimes),
    /// The guest connected to a host port.
    Accepted {
        /// The port.
        port: u32,
        /// The stream.
        stream: OwnedFd,
    },
    /// A line of a helper's standard error.
    Stderr {
        /// Which helper.
        who: &'static str,
        /// Its standard error.
        stream: pipe::Receiver,
    },
}

/// Where it goes what the machine and its helpers say.
struct Outlets {
    messages: mpsc::Sender<Message>,
    outcomes: mpsc::Sender<Outcome>,
}

/// The directories of the cgroups that the two processes are born in.
#[derive(Debug, Clone, Copy)]
pub struct Cgroups<'a> {
    /// The VMM's.
    pub vmm: BorrowedFd<'a>,
    /// The file server's.
    pub file_server: BorrowedFd<'a>,
}

/// A running machine. Dropping the last clone does not end it: [`Vm::stop`] does.
#[derive(Debug, Clone)]
pub struct Vm {
    control: Arc<Control>,
    stop: mpsc::Sender<String>,
    ended: watch::Receiver<Option<Ended>>,
    outcomes: Arc<Mutex<mpsc::Receiver<Outcome>>>,
}

/// The VMM's answer to a change of the machine.
type Outcome = Result<u64, String>;

impl Vm {
    /// Starts the VMM as this user, and the file server; and watches them until they have ended.
    ///
    /// Gives the machine, what it will say, and the two processes.
    ///
    /// # Errors
    /// A program can't be started, or the system is out of something. Neither runs then.
    pub fn launch(
        settings: &Settings,
        paths: &SandboxPaths,
        uid: u32,
        cgroups: Option<Cgroups<'_>>,
    ) -> Result<(Self, mpsc::Receiver<Message>, [ProcessId; 2])> {
        let socket =
            || StdUnixStream::pair().map_err(Error::system("make the file server's socket"));
        let ((fs_ours, fs_theirs), (layers_ours, layers_theirs)) = (socket()?, socket()?);
        let (control, control_theirs) = Control::pair()?;
        // The VMM first: its guest needs the file server only when its kernel is up.
        let cgroup = cgroups.map(|cgroups| cgroups.vmm);
        let (vmm, vmm_stderr) = spawn::helper(&settings.vmm, &[], vec![control_theirs], cgroup)?;
        let boot = plan::machine(settings, uid, paths.console_log());
        let boot = Command::Boot(Box::new(boot));
        if let Err(error) = control.send_first(&boot, &[fs_ours.as_fd(), layers_ours.as_fd()]) {
            // Why the VMM doesn't listen shows in its end.
            tracing::warn!("boot message: {error}");
        }
        let shared = paths.shared();
        let words = ["--layers-fd=4", "--shared-dir", "--shared-roots"].map(OsStr::new);
        let arguments = [words[0], words[1], shared.as_os_str(), words[2]];
        let (file_server, fs_stderr) = spawn::helper(
            &settings.file_server,
            &arguments[..3 + usize::from(settings.shared_roots)],
            vec![fs_theirs.into(), layers_theirs.into()],
            cgroups.map(|cgroups| cgroups.file_server),
        )?;
        let ids = [ProcessId::of(vmm.pid())?, ProcessId::of(file_server.pid())?];
        let (vm, messages) = Self::supervised(control, Some(Helpers { vmm, file_server }), |say| {
            for (who, stream) in [("vmm", vmm_stderr), ("fs", fs_stderr)] {
                let _ = say.try_send(Message::Stderr { who, stream });
            }
        });
        Ok((vm, messages, ids))
    }

    /// A machine that a test plays behind its control socket.
    #[cfg(test)]
    pub fn played(control: Control) -> (Self, mpsc::Receiver<Message>) {
        Self::supervised(control, None, |_| ())
    }

    /// `first` says what there is to say before the machine does.
    fn supervised(
        control: Control,
        helpers: Option<Helpers>,
        first: impl FnOnce(&mpsc::Sender<Message>),
    ) -> (Self, mpsc::Receiver<Message>) {
        let control = Arc::new(control);
        let (stop, stop_requests) = mpsc::channel(1);
        let (messages, messages_out) = mpsc::channel(WAITING);
        first(&messages);
        let (ended_in, ended) = watch::channel(None);
        let (outcomes_in, outcomes) = mpsc::channel(1);
        let watched = control.clone();
        tokio::spawn(async move {
            let outlets = Outlets { messages, outcomes: outcomes_in };
            let end = supervise::run(&watched, helpers, stop_requests, outlets).await;
            tracing::info!("machine ended: {}", end.reason);
            ended_in.send_replace(Some(end));
        });
        let outcomes = Arc::new(Mutex::new(outcomes));
        (Self { control, stop, ended, outcomes }, messages_out)
    }

    /// A stream to a port of the guest. That it was refused shows in its end.
    ///
    /// # Errors
    /// The machine has ended.
    pub async fn connect(&self, port: u32) -> Result<UnixStream> {
        let (ours, theirs) =
            StdUnixStream::pair().map_err(Error::system("make a stream's socket pair"))?;
        ours.set_nonblocking(true).map_err(Error::system("make a stream non-blocking"))?;
        let ours = UnixStream::from_std(ours).map_err(Error::system("watch a stream"))?;
        let sent = self.control.send(&Command::Connect { port }, &[theirs.as_fd()]).await;
        sent.map_err(|error| self.gone(&error))?;
        Ok(ours)
    }

    /// Lets the machine use so much, in place of `before`; gives the guest address of added memory. The host has
    /// got back then what the guest has lost.
    ///
    /// # Errors
    /// The host has no more to give, or the machine has ended.
    pub async fn resize(&self, before: Size, size: Size) -> Result<u64> {
        let patience = resize_patience(before, size);
        let outcome = self.change_within(patience, Command::Resize(size), &[]).await?;
        outcome.map_err(refused("can't grow"))
    }

    /// Puts a disk into an empty slot; gives the number of its device.
    ///
    /// # Errors
    /// There is none, or the machine has ended.
    pub async fn attach_disk(&self, disk: &OpenDisk, read_only: bool) -> Result<u32> {
        let parts = disk.parts.iter().map(|(_, bytes)| *bytes).collect();
        let files: Vec<_> = disk.parts.iter().map(|(file, _)| file.as_fd()).collect();
        let outcome = self.change(Command::AttachDisk { parts, read_only }, &files).await?;
        outcome.map(|device| device as u32).map_err(refused("takes no disk"))
    }

    /// Takes a disk out.
    ///
    /// # Errors
    /// It was none, is stuck, or the machine has ended.
    pub async fn detach_disk(&self, device: u32) -> Result<()> {
        let outcome = self.change(Command::DetachDisk { device }, &[]).await?;
        outcome.map(drop).map_err(refused("keeps a disk"))
    }

    /// Puts a network interface on a tap into an empty slot, served by the host's kernel where there is an open
    /// `/dev/vhost-net`; gives the number of its device.
    ///
    /// # Errors
    /// There is none, or the machine has ended.
    pub async fn attach_network(
        &self,
        tap: &File,
        vhost: Option<&File>,
        mac: [u8; 6],
        mtu: u16,
    ) -> Result<u32> {
        let fds: Vec<_> = iter::once(tap).chain(vhost).map(AsFd::as_fd).collect();
        let outcome = self.change(Command::AttachNetwork { mac, mtu }, &fds).await?;
        outcome.map(|device| device as u32).map_err(refused("takes no network interface"))
    }

    /// Takes a network interface out.
    ///
    /// # Errors
    /// It was none, is stuck, or the machine has ended.
    pub async fn detach_network(&self, device: u32) -> Result<()> {
        let outcome = self.change(Command::DetachNetwork { device }, &[]).await?;
        outcome.map(drop).map_err(refused("keeps a network interface"))
    }

    async fn change(&self, command: Command, fds: &[BorrowedFd<'_>]) -> Result<Outcome> {
        self.change_within(PATIENCE, command, fds).await
    }

    /// One change at a time; gives the VMM's answer.
    async fn change_within(
        &self,
        patience: Duration,
        command: Command,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Outcome> {
        let mut answers = self.outcomes.lock().await;
        // What was said unasked is no answer to this.
        while answers.try_recv().is_ok() {}
        let sent = self.control.send(&command, fds).await;
        sent.map_err(|error| self.gone(&error))?;
        match tokio::time::timeout(patience, answers.recv()).await {
            Ok(Some(outcome)) => Ok(outcome),
            Ok(None) => Err(self.gone(&"its VMM does not answer")),
            Err(_) => {
                // An answer that comes later would be taken for the next one's.
                self.stop("the VMM does not answer");
                Err(self.gone(&"its VMM does not answer"))
            }
        }
    }

    fn gone(&self, error: &dyn std::fmt::Display) -> Error {
        match self.ended.borrow().as_ref() {
            Some(end) => Error::Ended(end.reason.clone()),
            None => Error::Ended(error.to_string()),
        }
    }

    /// Asks for the end of the machine; `why` becomes the reason unless it has ended already.
    pub fn stop(&self, why: impl Into<String>) {
        // A failed send means that it has ended, or that somebody has asked already.
        let _ = self.stop.try_send(why.into());
    }

    /// Waits until both processes are gone.
    pub async fn ended(&self) -> Ended {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(end)) => end.clone(),
            _ => Ended { reason: "the supervisor is gone".into(), expected: false },
        }
    }
}

fn resize_patience(before: Size, size: Size) -> Duration {
    let lost = before.added_mib.saturating_sub(size.added_mib).div_ceil(1024);
    PATIENCE.saturating_add(PATIENCE_A_GIB.saturating_mul(lost.try_into().unwrap_or(u32::MAX)))
}

/// What a machine that goes on as it was says.
fn refused(what: &'static str) -> impl FnOnce(String) -> Error {
    move |why| Error::FailedPrecondition(format!("the virtual machine {what}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::testing::script;
    use tokio::io::AsyncReadExt as _;

    #[tokio::test]
    async fn a_flood_of_the_vmms_is_not_kept() {
        let (control, vmm) = Control::pair().unwrap();
        let (vm, messages) = Vm::played(control);
        let flood = tokio::task::spawn_blocking(move || {
            let file = std::fs::File::open("/dev/null").unwrap();
            for _ in 0..10 * WAITING {
                let event = protocol::control::Event::Accepted { port: 1026 };
                protocol::packet::send(&vmm, &event, &[file.as_fd()]).unwrap();
                let event = protocol::control::Event::Done { outcome: Ok(7) };
                protocol::packet::send(&vmm, &event, &[]).unwrap();
            }
        });
        flood.await.unwrap();
        vm.ended().await;
        assert_eq!(messages.len(), WAITING);
        assert_eq!(vm.outcomes.lock().await.len(), 1);
    }

    #[test]
    fn one_that_gives_back_much_has_time_for_it() {
        let size = |added_mib| Size { vcpus: 1, added_mib };
        assert_eq!(resize_patience(size(0), size(100 << 10)), PATIENCE);
        assert_eq!(resize_patience(size(100 << 10), size(128)).as_secs(), 120);
    }

    #[tokio::test]
    async fn one_that_never_stops_talking_is_stopped() {
        let (control, vmm) = Control::pair().unwrap();
        let (vm, _messages) = Vm::played(control);
        let flood = tokio::task::spawn_blocking(move || {
            let event = protocol::control::Event::Done { outcome: Ok(7) };
            while protocol::packet::send(&vmm, &event, &[]).is_ok() {}
        });
        vm.stop("enough");
        assert!(vm.ended().await.reason.contains("enough"));
        drop(vm);
        flood.await.unwrap();
    }

    #[tokio::test]
    async fn whatever_is_asked_at_once_comes_after_the_boot_message() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::write(&image, [0; 512]).unwrap();
        let mut settings = Settings::resolve(Config::default()).unwrap();
        settings.vmm = script(dir.path().join("vmm"), "/bin/dd bs=1M count=1 <&3 >&2");
        settings.file_server = script(dir.path().join("fs"), "exec /bin/sleep 100");
        let paths = SandboxPaths::new(dir.path(), "ns", "s").unwrap();
        let (vm, mut messages, _) = Vm::launch(&settings, &paths, 65534, None).unwrap();
        let disk = OpenDisk { parts: vec![(std::fs::File::open(image).unwrap(), 512)] };
        // The script answers nothing; what it has read is all that matters.
        assert!(vm.attach_disk(&disk, true).await.is_err());
        let mut heard = String::new();
        while let Some(message) = messages.recv().await {
            if let Message::Stderr { who: "vmm", mut stream } = message {
                stream.read_to_string(&mut heard).await.unwrap();
                break;
            }
        }
        assert!(heard.starts_with("{\"boot\":"), "{heard}");
        vm.ended().await;
    }
}
