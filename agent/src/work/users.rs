//! An exec in a container that has a user namespace of its own, which libcontainer does not join.
//!
//! libcontainer makes the process as root of the guest, with the one capability that joining takes. When all else is
//! done the executor joins, becomes the user, and takes the capabilities that the process is to have there.

use libcontainer::capabilities::{drop_privileges, reset_effective};
use libcontainer::syscall::syscall::create_syscall;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_keepcaps;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, Process, User};
use std::fs::File;
use std::io;

/// Who a process is to be in its container's user namespace.
#[derive(Debug)]
pub struct Users {
    namespace: File,
    user: User,
    capabilities: LinuxCapabilities,
}

impl Users {
    /// Takes from `process` who it is to be, once it is in the user namespace of the container's first process.
    ///
    /// # Errors
    /// The namespace can't be opened: the first process has ended.
    pub fn take_over(process: &mut Process, first: i32) -> io::Result<Self> {
        let namespace = File::open(format!("/proc/{first}/ns/user"))?;
        let user = process.user().clone();
        let capabilities = process.capabilities().clone().unwrap_or_default();
        let mut root = User::default();
        root.set_umask(user.umask());
        process.set_user(root);
        process.set_capabilities(Some(to_join()));
        Ok(Self { namespace, user, capabilities })
    }

    /// Makes this process who it is to be. Its memory must not be open to the container (`PR_SET_DUMPABLE`), whose
    /// root may look into what has the container's users.
    ///
    /// # Errors
    /// For people.
    pub fn enter(&self) -> Result<(), String> {
        let text = |error: &dyn std::error::Error| {
            format!("entering the container's user namespace: {error}")
        };
        self.join().map_err(|e| text(&e))?;
        let system = create_syscall();
        reset_effective(&*system)
            .and_then(|()| drop_privileges(&self.capabilities, &*system))
            .map_err(|e| text(&e))
    }

    fn join(&self) -> nix::Result<()> {
        setns(&self.namespace, CloneFlags::CLONE_NEWUSER)?;
        let groups = self.user.additional_gids().iter().flatten().copied();
        let groups: Vec<Gid> = groups.map(Gid::from_raw).collect();
        // Without any there are none to be left: the agent has none. A namespace may forbid the call.
        if !groups.is_empty() {
            setgroups(&groups)?;
        }
        let (user, group) = (Uid::from_raw(self.user.uid()), Gid::from_raw(self.user.gid()));
        setresgid(group, group, group)?;
        set_keepcaps(true)?;
        setresuid(user, user, user)?;
        set_keepcaps(false)
    }
}

fn to_join() -> LinuxCapabilities {
    let one: Capabilities = [Capability::SysAdmin].into();
    let mut all = LinuxCapabilities::default();
    all.set_bounding(Some(one.clone()))
        .set_effective(Some(one.clone()))
        .set_permitted(Some(one))
        .set_inheritable(Some(Capabilities::new()))
        .set_ambient(Some(Capabilities::new()));
    all
}
