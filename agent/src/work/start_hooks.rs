//! `startContainer` hooks: programs of the container that run between its start and its own program, as the
//! user, with the privileges, behind the filter and in the directory of that program.

use libcontainer::container::{ContainerStatus, State};
use libcontainer::hooks::run_hooks;
use oci_spec::runtime::Hook;
use std::collections::HashMap;
use std::path::Path;

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
    let variables = environment.iter().filter_map(|variable| variable.split_once('='));
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let state = State { pid: Some(std::process::id() as i32), ..state.clone() };
    for (index, hook) in hooks.iter().enumerate() {
        run_hooks(Some(&vec![hook.clone()]), Some(&state), None, None, Some(&variables))
            .map_err(|error| format!("error running startContainer hook #{index}: {error}"))?;
    }
    Ok(())
}
