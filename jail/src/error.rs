//! Which step of a confinement failed, and why.

use std::{fmt, io};

/// Why a process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The other threads would have stayed outside.
    #[error("a process is confined while it has one thread; this one has {threads}")]
    Threads {
        /// How many there are.
        threads: usize,
    },
    /// The system refused a step.
    #[error("cannot {step}")]
    Step {
        /// Which.
        step: Step,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// One step of a confinement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Read `/proc/self/task`.
    CountThreads,
    /// Close the descriptors that are not kept.
    CloseDescriptors,
    /// Set resource limits.
    Limits,
    /// Enter new namespaces.
    Unshare,
    /// Take the mounts out of the host's propagation, or make them receive only.
    Propagation,
    /// Make the mount that becomes the root.
    NewRoot,
    /// Change to the new root and detach the old one.
    ChangeRoot,
    /// Drop capabilities from the bounding set.
    BoundingSet,
    /// Lock the secure bits, so that user id 0 gives no capabilities.
    SecureBits,
    /// Drop the supplementary groups.
    Groups,
    /// Become another user and group.
    Identity,
    /// Drop capabilities.
    Capabilities,
    /// Set `no_new_privs`.
    NoNewPrivs,
    /// Keep the processes of a cgroup from opening devices.
    Devices,
    /// Forbid core dumps and being traced.
    Dumpable,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CountThreads => "count the threads of the process",
            Self::CloseDescriptors => "close inherited descriptors",
            Self::Limits => "set resource limits",
            Self::Unshare => "enter new namespaces",
            Self::Propagation => "change the propagation of mounts",
            Self::NewRoot => "prepare the new root directory",
            Self::ChangeRoot => "change the root directory",
            Self::BoundingSet => "reduce the capability bounding set",
            Self::SecureBits => "lock the secure bits",
            Self::Groups => "drop supplementary groups",
            Self::Identity => "change user and group",
            Self::Capabilities => "drop capabilities",
            Self::NoNewPrivs => "set no_new_privs",
            Self::Devices => "forbid devices",
            Self::Dumpable => "become undumpable",
        })
    }
}

/// Attaches the step to a system call's error.
pub(crate) trait StepResult<T> {
    fn step(self, step: Step) -> Result<T, JailError>;
}

impl<T, E: Into<io::Error>> StepResult<T> for Result<T, E> {
    fn step(self, step: Step) -> Result<T, JailError> {
        self.map_err(|e| JailError::Step { step, source: e.into() })
    }
}
