//! One process of a container: its pid, its exit, its streams.

use crate::error::AgentError;
use crate::guest::reaper::{Exit, ExitCell};
use crate::io::stdio;
use crate::io::streams::{self, Streams};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use protocol::agent::Stdio;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::task::AbortHandle;

/// A process that a worker has made.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    exit: ExitCell,
    terminal: Option<OwnedFd>,
    stdio: Stdio,
    streams: Arc<Streams>,
    input: Option<AbortHandle>,
}

/// Which of stdin, stdout and stderr the host carries.
pub fn wanted(stdio: &Stdio) -> [bool; 3] {
    [stdio.stdin != 0, stdio.stdout != 0, stdio.stderr != 0]
}

impl Process {
    /// Takes over a process and begins to carry its streams. `fds` as in
    /// [`crate::work::job::Answer::Started`].
    ///
    /// # Errors
    /// When the terminal cannot be duplicated or the worker's descriptors do not fit.
    pub fn new(
        pid: i32,
        exit: ExitCell,
        terminal: bool,
        fds: Vec<OwnedFd>,
        stdio: Stdio,
        streams: Arc<Streams>,
    ) -> Result<Self, AgentError> {
        let mut process = Self { pid, exit, terminal: None, stdio, streams, input: None };
        let mut fds = fds.into_iter();
        let short = || AgentError::Internal("the worker sent too few descriptors".to_owned());
        if terminal {
            let master = fds.next().ok_or_else(short)?;
            let duplicate = || master.try_clone().map_err(|e| AgentError::io("terminal", e));
            if process.stdio.stdin != 0 {
                process.carry_in(duplicate()?);
            }
            if process.stdio.stdout != 0 {
                process.carry_out(duplicate()?, process.stdio.stdout);
            }
            process
                .keep_open(stdio::open_peer(&master).map_err(|e| AgentError::io("terminal", e))?);
            process.terminal = Some(master);
            return Ok(process);
        }
        if process.stdio.stdin != 0 {
            process.carry_in(fds.next().ok_or_else(short)?);
        }
        for number in [process.stdio.stdout, process.stdio.stderr] {
            if number != 0 {
                process.carry_out(fds.next().ok_or_else(short)?, number);
            }
        }
        Ok(process)
    }

    fn carry_in(&mut self, input: OwnedFd) {
        let number = self.stdio.stdin;
        let carrying = tokio::spawn(streams::carry_in(input, self.streams.take(number)));
        let handle = carrying.abort_handle();
        self.input = Some(handle.clone());
        // Input for a process that has ended has nowhere to go.
        let (mut exit, streams) = (self.exit.clone(), Arc::clone(&self.streams));
        tokio::spawn(async move {
            let _ = exit.wait_for(Option::is_some).await;
            handle.abort();
            streams.forget(number);
        });
    }

    /// Holds the process's side of its terminal while it lives: the master has an end when nobody holds it, and
    /// the process may close it and open it again.
    fn keep_open(&self, peer: OwnedFd) {
        let mut exit = self.exit.clone();
        tokio::spawn(async move {
            let _ = exit.wait_for(Option::is_some).await;
            drop(peer);
        });
    }

    fn carry_out(&self, output: OwnedFd, number: u64) {
        tokio::spawn(streams::carry_out(output, self.streams.take(number)));
    }

    /// In the agent's pid namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// How it ended; `None` while it lives.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Becomes `Some` when the process ends.
    pub fn exit_cell(&self) -> ExitCell {
        self.exit.clone()
    }

    /// Sends it a signal. The reaper runs on the thread that calls this, so the pid is not used anew
    /// between the check and the call.
    ///
    /// # Errors
    /// [`AgentError::Finished`] when it has ended.
    pub fn signal(&self, signal: i32) -> Result<(), AgentError> {
        if self.exit().is_some() {
            return Err(AgentError::Finished);
        }
        // SAFETY: kill touches no memory. nix's Signal has no real-time signals.
        match unsafe { libc::kill(self.pid, signal) } {
            0 => Ok(()),
            _ => Err(AgentError::io("sending the signal", std::io::Error::last_os_error())),
        }
    }

    /// Ends it.
    pub fn kill(&self) {
        if self.exit().is_none() {
            let _ = nix::sys::signal::kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }

    /// Sets its terminal's size.
    ///
    /// # Errors
    /// [`AgentError::WrongState`] when it has none.
    pub fn resize(&self, width: u32, height: u32) -> Result<(), AgentError> {
        let terminal = self
            .terminal
            .as_ref()
            .ok_or_else(|| AgentError::WrongState("the process has no terminal".to_owned()))?;
        stdio::resize(terminal, width, height).map_err(|e| AgentError::io("resizing", e))
    }
}

impl Drop for Process {
    /// Streams that the host has connected are carried to their end; nobody waits for others.
    fn drop(&mut self) {
        for number in [self.stdio.stdin, self.stdio.stdout, self.stdio.stderr] {
            self.streams.forget(number);
        }
        if let Some(input) = &self.input {
            input.abort();
        }
    }
}
