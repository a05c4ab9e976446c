//! Users and groups of a container as the guest numbers them, and the programs `newuidmap` and `newgidmap`, by which
//! libcontainer writes several mappings of a user namespace: the agent itself, called by these names.

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespace, LinuxNamespaceType, Spec};
use std::io;
use std::path::Path;
use std::process::ExitCode;

/// Where they are.
pub const DIRECTORY: &str = "/run/kata-like/bin";

/// Name, and the file in `/proc/PID` that it writes.
const PROGRAMS: [(&str, &str); 2] = [("newuidmap", "uid_map"), ("newgidmap", "gid_map")];

/// A user and group of a container's, as the guest numbers them. What its user namespace does not map stays.
pub fn of_guest(spec: &Spec, (user, group): (u32, u32)) -> (u32, u32) {
    let Some(linux) = spec.linux().as_ref().filter(|_| has_users(spec)) else {
        return (user, group);
    };
    (mapped(linux.uid_mappings().as_ref(), user), mapped(linux.gid_mappings().as_ref(), group))
}

/// Whether the container gets a user namespace.
pub fn has_users(spec: &Spec) -> bool {
    let namespaces = spec.linux().iter().flat_map(|linux| linux.namespaces().iter().flatten());
    namespaces.map(LinuxNamespace::typ).any(|kind| kind == LinuxNamespaceType::User)
}

fn mapped(mappings: Option<&Vec<LinuxIdMapping>>, id: u32) -> u32 {
    let place = |line: &LinuxIdMapping| {
        let offset = id.checked_sub(line.container_id())?;
        (offset < line.size()).then(|| line.host_id().checked_add(offset))?
    };
    mappings.into_iter().flatten().find_map(place).unwrap_or(id)
}

/// Makes the names.
///
/// # Errors
/// The system's answer.
pub fn install() -> io::Result<()> {
    std::fs::create_dir_all(DIRECTORY)?;
    for (name, _) in PROGRAMS {
        std::os::unix::fs::symlink("/proc/1/exe", Path::new(DIRECTORY).join(name))?;
    }
    Ok(())
}

/// Does the work of the program by whose name this process was started; `None`: it is the agent.
pub fn run() -> Option<ExitCode> {
    let mut arguments = std::env::args();
    let name = arguments.next()?;
    let name = Path::new(&name).file_name()?.to_str()?.to_owned();
    let (_, file) = PROGRAMS.iter().find(|(program, _)| *program == name)?;
    let pid: u32 = arguments.next()?.parse().ok()?;
    let numbers: Vec<String> = arguments.collect();
    let text: String = numbers.chunks(3).map(|line| line.join(" ") + "\n").collect();
    let written = std::fs::write(format!("/proc/{pid}/{file}"), text);
    Some(if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ids_of_a_user_namespace_are_the_guests_elsewhere() {
        let spec = |namespaces| -> Spec {
            serde_json::from_value(json!({"ociVersion": "1.2.0", "linux": {
                "namespaces": namespaces,
                "uidMappings": [{"containerID": 0, "hostID": 100_000, "size": 10},
                    {"containerID": 10, "hostID": 500, "size": 2}],
                "gidMappings": [{"containerID": 0, "hostID": 4_294_967_295_u32, "size": 2}],
            }}))
            .unwrap()
        };
        let users = spec(json!([{"type": "user"}]));
        assert_eq!(of_guest(&users, (0, 0)), (100_000, u32::MAX));
        assert_eq!(of_guest(&users, (11, 7)), (501, 7));
        // What no mapping has, and what would be beyond the last id.
        assert_eq!(of_guest(&users, (12, 1)), (12, 1));
        assert_eq!(of_guest(&spec(json!([])), (3, 4)), (3, 4));
    }
}
