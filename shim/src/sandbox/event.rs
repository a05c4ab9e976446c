//! What a sandbox reports to its owner: each fact once, in the order in which it happened.

use std::time::SystemTime;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 0 to 255; 128 + signal number when killed.
    pub status: u32,
    /// By the host's clock.
    pub at: SystemTime,
}

impl Exit {
    /// What a process gets whose sandbox ended under it: killed.
    pub const LOST: u32 = 137;

    /// An exit that is seen now.
    pub fn now(status: u32) -> Self {
        Self { status: status.min(255), at: SystemTime::now() }
    }
}

/// One fact. `exec` is empty for a container's init process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SandboxEvent {
    /// A container exists; its init process waits.
    Created {
        /// Container.
        id: String,
        /// Host process that stands for it.
        pid: u32,
    },
    /// An init process runs.
    Started {
        /// Container.
        id: String,
        /// Host process that stands for it.
        pid: u32,
    },
    /// A process of a container was killed for lack of memory.
    OutOfMemory {
        /// Container.
        id: String,
    },
    /// A container's processes stand still.
    Paused {
        /// Container.
        id: String,
    },
    /// They go on.
    Resumed {
        /// Container.
        id: String,
    },
    /// An exec is registered.
    ExecAdded {
        /// Container.
        id: String,
        /// Exec.
        exec: String,
    },
    /// An exec runs.
    ExecStarted {
        /// Container.
        id: String,
        /// Exec.
        exec: String,
        /// Guest pid.
        pid: u32,
    },
    /// A process ended. A container's init is always the last of it.
    Exited {
        /// Container.
        id: String,
        /// Exec, or empty.
        exec: String,
        /// As in the start event.
        pid: u32,
        /// How.
        exit: Exit,
    },
    /// A container is gone.
    Deleted {
        /// Container.
        id: String,
        /// As in the start event.
        pid: u32,
        /// How its init ended.
        exit: Exit,
    },
}
