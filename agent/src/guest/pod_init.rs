//! PID 1 of a pod whose containers share their processes and which has no container of its own for that: it holds the
//! PID namespace, and collects those who lose their parent there.
//!
//! It is the agent's program, started by another name: with an empty root, no privilege and no open file. Where the pod's
//! containers have users of their own, so has it: they could not enter its namespace otherwise.

use crate::error::AgentError;
use crate::spec::id_maps;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Uid, chdir, fork, pivot_root, setgroups, setresgid, setresuid};
use oci_spec::runtime::{LinuxIdMapping, Spec};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Stdio};

/// Its name, by which those who look for it in a pod know it.
const NAME: &str = "/pause";

/// Its user and group, as of the container that others have for this; of fewer ids the last.
const NOBODY: u32 = 65535;

/// Its argument if it is to have users of its own, and when it has them: it is executed once more then, so that all that
/// it is belongs to these, and who has rights over them may look up its namespaces.
const WITH_USERS: &str = "users";
const OF_USERS: &str = "of-users";

/// What it says when it waits for their mappings.
const WAITING: u8 = b'?';

/// Ids of the pod's users and groups: the files of a user namespace, `uid_map` and `gid_map` (user_namespaces(7)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Users {
    /// Text of the files.
    pub maps: [String; 2],
    /// How many of either there are at least, from 0 on.
    pub ids: u32,
}

impl Users {
    /// Those that a specification gives its container.
    pub fn of(spec: &Spec) -> Option<Self> {
        let linux = spec.linux().as_ref().filter(|_| id_maps::has_users(spec))?;
        let all = [linux.uid_mappings(), linux.gid_mappings()];
        let ids = all.map(|lines| {
            let from_root = lines.iter().flatten().find(|line| line.container_id() == 0);
            from_root.map_or(0, LinuxIdMapping::size)
        });
        let maps = all.map(|lines| lines.iter().flatten().map(line).collect());
        Some(Self { maps, ids: ids[0].min(ids[1]) })
    }
}

impl Users {
    /// Whether a process is in a user namespace with these.
    ///
    /// # Errors
    /// It has ended.
    pub fn are_of(&self, pid: i32) -> io::Result<bool> {
        let of = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
        let [users, groups] = &self.maps;
        Ok(is_same(users, &of("uid_map")?) && is_same(groups, &of("gid_map")?))
    }
}

/// Whether two maps are, in whatever order and however they are written.
fn is_same(one: &str, other: &str) -> bool {
    let sorted = |map: &str| {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let mut lines: Vec<_> = map.lines().map(words).collect();
        lines.sort();
        lines
    };
    sorted(one) == sorted(other)
}

fn line(ids: &LinuxIdMapping) -> String {
    format!("{} {} {}\n", ids.container_id(), ids.host_id(), ids.size())
}

/// It, once it has been started.
#[derive(Debug)]
pub struct PodInit {
    /// Its pid, while it lives.
    pub pid: i32,
    /// Its users, where they are not the guest's.
    pub users: Option<Users>,
    /// Of `/proc`: the process's and no later one's of its pid.
    stat: File,
}

impl PodInit {
    /// Starts it. Blocks until it has its namespaces.
    ///
    /// # Errors
    /// The kernel refuses a step.
    pub fn start(users: Option<Users>) -> Result<Self, AgentError> {
        let failed = |e| AgentError::io("starting the pod's first process", e);
        let pid = started(users.as_ref()).map_err(failed)?;
        // Nothing ends it so soon: no container has joined it.
        let stat = File::open(format!("/proc/{pid}/stat")).map_err(failed)?;
        Ok(Self { pid, users, stat })
    }

    /// Whether it lives: its pid may be another process's then.
    pub fn lives(&self) -> bool {
        self.stat.read_at(&mut [0], 0).is_ok_and(|length| length > 0)
    }
}

fn started(users: Option<&Users>) -> io::Result<i32> {
    let mut maker = Command::new("/proc/self/exe");
    maker.arg0(NAME).env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    if let Some(users) = users {
        let nobody = NOBODY.min(users.ids.saturating_sub(1));
        maker.args([WITH_USERS, &nobody.to_string()]);
    }
    // Reaped like everybody else, by the agent's one reaper.
    let mut maker = maker.spawn()?;
    let (Some(told), Some(mut says)) = (maker.stdin.take(), maker.stdout.take()) else {
        return Err(io::ErrorKind::Other.into());
    };
    if let Some(Users { maps: [uids, gids], .. }) = users {
        let mut word = [0];
        says.read_exact(&mut word)?;
        if word != [WAITING] {
            let mut said = word.to_vec();
            says.read_to_end(&mut said)?;
            return Err(io::Error::other(String::from_utf8_lossy(&said).into_owned()));
        }
        for (file, text) in [("uid_map", uids), ("gid_map", gids)] {
            std::fs::write(format!("/proc/{}/{file}", maker.id()), text)?;
        }
    }
    drop(told);
    let mut said = String::new();
    says.read_to_string(&mut said)?;
    said.parse().map_err(|_| io::Error::other(said))
}

/// Does the work, if this process was started by its name.
pub fn run() -> Option<ExitCode> {
    let mut arguments = std::env::args();
    let is_it = arguments.next()? == NAME;
    let word = arguments.next();
    let nobody = arguments.next().and_then(|id| id.parse().ok()).unwrap_or(NOBODY);
    let work = || match word.as_deref() {
        Some(WITH_USERS) => become_users(nobody),
        _ => make(nobody),
    };
    is_it.then(|| match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = write!(io::stdout(), "{error:#}");
            ExitCode::FAILURE
        }
    })
}

/// Becomes the root of a user namespace that has been given its mappings.
fn become_users(nobody: u32) -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER)?;
    io::stdout().write_all(&[WAITING])?;
    io::stdout().flush()?;
    // Ends when the mappings are written.
    io::stdin().read_to_end(&mut Vec::new())?;
    let (root, group) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(group, group, group)?;
    setresuid(root, root, root)?;
    let mut again = Command::new("/proc/self/exe");
    Err(again.arg0(NAME).args([OF_USERS, &nobody.to_string()]).exec().into())
}

/// Makes the namespace's first process, and tells its pid.
fn make(nobody: u32) -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    leave_root()?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    let (uid, gid) = (Uid::from_raw(nobody), Gid::from_raw(nobody));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    prctl::set_no_new_privs()?;
    let ended = SigSet::from(Signal::SIGCHLD);
    ended.thread_block()?;
    // SAFETY: this process has one thread.
    match unsafe { fork() }? {
        ForkResult::Child => collect(ended),
        ForkResult::Parent { child } => Ok(write!(io::stdout(), "{child}")?),
    }
}

fn leave_root() -> nix::Result<()> {
    const PLACE: &str = "/tmp";
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), PLACE, Some("tmpfs"), flags, none)?;
    chdir(PLACE)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}

/// Reaps for ever. The kernel keeps signals from the first process of a namespace that it does not wait for.
fn collect(ended: SigSet) -> ! {
    // SAFETY: nothing here uses a descriptor any more.
    unsafe { libc::close_range(0, libc::c_uint::MAX, 0) };
    loop {
        while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive)
        {
        }
        let _ = ended.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_that_has_ended_does_not_live() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let stat = File::open(format!("/proc/{}/stat", child.id())).unwrap();
        let init = PodInit { pid: child.id().cast_signed(), users: None, stat };
        assert!(init.lives());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!init.lives());
    }

    #[test]
    fn its_users_are_those_of_a_container_that_has_some() {
        let spec = |namespaces| -> Spec {
            serde_json::from_value(json!({"ociVersion": "1.2.0", "linux": {
                "namespaces": namespaces,
                "uidMappings": [{"containerID": 0, "hostID": 100_000, "size": 1000}],
                "gidMappings": [{"containerID": 5, "hostID": 7, "size": 2}, {"containerID": 0, "hostID": 9, "size": 5}],
            }}))
            .unwrap()
        };
        let maps = ["0 100000 1000\n", "5 7 2\n0 9 5\n"].map(String::from);
        assert_eq!(Users::of(&spec(json!([{"type": "user"}]))), Some(Users { maps, ids: 5 }));
        assert_eq!(Users::of(&spec(json!([{"type": "pid"}]))), None);
    }
}
