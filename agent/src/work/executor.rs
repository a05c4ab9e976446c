//! The last steps of a container process: find the program, install the filter, execute.
//!
//! libcontainer calls this inside the container, after it has done everything else. Errors are worded
//! as runc words them, since containerd's and Docker's users (and their scripts) know those.

use crate::io::stdio;
use crate::spec::limits::Limits;
use crate::spec::privileges::Privileges;
use crate::spec::seccomp;
use crate::work::job::{Failure, FailureKind, chain};
use crate::work::start_hooks;
use crate::work::users::Users;
use libcontainer::container::State;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::unistd::{AccessFlags, chdir, execve, faccessat, getcwd};
use oci_spec::runtime::{Hook, Spec};
use std::ffi::CString;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Where programs are looked for when the process has no PATH (execvp(3)).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Replaces libcontainer's own; see the module.
#[derive(Debug, Clone)]
pub struct GuestExecutor(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    process: NewProcess,
    plain_newlines: bool,
    report: OwnedFd,
}

/// What is left to be done in a new process.
#[derive(Debug)]
pub struct NewProcess {
    /// What it is reduced to.
    pub privileges: Privileges,
    /// What it may use.
    pub limits: Limits,
    /// Who it is to be, where libcontainer does not see to that.
    pub users: Option<Users>,
    /// For a container's first process.
    pub first: Option<First>,
}

/// What only the first process of a container does.
#[derive(Debug)]
pub struct First {
    /// There is something to read when mounts have covered its working directory. Not blocking.
    pub covered: OwnedFd,
    /// To be run before the program.
    pub hooks: Vec<Hook>,
    /// For the hooks.
    pub state: State,
}

impl GuestExecutor {
    /// The reason of a failure goes to `report`, as the JSON of a [`Failure`].
    pub fn new(process: NewProcess, plain_newlines: bool, report: OwnedFd) -> Self {
        Self(Rc::new(Inner { process, plain_newlines, report }))
    }

    fn report(&self, message: String) -> String {
        let failure = Failure { kind: FailureKind::Invalid, message };
        if let Ok(json) = serde_json::to_vec(&failure) {
            // After the start nobody reads any more; SIGPIPE is ignored, so this only fails then.
            let _ = nix::unistd::write(&self.0.report, &json);
        }
        failure.message
    }

    /// A terminal has its first size, and its mode, before the program can ask for it. libcontainer has made it
    /// stdin.
    fn set_terminal(&self, spec: &Spec) {
        let Some(process) = spec.process().as_ref().filter(|p| p.terminal() == Some(true)) else {
            return;
        };
        if let Some(size) = process.console_size() {
            // One that is not taken can be set later.
            let _ = stdio::resize(std::io::stdin(), size.width() as u32, size.height() as u32);
        }
        if self.0.plain_newlines {
            // A terminal that does not take it shows each line's end twice, which is no reason to run nothing.
            let _ = stdio::keep_newlines(std::io::stdin());
        }
    }

    /// Ends in the program, or says why not.
    fn execute(&self, spec: &Spec) -> String {
        let args = arguments(spec);
        let path = match find(spec) {
            Ok(path) => path,
            Err(message) => return message,
        };
        let texts = |texts: &[String]| {
            texts.iter().map(|t| CString::new(t.as_bytes())).collect::<Result<Vec<_>, _>>()
        };
        let (Ok(program), Ok(arguments), Ok(variables)) =
            (CString::new(path.as_os_str().as_bytes()), texts(args), texts(environment(spec)))
        else {
            return format!("exec {args:?}: an argument or variable contains a NUL");
        };
        if let Err(message) = self.get_ready(spec) {
            return message;
        }
        let Err(error) = execve(&program, &arguments, &variables);
        set_signals(SigHandler::SigIgn);
        format!("exec {}: {}", path.display(), text(error))
    }

    /// Leaves nothing to be done but to execute the program.
    fn get_ready(&self, spec: &Spec) -> Result<(), String> {
        let Some(First { covered, hooks, state }) = &self.0.process.first else {
            set_signals(SigHandler::SigDfl);
            return self.confine();
        };
        if nix::unistd::read(covered, &mut [0]) == Ok(1) {
            enter_cwd(spec)?;
        }
        if hooks.is_empty() {
            set_signals(SigHandler::SigDfl);
            return self.confine();
        }
        self.let_go_of_the_rest();
        self.confine()?;
        start_hooks::run(hooks, state, environment(spec))?;
        // A hook need not read what it is told, so this comes after.
        set_signals(SigHandler::SigDfl);
        Ok(())
    }

    /// Closes what made the process and its program won't have: hooks need descriptors within its limit.
    fn let_go_of_the_rest(&self) {
        let report = self.0.report.as_raw_fd() as u32;
        for (first, last) in [(3, report.saturating_sub(1)), (report + 1, u32::MAX)] {
            if first <= last {
                // SAFETY: touches no memory. The objects that own those descriptors are not used again, and dropping
                // them closes nothing: until this process ends it opens no descriptor for longer than a hook takes.
                unsafe { libc::close_range(first, last, 0) };
            }
        }
    }

    /// Sets the limits and installs the filter; the capabilities that it took are given up.
    fn confine(&self) -> Result<(), String> {
        self.0.process.limits.set().map_err(|e| chain(&e))?;
        let Privileges { filters, reduce_to, .. } = &self.0.process.privileges;
        let capabilities = |error| format!("setting capabilities: {error}");
        if let Some(sets) = reduce_to {
            sets.before_filter().map_err(capabilities)?;
        }
        for filter in filters {
            seccomp::install(filter).map_err(|e| format!("installing the seccomp filter: {e}"))?;
        }
        if let Some(sets) = reduce_to {
            sets.after_filter().map_err(capabilities)?;
        }
        Ok(())
    }
}

impl Executor for GuestExecutor {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        self.set_terminal(spec);
        let entered = self.0.process.users.as_ref().map_or(Ok(()), Users::enter);
        let lowered = entered.and_then(|()| match &self.0.process.privileges.reduce_to {
            Some(sets) => sets.lower().map_err(|e| format!("setting capabilities: {e}")),
            None => Ok(()),
        });
        lowered.and_then(|()| find(spec)).map(drop).map_err(|message| {
            let message = format!(
                "unable to start container process: error during container init: {message}"
            );
            ExecutorValidationError::ArgValidationError(self.report(message))
        })
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let message = self.execute(spec);
        // The init process has been let go by a Start that has answered: its stderr is what is left.
        let _ = nix::unistd::write(std::io::stderr(), format!("{message}\n").as_bytes());
        Err(ExecutorError::Other(self.report(message)))
    }
}

/// std ignores SIGPIPE, and that would be inherited. The filter may forbid this, so it comes first.
fn set_signals(pipe: SigHandler) {
    // SAFETY: neither default nor ignore runs code of ours.
    let _ = unsafe { signal(Signal::SIGPIPE, pipe) };
    let _ = SigSet::empty().thread_set_mask();
}

/// Goes to the working directory by its path, as the user of the process.
fn enter_cwd(spec: &Spec) -> Result<(), String> {
    let Some(process) = spec.process() else { return Ok(()) };
    let cwd = process.cwd();
    chdir(cwd).and_then(|()| getcwd()).map(drop).map_err(|error| {
        let cwd = cwd.to_string_lossy();
        format!("chdir to cwd ({cwd:?}) set in config.json failed: {}", text(error))
    })
}

fn arguments(spec: &Spec) -> &[String] {
    spec.process().as_ref().and_then(|p| p.args().as_deref()).unwrap_or_default()
}

/// In the order of the specification, which libcontainer doesn't keep.
fn environment(spec: &Spec) -> &[String] {
    spec.process().as_ref().and_then(|p| p.env().as_deref()).unwrap_or_default()
}

/// Finds the program in the container, as Go's `exec.LookPath` does.
fn find(spec: &Spec) -> Result<PathBuf, String> {
    let name = arguments(spec).first().map(String::as_str).unwrap_or_default();
    let path = environment(spec)
        .iter()
        .rev()
        .find_map(|v| v.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH);
    find_in(name, path)
}

fn find_in(name: &str, path: &str) -> Result<PathBuf, String> {
    let error = |what: String| format!("exec: {name:?}: {what}");
    if name.contains('/') {
        return check(Path::new(name)).map(|()| name.into()).map_err(|errno| match errno {
            Errno::ENOENT | Errno::ENOTDIR => error(format!("stat {name}: {}", text(errno))),
            errno => error(text(errno)),
        });
    }
    let mut denied = false;
    if !name.is_empty() {
        for directory in path.split(':') {
            let directory = if directory.is_empty() { "." } else { directory };
            let candidate = Path::new(directory).join(name);
            match check(&candidate) {
                Ok(()) => return Ok(candidate),
                Err(errno) => denied |= errno == Errno::EACCES,
            }
        }
    }
    Err(error(
        if denied { "permission denied" } else { "executable file not found in $PATH" }.to_owned(),
    ))
}

/// A file that this process may execute.
fn check(path: &Path) -> Result<(), Errno> {
    let kind = nix::sys::stat::stat(path)?.st_mode & libc::S_IFMT;
    if kind == libc::S_IFDIR {
        return Err(Errno::EISDIR);
    }
    faccessat(AT_FDCWD, path, AccessFlags::X_OK, AtFlags::AT_EACCESS)
}

/// As Go writes errno values.
fn text(errno: Errno) -> String {
    match errno {
        Errno::ENOEXEC => "exec format error".to_owned(),
        errno => {
            let text = errno.desc();
            text[..1].to_lowercase() + &text[1..]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_first_program_in_the_path_is_found() {
        assert_eq!(find_in("sh", "/nowhere:/bin:/usr/bin"), Ok("/bin/sh".into()));
        assert_eq!(find_in("/bin/sh", ""), Ok("/bin/sh".into()));
    }

    #[test]
    fn errors_are_worded_as_users_know_them() {
        let not_found = "exec: \"nosuch\": executable file not found in $PATH";
        assert_eq!(find_in("nosuch", "/bin"), Err(not_found.to_owned()));
        let stat = "exec: \"/nosuch\": stat /nosuch: no such file or directory";
        assert_eq!(find_in("/nosuch", "/bin"), Err(stat.to_owned()));
        assert_eq!(find_in("/etc", "/bin"), Err("exec: \"/etc\": is a directory".to_owned()));
        let denied = "exec: \"/etc/passwd\": permission denied";
        assert_eq!(find_in("/etc/passwd", "/bin"), Err(denied.to_owned()));
        let empty = "exec: \"\": executable file not found in $PATH";
        assert_eq!(find_in("", "/bin"), Err(empty.to_owned()));
    }

    #[test]
    fn a_file_without_x_in_the_path_is_told_from_a_missing_one() {
        let directory = std::env::temp_dir().join(format!("executor-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("tool");
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
        let denied = find_in("tool", directory.to_str().unwrap());
        assert_eq!(denied, Err("exec: \"tool\": permission denied".to_owned()));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
