//! What the agent changes in a specification before libcontainer gets it, each rule with its reason.
//!
//! - The cgroup is `/containers/ID`: the host's path means nothing in the guest.
//! - `linux.resources.devices` are taken out and become a BPF program; see [`crate::spec::device_rules`].
//! - The weight of block I/O becomes a file; see [`io_weight`].
//! - Sysctls of namespaces that are the guest's own are taken out: libcontainer would refuse them.
//! - `linux.seccomp` is taken out and compiled here: libcontainer would need a C library for it.
//! - `startContainer` hooks are run by the executor, when the process has been reduced to what it is to be:
//!   libcontainer would run them before.
//! - Capabilities are widened when the filter needs them; see [`Privileges`].
//! - `HOME`, where it is not set or empty, is filled in from the container's own /etc/passwd: libcontainer would ask glibc,
//!   which may load name-service modules that the image brings along.
//! - A variable that is set twice has its last value in its first place, as Go's `os.Setenv` leaves it.

mod affinity;
pub mod dev_nodes;
pub mod device_rules;
mod home;
pub mod id_maps;
pub mod io_weight;
pub mod late_mounts;
pub mod limits;
mod mounts;
mod place;
pub mod privileges;
pub mod seccomp;

use crate::guest::{cgroup, sysctl};
use oci_spec::runtime::{
    Hook, Linux, LinuxDeviceCgroup, LinuxNamespace, LinuxResources, Process, Spec,
};
use privileges::Privileges;
use seccomp::{Compiled, UnsupportedFilter};
use std::collections::HashMap;
use std::path::PathBuf;

/// Why a specification cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSpec {
    /// A part that the OCI specification has as optional and a container in a guest needs.
    #[error("the specification has no `{0}`")]
    Missing(&'static str),
    /// `process.cwd` is not absolute.
    #[error("process.cwd {0:?} is not an absolute path")]
    RelativeCwd(PathBuf),
    /// `process.args` is empty.
    #[error("process.args must not be empty")]
    NoArgs,
    /// A variable without a value.
    #[error("process.env {0:?} is not NAME=VALUE")]
    Variable(String),
    /// See [`UnsupportedFilter`].
    #[error("linux.seccomp cannot be applied")]
    Seccomp(#[from] UnsupportedFilter),
    /// See [`io_weight`].
    #[error("linux.resources: {0}")]
    Weight(#[from] io_weight::NoWeight),
}

/// What the agent does itself of a container's specification.
#[derive(Debug)]
pub struct Own {
    /// What its init process is to be reduced to.
    pub privileges: Privileges,
    /// Which devices its processes may use.
    pub devices: Vec<LinuxDeviceCgroup>,
    /// To be set in the guest, by name.
    pub sysctls: HashMap<String, String>,
    /// To be set when the first process is ready.
    pub late_limits: LinuxResources,
    /// To be run in the container between the start and the program.
    pub hooks: Vec<Hook>,
}

/// Adapts a container's specification.
///
/// # Errors
/// See [`InvalidSpec`].
pub fn adapt_container(spec: &mut Spec, id: &str) -> Result<Own, InvalidSpec> {
    spec.root().as_ref().ok_or(InvalidSpec::Missing("root"))?;
    let mut process = spec.process().clone().ok_or(InvalidSpec::Missing("process"))?;
    let mut linux = spec.linux().clone().ok_or(InvalidSpec::Missing("linux"))?;
    let privileges = adapt(&mut process, &linux, spec)?;
    linux.set_seccomp(None);
    linux.set_cgroups_path(Some(PathBuf::from(format!("/{}/{id}", cgroup::PARENT))));
    let devices = linux.resources_mut().as_mut().and_then(|r| r.devices_mut().take());
    let sysctls = take_guests_sysctls(&mut linux);
    let hooks = spec.hooks().as_ref().and_then(|hooks| hooks.start_container().clone());
    spec.set_hooks(None);
    spec.set_process(Some(process));
    let (devices, hooks) = (devices.unwrap_or_default(), hooks.unwrap_or_default());
    linux.resources_mut().as_mut().map_or(Ok(()), io_weight::to_file)?;
    let late_limits = linux.resources_mut().as_mut().map(take_late_limits).unwrap_or_default();
    spec.set_linux(Some(linux));
    Ok(Own { privileges, devices, sysctls, late_limits, hooks })
}

/// Adapts one more process of a container, whose specification is as the host sent it.
///
/// # Errors
/// See [`InvalidSpec`].
pub fn adapt_process(process: &mut Process, spec: &Spec) -> Result<Privileges, InvalidSpec> {
    let linux = spec.linux().as_ref().ok_or(InvalidSpec::Missing("linux"))?;
    if let Some(init) = spec.process() {
        inherit(process, init);
    }
    affinity::keep_possible(process);
    adapt(process, linux, spec)
}

/// What a process has of the container's first one where it does not say otherwise, as with runc.
fn inherit(process: &mut Process, init: &Process) {
    if process.capabilities().is_none() {
        process.set_capabilities(init.capabilities().clone());
    }
    if process.no_new_privileges().is_none() {
        process.set_no_new_privileges(init.no_new_privileges());
    }
    if process.rlimits().as_ref().is_none_or(Vec::is_empty) {
        process.set_rlimits(init.rlimits().clone());
    }
    if process.io_priority().is_none() {
        process.set_io_priority(*init.io_priority());
    }
    if process.scheduler().is_none() {
        process.set_scheduler(init.scheduler().clone());
    }
    if process.exec_cpu_affinity().is_none() {
        process.set_exec_cpu_affinity(init.exec_cpu_affinity().clone());
    }
}

/// Limits of processor time and of processes: within small ones libcontainer, which takes two processes for it, would
/// not make the container, or take minutes.
fn take_late_limits(resources: &mut LinuxResources) -> LinuxResources {
    let mut taken = LinuxResources::default();
    taken.set_devices(None);
    taken.set_cpu(resources.cpu().clone()).set_pids(*resources.pids());
    resources.set_cpu(None).set_pids(None);
    if let Some(unified) = resources.unified().clone() {
        let is_late = |name: &str| name.starts_with("cpu.") || name.starts_with("pids.");
        let (late, rest) = unified.into_iter().partition(|(name, _)| is_late(name));
        taken.set_unified(Some(late));
        resources.set_unified(Some(rest));
    }
    taken
}

/// Those of the namespaces that the container shares with the guest.
fn take_guests_sysctls(linux: &mut Linux) -> HashMap<String, String> {
    let own: Vec<_> = linux.namespaces().iter().flatten().map(LinuxNamespace::typ).collect();
    let is_guests =
        |name: &str| sysctl::namespace(name).is_some_and(|namespace| !own.contains(&namespace));
    let all = linux.sysctl().clone().unwrap_or_default();
    let (guests, containers) = all.into_iter().partition(|(name, _)| is_guests(name));
    linux.set_sysctl(Some(containers));
    guests
}

fn adapt(process: &mut Process, linux: &Linux, spec: &Spec) -> Result<Privileges, InvalidSpec> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(InvalidSpec::NoArgs);
    }
    if !process.cwd().is_absolute() {
        return Err(InvalidSpec::RelativeCwd(process.cwd().clone()));
    }
    let mut env = each_once(process.env().as_deref().unwrap_or_default())?;
    env.retain(|variable| variable != "HOME=");
    if !env.iter().any(|variable| variable.starts_with("HOME=")) {
        env.push(format!("HOME={}", home::of_user(spec, process.user().uid())));
    }
    process.set_env(Some(env));
    let compiled = match linux.seccomp() {
        Some(profile) => seccomp::compile(profile)?,
        None => Compiled::default(),
    };
    let owner = id_maps::of_guest(spec, (process.user().uid(), process.user().gid()));
    Ok(Privileges::take_over(process, owner, compiled))
}

fn each_once(env: &[String]) -> Result<Vec<String>, InvalidSpec> {
    let mut all: Vec<String> = Vec::new();
    for variable in env {
        let Some((name, _)) = variable.split_once('=') else {
            return Err(InvalidSpec::Variable(variable.clone()));
        };
        let known = |old: &&mut String| old.split('=').next() == Some(name);
        match all.iter_mut().find(known) {
            Some(old) => old.clone_from(variable),
            None => all.push(variable.clone()),
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{Arch, LinuxSeccompAction, LinuxSeccompBuilder, SpecBuilder};
    use std::path::Path;

    fn spec() -> Spec {
        SpecBuilder::default().build().unwrap()
    }

    #[test]
    fn the_hosts_cgroup_path_is_replaced() {
        let mut spec = spec();
        adapt_container(&mut spec, "c1").unwrap();
        let path = spec.linux().as_ref().unwrap().cgroups_path().clone().unwrap();
        assert_eq!(path, Path::new("/containers/c1"));
    }

    #[test]
    fn the_filter_moves_from_the_spec_to_the_privileges() {
        let mut spec = spec();
        let profile = LinuxSeccompBuilder::default()
            .default_action(LinuxSeccompAction::ScmpActErrno)
            .architectures(vec![Arch::ScmpArchX86_64])
            .build()
            .unwrap();
        let mut linux = spec.linux().clone().unwrap();
        linux.set_seccomp(Some(profile));
        spec.set_linux(Some(linux));
        let privileges = adapt_container(&mut spec, "c1").unwrap().privileges;
        assert_eq!(privileges.filters.len(), 1);
        assert!(spec.linux().as_ref().unwrap().seccomp().is_none());
    }

    #[test]
    fn sysctls_of_the_guests_namespaces_and_device_rules_are_the_agents() {
        let mut spec = spec();
        let linux = serde_json::json!({
            "namespaces": [{"type": "ipc"}],
            "sysctl": {"net.ipv4.ip_forward": "1", "kernel.shmmax": "7", "kernel/domainname": "d"},
            "resources": {"devices": [{"allow": true}]},
        });
        spec.set_linux(Some(serde_json::from_value(linux).unwrap()));
        let own = adapt_container(&mut spec, "c1").unwrap();
        let mut names: Vec<_> = own.sysctls.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["kernel/domainname", "net.ipv4.ip_forward"]);
        let left = spec.linux().as_ref().unwrap();
        assert_eq!(left.sysctl().as_ref().unwrap().len(), 1);
        assert_eq!(own.devices.len(), 1);
    }

    #[test]
    fn limits_that_hinder_the_making_come_last() {
        let mut spec = spec();
        let linux = serde_json::json!({ "resources": {
            "cpu": {"quota": 1000}, "pids": {"limit": 0}, "memory": {"limit": 1 << 30},
            "unified": {"cpu.idle": "1", "pids.max": "1", "memory.high": "max"},
            "blockIO": {"weight": 750},
        }});
        spec.set_linux(Some(serde_json::from_value(linux).unwrap()));
        let late = adapt_container(&mut spec, "c1").unwrap().late_limits;
        let left = spec.linux().as_ref().unwrap().resources().clone().unwrap();
        assert!(left.cpu().is_none() && left.pids().is_none() && left.memory().is_some());
        assert!(late.memory().is_none());
        assert_eq!(late.cpu().as_ref().unwrap().quota(), Some(1000));
        assert_eq!(late.pids().unwrap().limit(), 0);
        let names = |resources: &LinuxResources| {
            let mut names: Vec<_> = resources.unified().clone().unwrap().into_keys().collect();
            names.sort_unstable();
            names
        };
        assert_eq!(names(&late), ["cpu.idle", "pids.max"]);
        assert_eq!(names(&left), ["io.weight", "memory.high"]);
    }

    #[test]
    fn a_variable_is_set_once_and_has_a_value() {
        let env = ["A=1", "B=2", "A=3"].map(str::to_owned);
        assert_eq!(each_once(&env).unwrap(), ["A=3", "B=2"]);
        assert!(each_once(&["A".to_owned()]).unwrap_err().to_string().contains("\"A\""));
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut without = spec();
        without.set_process(None);
        assert_eq!(
            adapt_container(&mut without, "c").unwrap_err().to_string(),
            "the specification has no `process`"
        );
        let mut without = spec();
        without.set_linux(None);
        assert!(matches!(adapt_container(&mut without, "c"), Err(InvalidSpec::Missing("linux"))));
        let mut without = spec();
        let mut process = without.process().clone().unwrap();
        process.set_args(Some(Vec::new()));
        without.set_process(Some(process));
        assert!(matches!(adapt_container(&mut without, "c"), Err(InvalidSpec::NoArgs)));
    }

    #[test]
    fn home_is_set_once() {
        let mut spec = spec();
        adapt_container(&mut spec, "c1").unwrap();
        let env = spec.process().as_ref().unwrap().env().clone().unwrap();
        assert_eq!(env.iter().filter(|v| v.starts_with("HOME=")).count(), 1);
        let mut process = spec.process().clone().unwrap();
        adapt_process(&mut process, &spec).unwrap();
        assert_eq!(process.env().clone().unwrap(), env);
    }

    #[test]
    fn an_empty_home_is_as_good_as_none() {
        let mut spec = spec();
        let mut process = spec.process().clone().unwrap();
        process.set_env(Some(["HOME=/x", "A=1", "HOME="].map(str::to_owned).into()));
        spec.set_process(Some(process));
        adapt_container(&mut spec, "c1").unwrap();
        assert_eq!(spec.process().as_ref().unwrap().env().clone().unwrap(), ["A=1", "HOME=/"]);
    }

    #[test]
    fn a_process_has_what_it_does_not_say_of_the_first_one() {
        let mut spec = spec();
        let says = serde_json::json!({
            "cwd": "/", "args": ["a"], "user": {"uid": 0, "gid": 0}, "noNewPrivileges": true,
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}],
            "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4},
            "scheduler": {"policy": "SCHED_BATCH", "nice": 19}, "execCPUAffinity": {"final": "0"},
        });
        let init: Process = serde_json::from_value(says).unwrap();
        spec.set_process(Some(init.clone()));
        let says = serde_json::json!({"cwd": "/", "args": ["b"], "user": {"uid": 0, "gid": 0}});
        let mut process: Process = serde_json::from_value(says).unwrap();
        adapt_process(&mut process, &spec).unwrap();
        assert_eq!(process.no_new_privileges(), Some(true));
        assert_eq!(process.rlimits(), init.rlimits());
        assert_eq!(process.io_priority(), init.io_priority());
        assert_eq!(process.scheduler(), init.scheduler());
        assert_eq!(process.exec_cpu_affinity(), init.exec_cpu_affinity());
        let own = serde_json::json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0});
        process.set_io_priority(Some(serde_json::from_value(own).unwrap()));
        let before = process.clone();
        adapt_process(&mut process, &spec).unwrap();
        assert_eq!(process.io_priority(), before.io_priority());
    }
}
