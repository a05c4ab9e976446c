//! What the VMM tells its shim.

use serde::{Deserialize, Serialize};

/// VMM → shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The machine could not be built; the VMM exits 1.
    Failed {
        /// What went wrong, naming the thing.
        error: String,
        /// What to do about it.
        remedy: String,
    },
    /// The process is confined and the vCPUs run.
    Running(BootTimes),
    /// The guest connected to a host port; its stream is the descriptor of this message.
    Accepted {
        /// The host port.
        port: u32,
    },
    /// Answer to a command that says so.
    Done {
        /// What it says, or why nothing has changed.
        outcome: Result<u64, String>,
    },
    /// Answer to [`super::Command::Counters`]: name and value, for people and for reports of hung guests.
    Counters(Vec<(String, u64)>),
    /// The machine has ended; the VMM exits next.
    Exited {
        /// Why.
        reason: ExitReason,
    },
}

/// `CLOCK_MONOTONIC` instants of a start, nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootTimes {
    /// `main` began.
    pub process_start: u64,
    /// [`super::Command::Boot`] was read.
    pub config_read: u64,
    /// Memory, kernel and devices were in place.
    pub machine_built: u64,
    /// The process was confined; the vCPUs were let go.
    pub vcpus_started: u64,
}

/// Why a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest powered off or rebooted.
    GuestShutdown,
    /// The guest kernel panicked: it said so before it rebooted (`panic=-1`), the text is on the console.
    GuestPanic,
    /// The CPU shut down (triple fault).
    TripleFault,
    /// [`super::Command::Stop`], or the control socket ended.
    Stopped,
    /// The VMM could not go on.
    Internal(String),
}

impl std::fmt::Display for ExitReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::GuestShutdown => f.write_str("the guest shut down"),
            Self::GuestPanic => f.write_str("the guest kernel panicked"),
            Self::TripleFault => f.write_str("the guest's CPU shut down (triple fault)"),
            Self::Stopped => f.write_str("the machine was stopped"),
            Self::Internal(why) => write!(f, "the VMM failed: {why}"),
        }
    }
}
