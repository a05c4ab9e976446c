//! Why a machine can't be started, each with its remedy.

use crate::bus::BadWindow;
use crate::cmdline::CmdlineError;
use crate::devices::build::BuildError;
use crate::kvm::KvmError;
use crate::loader::LoadError;
use crate::memory::MemoryError;
use std::path::PathBuf;

/// Every way a start can fail.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The number of vCPUs is 0 or more than KVM or the guest's kernel can do.
    #[error("{asked} vCPUs: this host's KVM and the guest's kernel take 1 to {max}")]
    Vcpus {
        /// What was configured.
        asked: u32,
        /// The most that is possible.
        max: usize,
    },
    /// Kernel and image don't fit, or leave nothing to work with.
    #[error(
        "{has_mib} MiB of memory are too little: kernel ({kernel_mib} MiB), guest image \
         ({initrd_mib} MiB, packed and unpacked) and room to work need {needs_mib} MiB"
    )]
    TooLittleMemory {
        /// What was configured.
        has_mib: u64,
        /// What is needed at least.
        needs_mib: u64,
        /// Up to the end of the kernel.
        kernel_mib: u64,
        /// Of the image.
        initrd_mib: u64,
    },
    /// The kernel command line.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// The kernel's or the image's file.
    #[error(transparent)]
    Kernel(#[from] LoadError),
    /// The guest's memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The host's KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The console's log.
    #[error("console log {}: can't be created", .path.display())]
    ConsoleLog {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A virtio device.
    #[error(transparent)]
    Device(#[from] BuildError),
    /// More virtio devices than there are interrupt lines.
    #[error("{asked} virtio devices: a machine has room for {max}")]
    TooManyDevices {
        /// What was configured.
        asked: usize,
        /// Interrupt lines.
        max: usize,
    },
    /// Two devices in one place: an error in the layout.
    #[error(transparent)]
    Layout(#[from] BadWindow),
    /// The process can't be confined, and so the guest must not run.
    #[error("the VMM can't be confined")]
    Jail(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Descriptors or threads.
    #[error("the host refused {what}")]
    Host {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl StartError {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Vcpus { max, .. } => format!("configure between 1 and {max} vCPUs"),
            Self::TooLittleMemory { needs_mib, .. } => {
                format!("configure at least {needs_mib} MiB of memory for the machine")
            }
            Self::Cmdline(_) => "correct the words configured for the guest kernel".into(),
            Self::Kernel(e) => e.remedy(),
            Self::Memory(e) => e.remedy().into(),
            Self::Kvm(e) => e.remedy().into(),
            Self::ConsoleLog { path, .. } => {
                let directory = path.parent().unwrap_or(path).display();
                format!("make {directory} a directory that root can write to, with room left")
            }
            Self::Device(e) => e.remedy().into(),
            Self::TooManyDevices { max, .. } => format!("configure at most {max} devices"),
            Self::Layout(_) => "report this as a bug".into(),
            Self::Jail(_) => {
                "run the VMM as root on a kernel 5.10 or newer with namespaces and seccomp".into()
            }
            Self::Host { .. } => {
                "raise the limits of processes and open files (`ulimit -a`)".into()
            }
        }
    }

    /// For `map_err` of system calls that only fail when the host has run out of something.
    pub(crate) fn host(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Host { what, source }
    }
}
