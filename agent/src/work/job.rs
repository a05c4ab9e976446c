//! What the agent asks of a worker, and what it gets: messages on a socket between the two.

use crate::spec::InvalidSpec;
use oci_spec::runtime::PosixRlimit;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::path::PathBuf;

/// libcontainer's state, a directory per container.
pub const STATE_DIR: &str = "/run/kata-like/containers";

/// What to do. Paths, not contents: a message has a limit, a specification has not.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// The container.
    pub container_id: String,
    /// Holds [`SPEC_FILE`].
    pub bundle: PathBuf,
    /// `None`: create the container. `Some`: a directory in the bundle for a process to be added to it, which
    /// holds [`PROCESS_FILE`]. The agent removes it, with whatever the worker leaves there.
    pub process: Option<String>,
    /// Of a process to be added: where below the container's cgroup it goes; empty: wherever it can.
    pub sub_cgroup: String,
    /// The limits of the process where it sets none.
    pub limits: Vec<PosixRlimit>,
    /// Which of stdin, stdout, stderr the host carries; the others are /dev/null.
    pub wanted: [bool; 3],
    /// A terminal does not make `\r\n` of a `\n`.
    pub plain_newlines: bool,
}

/// The specification as the host sent it, in the bundle.
pub const SPEC_FILE: &str = "spec.json";

/// The `process` object of a process to be added, in its directory.
pub const PROCESS_FILE: &str = "process.json";

/// Of a job.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// The first, of every job: the worker itself, in the agent's pid namespace.
    Begun {
        /// Its pid.
        worker: i32,
    },
    /// The process exists. Descriptors: the terminal's master, or the agent's ends of the pipes
    /// of the wanted streams, in order.
    Started {
        /// In the agent's pid namespace.
        pid: i32,
        /// The process has a terminal.
        terminal: bool,
        /// Names of calls in its profile that the kernel does not have.
        unknown_calls: Vec<String>,
    },
    /// It does not.
    Failed(Failure),
}

/// Why a process could not be made.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// For the caller's code.
    pub kind: FailureKind,
    /// For people.
    pub message: String,
}

/// Classes of [`Failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The specification cannot be followed.
    Invalid,
    /// The container is not in the state for it.
    WrongState,
    /// The guest could not.
    Internal,
}

impl Failure {
    /// Of class [`FailureKind::Internal`]: what was tried, and what came of it.
    pub fn internal(what: &str, error: &dyn std::error::Error) -> Self {
        Self { kind: FailureKind::Internal, message: format!("{what}: {}", chain(error)) }
    }
}

impl From<InvalidSpec> for Failure {
    fn from(error: InvalidSpec) -> Self {
        Self { kind: FailureKind::Invalid, message: chain(&error) }
    }
}

/// The error and its causes, each said once.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text
}
