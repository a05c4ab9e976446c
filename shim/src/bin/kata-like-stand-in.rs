//! Stands for one container of a pod on the host, and does nothing: see `sandbox/stand_ins.rs`.
//!
//! Its argument is the uid, and gid, that it becomes. It says that it is ready by closing its standard error; what goes
//! wrong before that it says there.

use anyhow::{Context, ensure};
use jail::{Capabilities, Identity, Jail, Namespaces, Root, SyscallFilter};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{close, getppid, pause};

fn main() -> anyhow::Result<()> {
    // It was killed with its parent until here, and is from the next look on: only between them somebody has to look.
    let parent = getppid();
    let id = std::env::args().nth(1).context("which uid?")?.parse().context("the uid")?;
    // As the first process of a container, which only SIGKILL ends from outside.
    SigSet::all().thread_set_mask()?;
    Jail {
        identity: Some(Identity { uid: id, gid: id }),
        capabilities: Capabilities::empty(),
        root: Root::Empty,
        // The network is the pod's.
        namespaces: Namespaces { net: false, ..Namespaces::ALL },
        open_files: None,
    }
    .enter()?;
    // Another identity has lost it.
    set_pdeathsig(Signal::SIGKILL)?;
    ensure!(getppid() == parent, "whoever started it has ended");
    let filter = SyscallFilter::new().allow(&[libc::SYS_close, libc::SYS_pause]);
    jail::close_other_fds(&[])?;
    filter.compile()?.apply()?;
    for fd in 0..=2 {
        // What is not open need not be closed.
        let _ = close(fd);
    }
    loop {
        pause();
    }
}
