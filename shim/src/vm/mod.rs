//! The VMM and the file server of one sandbox: started together, watched together, ended together.

mod control;
mod spawn;
mod supervise;

use crate::error::{Error, Result};
use crate::paths::SandboxPaths;
use crate::persist::ProcessId;
use crate::plan;
use crate::settings::Settings;
pub use control::Control;
use protocol::control::{BootTimes, Command};
use protocol::machine::Size;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Duration;
pub use supervise::{Ended, Helpers};
use tokio::net::UnixStream;
use tokio::sync::{Mutex, mpsc, watch};

/// How long a machine may take to change its size: more than its vCPUs and devices have to stop.
const RESIZE_PATIENCE: Duration = Duration::from_secs(20);

/// What a machine says while it lives.
#[derive(Debug)]
pub enum Notice {
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
    Said {
        /// Which helper.
        who: &'static str,
        /// Its standard error.
        stream: tokio::process::ChildStderr,
    },
}

/// Where it goes what the machine and its helpers say.
struct Said {
    notices: mpsc::UnboundedSender<Notice>,
    resized: mpsc::UnboundedSender<Resized>,
}

/// A running machine. Dropping the last clone does not end it: [`Vm::stop`] does.
#[derive(Debug, Clone)]
pub struct Vm {
    control: Arc<Control>,
    stop: mpsc::UnboundedSender<String>,
    ended: watch::Receiver<Option<Ended>>,
    resized: Arc<Mutex<mpsc::UnboundedReceiver<Resized>>>,
}

/// The VMM's answer to a change of size.
type Resized = Result<u64, String>;

impl Vm {
    /// Starts the file server and the VMM, and watches them until they have ended.
    ///
    /// Gives the machine, what it will say, and the two processes.
    ///
    /// # Errors
    /// A program can't be started, or the system is out of something.
    pub fn launch(
        settings: &Settings,
        paths: &SandboxPaths,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Notice>, [ProcessId; 2])> {
        let (fs_ours, fs_theirs) =
            StdUnixStream::pair().map_err(Error::system("make the file server's socket"))?;
        let shared = paths.shared();
        let file_server = spawn::helper(
            &settings.file_server,
            &["--shared-dir".as_ref(), shared.as_os_str()],
            fs_theirs.into(),
        )?;
        let (control, control_theirs) = Control::pair()?;
        let vmm = spawn::helper(&settings.vmm, &[], control_theirs)?;
        let ids = [ProcessId::of_child(&vmm)?, ProcessId::of_child(&file_server)?];
        let config = plan::machine(settings, paths.console_log());
        let boot = (Command::Boot(Box::new(config)), fs_ours.into());
        let helpers = Helpers { vmm, file_server };
        let (vm, notices) = Self::supervised(control, Some((helpers, boot)));
        Ok((vm, notices, ids))
    }

    /// A machine that a test plays behind its control socket.
    #[cfg(test)]
    pub fn played(control: Control) -> (Self, mpsc::UnboundedReceiver<Notice>) {
        Self::supervised(control, None)
    }

    fn supervised(
        control: Control,
        helpers: Option<(Helpers, (Command, OwnedFd))>,
    ) -> (Self, mpsc::UnboundedReceiver<Notice>) {
        let control = Arc::new(control);
        let (stop, stop_requests) = mpsc::unbounded_channel();
        let (notices, notices_out) = mpsc::unbounded_channel();
        let (ended_in, ended) = watch::channel(None);
        let (resized_in, resized) = mpsc::unbounded_channel();
        let watched = control.clone();
        tokio::spawn(async move {
            let said = Said { notices, resized: resized_in };
            let end = supervise::run(&watched, helpers, stop_requests, said).await;
            tracing::info!("machine ended: {}", end.reason);
            ended_in.send_replace(Some(end));
        });
        let resized = Arc::new(Mutex::new(resized));
        (Self { control, stop, ended, resized }, notices_out)
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

    /// Lets the machine use so much; gives the guest address of added memory.
    ///
    /// # Errors
    /// The host has no more to give, or the machine has ended.
    pub async fn resize(&self, size: Size) -> Result<u64> {
        let mut answers = self.resized.lock().await;
        let sent = self.control.send(&Command::Resize(size), &[]).await;
        sent.map_err(|error| self.gone(&error))?;
        match tokio::time::timeout(RESIZE_PATIENCE, answers.recv()).await {
            Ok(Some(outcome)) => outcome.map_err(|why| {
                Error::FailedPrecondition(format!("the virtual machine can't grow: {why}"))
            }),
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
        // A failed send means that it has ended.
        let _ = self.stop.send(why.into());
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
