//! What the agent changes in a specification before libcontainer gets it, each rule with its reason.
//!
//! - The cgroup is `/containers/ID`: the host's path means nothing in the guest.
//! - `linux.seccomp` is taken out and compiled here: libcontainer would need a C library for it.
//! - Capabilities are widened when the filter needs them; see [`Privileges`].
//! - `HOME` is filled in from the container's own /etc/passwd: libcontainer would ask glibc,
//!   which may load name-service modules that the image brings along.

use crate::home;
use crate::privileges::Privileges;
use crate::seccomp::{self, UnsupportedFilter};
use oci_spec::runtime::{Linux, Process, Spec};
use std::path::{Path, PathBuf};

/// The cgroup that holds those of all containers, below the root of the hierarchy.
pub const CGROUP_PARENT: &str = "containers";

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
    /// See [`UnsupportedFilter`].
    #[error("linux.seccomp cannot be applied")]
    Seccomp(#[from] UnsupportedFilter),
}

/// Adapts a container's specification; what its init process is to be reduced to.
///
/// # Errors
/// See [`InvalidSpec`].
pub fn adapt_container(spec: &mut Spec, id: &str) -> Result<Privileges, InvalidSpec> {
    let rootfs = spec.root().as_ref().ok_or(InvalidSpec::Missing("root"))?.path().clone();
    let mut process = spec.process().clone().ok_or(InvalidSpec::Missing("process"))?;
    let mut linux = spec.linux().clone().ok_or(InvalidSpec::Missing("linux"))?;
    let privileges = adapt(&mut process, &linux, &rootfs)?;
    linux.set_seccomp(None);
    linux.set_cgroups_path(Some(PathBuf::from(format!("/{CGROUP_PARENT}/{id}"))));
    spec.set_process(Some(process));
    spec.set_linux(Some(linux));
    Ok(privileges)
}

/// Adapts one more process of a container, whose specification is as the host sent it.
///
/// # Errors
/// See [`InvalidSpec`].
pub fn adapt_process(process: &mut Process, spec: &Spec) -> Result<Privileges, InvalidSpec> {
    let rootfs = spec.root().as_ref().ok_or(InvalidSpec::Missing("root"))?.path();
    let linux = spec.linux().as_ref().ok_or(InvalidSpec::Missing("linux"))?;
    adapt(process, linux, rootfs)
}

fn adapt(process: &mut Process, linux: &Linux, rootfs: &Path) -> Result<Privileges, InvalidSpec> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(InvalidSpec::NoArgs);
    }
    if !process.cwd().is_absolute() {
        return Err(InvalidSpec::RelativeCwd(process.cwd().clone()));
    }
    let mut env = process.env().clone().unwrap_or_default();
    if !env.iter().any(|variable| variable.starts_with("HOME=")) {
        env.push(format!("HOME={}", home::of_user(rootfs, process.user().uid())));
        process.set_env(Some(env));
    }
    let filters = match linux.seccomp() {
        Some(profile) => seccomp::compile(profile)?,
        None => Vec::new(),
    };
    Ok(Privileges::take_over(process, filters))
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{Arch, LinuxSeccompAction, LinuxSeccompBuilder, SpecBuilder};

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
        let privileges = adapt_container(&mut spec, "c1").unwrap();
        assert_eq!(privileges.filters.len(), 1);
        assert!(spec.linux().as_ref().unwrap().seccomp().is_none());
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
}
