//! `startContainer` hooks: programs of the container that run between its start and its own program, as the
//! user, with the privileges, behind the filter and in the directory of that program.

use libcontainer::container::{ContainerStatus, State};
use oci_spec::runtime::Hook;
use std::collections::HashMap;
use std::ffi::CStr;
use std::io::Write as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How often it is looked whether a hook that has only so much time has ended.
const LOOK: Duration = Duration::from_millis(10);

/// What a hook is told of its container on stdin. Of the first process the container knows the pid.
pub fn state(id: &str, bundle: &Path, annotations: Option<HashMap<String, String>>) -> State {
    let mut state = State::new(id, ContainerStatus::Created, None, bundle.to_owned());
    state.annotations = annotations;
    state
}

/// Runs them one after the other; the first that fails ends the container, as with runc.
///
/// # Errors
/// For people.
pub fn run(hooks: &[Hook], state: &State, environment: &[String]) -> Result<(), String> {
    let state = State { pid: Some(std::process::id() as i32), ..state.clone() };
    let told = oci_spec::runtime::State::try_from(&state).map_err(|e| e.to_string());
    let told = told.and_then(|state| serde_json::to_vec(&state).map_err(|e| e.to_string()))?;
    for (index, hook) in hooks.iter().enumerate() {
        run_one(hook, &told, environment)
            .map_err(|error| format!("error running startContainer hook #{index}: {error}"))?;
    }
    Ok(())
}

/// Without variables of its own it has the container's.
fn run_one(hook: &Hook, state: &[u8], environment: &[String]) -> Result<(), String> {
    let mut command = Command::new(hook.path());
    if let Some((name, arguments)) = hook.args().as_ref().and_then(|args| args.split_first()) {
        command.arg0(name).args(arguments);
    }
    let variables = hook.env().as_deref().unwrap_or(environment);
    command.env_clear().envs(variables.iter().filter_map(|variable| variable.split_once('=')));
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::inherit());
    let mut child = command.spawn().map_err(|e| format!("{}: {e}", hook.path().display()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read it is free to.
        let _ = stdin.write_all(state);
    }
    let status = match hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()) {
        Some(seconds) => within(&mut child, Duration::from_secs(seconds))?,
        None => child.wait().map_err(|e| e.to_string())?,
    };
    if status.success() { Ok(()) } else { Err(told(status)) }
}

/// Waits for a hook, and kills it when its time is over.
fn within(child: &mut Child, time: Duration) -> Result<ExitStatus, String> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            return Ok(status);
        }
        std::thread::sleep(LOOK);
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(format!("not done within {} s", time.as_secs()))
}

/// As runc says it.
fn told(status: ExitStatus) -> String {
    let Some(signal) = status.signal() else {
        return format!("exit status {}", status.code().unwrap_or_default());
    };
    // SAFETY: any number is allowed; the text is read before anybody else here asks for another.
    let name = unsafe {
        let name = libc::strsignal(signal);
        if name.is_null() { None } else { Some(CStr::from_ptr(name).to_string_lossy()) }
    };
    let name = name.map_or_else(|| signal.to_string(), |name| name.to_lowercase());
    let core = if status.core_dumped() { " (core dumped)" } else { "" };
    format!("signal: {name}{core}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run_script(script: &str, timeout: Option<i64>) -> Result<(), String> {
        let mut hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
        if let Some(seconds) = timeout {
            hook["timeout"] = json!(seconds);
        }
        let hook: Hook = serde_json::from_value(hook).unwrap();
        run(&[hook], &state("c1", Path::new("/bundle"), None), &["WORD=own".to_owned()])
    }

    #[test]
    fn a_hook_has_the_state_and_the_environment() {
        run_script("grep -q '\"id\":\"c1\"' && test $WORD = own", None).unwrap();
        run_script("exit 0", Some(10)).unwrap();
    }

    #[test]
    fn how_it_ended_is_said() {
        for (script, timeout, words) in [
            ("exit 3", None, "error running startContainer hook #0: exit status 3"),
            ("kill -SYS $$", None, "signal: bad system call"),
            ("kill -9 $$", Some(10), "signal: killed"),
            ("sleep 100", Some(0), "not done within 0 s"),
        ] {
            let error = run_script(script, timeout).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
