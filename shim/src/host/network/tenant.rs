//! Whose a network namespace is. A guest takes its interfaces over, so that whoever else lives in it is offline: an
//! engine's `--network container:NAME` would end the other container's network. What is made for a sandbox (by CNI, an
//! engine or `ip netns`) has no processes; the processes that do something in it for a moment are threads of others, or
//! soon gone.

use super::error::NetworkError;
use super::namespace::Namespace;
use std::path::{Component, Path};
use std::time::{Duration, Instant};

/// How long who has set a namespace up may take to leave it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Refuses a namespace that is another's: by its path one of a process, or with a process in it. Blocks.
///
/// # Errors
/// [`NetworkError::Anothers`], or the system does not tell.
pub fn refuse_anothers(namespace: &Namespace) -> Result<(), NetworkError> {
    let anothers = |pid| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let (path, name) = (namespace.path().to_owned(), name.trim().to_owned());
        Err(NetworkError::Anothers { path, pid, name })
    };
    if let Some(pid) = process_of(namespace.path()) {
        return anothers(pid);
    }
    let end = Instant::now() + PATIENCE;
    while let Some(pid) = tenant(namespace)? {
        if Instant::now() >= end {
            return anothers(pid);
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Which process a path names the network namespace of.
fn process_of(path: &Path) -> Option<u32> {
    let mut parts = path.components().map(Component::as_os_str).map(|part| part.to_str());
    let begins = [parts.next(), parts.next()] == [Some(Some("/")), Some(Some("proc"))];
    let pid = parts.next()??.parse().ok()?;
    let ends: Vec<_> = parts.collect();
    (begins && ends.ends_with(&[Some("ns"), Some("net")])).then_some(pid)
}

/// A process that is in it.
fn tenant(namespace: &Namespace) -> Result<Option<u32>, NetworkError> {
    let link = format!("net:[{}]", namespace.identity().1);
    let all = std::fs::read_dir("/proc").map_err(NetworkError::Look)?;
    let pids = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    // Of one that ends meanwhile, or is no more than a zombie, there is none.
    let is_in = |pid: &u32| {
        let of = std::fs::read_link(format!("/proc/{pid}/ns/net"));
        of.is_ok_and(|of| of.as_os_str() == link.as_str())
    };
    Ok(pids.into_iter().find(is_in))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::network::testing::Sleeper;
    use std::fs::File;
    use std::os::fd::AsRawFd as _;

    #[test]
    fn a_namespace_that_another_process_is_in_is_not_a_guests() {
        let sleeper = Sleeper::new();
        let pid = sleeper.pid();
        let file = File::open(sleeper.path()).unwrap();
        let by_other_path = format!("/proc/self/fd/{}", file.as_raw_fd());
        for path in [&sleeper.path(), &by_other_path] {
            let namespace = Namespace::open(Path::new(path)).unwrap();
            let error = refuse_anothers(&namespace).unwrap_err().to_string();
            let said =
                format!("network namespace {path} is another's: process {pid} (sleep) is in it");
            assert!(error.starts_with(&said), "{error}");
        }
        drop(sleeper);
        refuse_anothers(&Namespace::open(Path::new(&by_other_path)).unwrap()).unwrap();
    }

    #[test]
    fn who_is_about_to_leave_is_no_hindrance() {
        let sleeper = Sleeper::new();
        let file = File::open(sleeper.path()).unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let namespace = Namespace::open(Path::new(&path)).unwrap();
        let leaving = std::thread::spawn(move || {
            std::thread::sleep(PAUSE * 2);
            drop(sleeper);
        });
        refuse_anothers(&namespace).unwrap();
        leaving.join().unwrap();
    }

    #[test]
    fn paths_of_processes_are_known() {
        for (path, pid) in [
            ("/proc/12/ns/net", Some(12)),
            ("/proc//12/task/13/ns/net", Some(12)),
            ("/run/netns/12", None),
            ("/proc/self/fd/12", None),
            ("/proc/12/fd/3", None),
            ("/run/proc/12/ns/net", None),
        ] {
            assert_eq!(process_of(Path::new(path)), pid, "{path}");
        }
    }
}
