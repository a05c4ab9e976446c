//! What a pod is by the CRI's `PodSandboxConfig`, of which containerd makes nothing itself when its sandboxer is the
//! shim: what it otherwise does for the pause container's spec is done here.

use protobuf::well_known_types::any::Any;
use protobuf::{EnumOrUnknown, Message};
use protocol::cri::{
    DNSConfig, LinuxContainerResources, NamespaceMode, NamespaceOption, PodSandboxConfig,
    UserNamespace,
};
use sandbox::cgroup::Placement;
use sandbox::{Error, PodFile, PodSize, PodSpec, Result, SandboxSpec};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The type's name in the request.
const TYPE: &str = "runtime.v1.PodSandboxConfig";

/// Lets programs without privileges listen on any port, and ping, as containerd does by default.
const PORTS: (&str, &str) = ("net.ipv4.ip_unprivileged_port_start", "0");
const PING: (&str, &str) = ("net.ipv4.ping_group_range", "0 2147483647");

/// Longest file of the host's that is handed on, bytes.
const MAX_FILE: u64 = 1 << 20;

/// Reads the options of a create.
///
/// # Errors
/// [`Error::InvalidArgument`]: they are something else, or not there.
pub fn read(options: Option<&Any>) -> Result<PodSandboxConfig> {
    let invalid = |what: &str| Error::InvalidArgument(format!("options of the sandbox: {what}"));
    let options = options.ok_or_else(|| invalid("none"))?;
    if options.type_url.rsplit('/').next() != Some(TYPE) {
        return Err(invalid(&format!("they are a {}, not a {TYPE}", options.type_url)));
    }
    PodSandboxConfig::parse_from_bytes(&options.value).map_err(|e| invalid(&e.to_string()))
}

/// What sandbox `id` is, with this network namespace. Reads the host's own names. Blocks.
///
/// # Errors
/// [`Error::Unimplemented`] for what is only the host's; a file of the host's can't be read.
pub fn spec(config: &PodSandboxConfig, id: &str, network: Option<PathBuf>) -> Result<SandboxSpec> {
    let linux = config.linux.get_or_default();
    let namespaces = linux.security_context.namespace_options.get_or_default();
    check(namespaces)?;
    let hostname = match &config.hostname {
        name if name.is_empty() => read_host("/proc/sys/kernel/hostname")?.trim().to_owned(),
        name => name.clone(),
    };
    let resolv_conf = match config.dns_config.as_ref() {
        Some(dns) => resolv_conf(dns),
        None => read_host("/etc/resolv.conf")?,
    };
    let file = |name, text| PodFile { destination: Path::new("/etc").join(name), text };
    let files = vec![
        file("hostname", hostname.clone() + "\n"),
        file("hosts", read_host("/etc/hosts")?),
        file("resolv.conf", resolv_conf),
    ];
    let mut sysctls: BTreeMap<_, _> = linux.sysctls.clone().into_iter().collect();
    let has_users = is(namespaces.userns_options.get_or_default().mode, NamespaceMode::POD)
        && namespaces.userns_options.is_some();
    for (name, value) in [PORTS, PING] {
        // Whose groups the range would be is not the pod's to say then.
        if name != PING.0 || !has_users {
            sysctls.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
    }
    let pids_of_guest = is(namespaces.pid, NamespaceMode::NODE);
    Ok(SandboxSpec {
        hostname: Some(hostname),
        cgroup: cgroup(&linux.cgroup_parent, id).map(|path| Placement::told_by(&path)),
        size: size(linux.resources.get_or_default()),
        pod: Some(PodSpec { network, sysctls, pids_of_guest, files }),
    })
}

fn is(mode: EnumOrUnknown<NamespaceMode>, which: NamespaceMode) -> bool {
    mode.enum_value() == Ok(which)
}

/// As containerd has it with a pause container.
fn check(namespaces: &NamespaceOption) -> Result<()> {
    for (mode, word) in [(namespaces.network, "network"), (namespaces.ipc, "IPC")] {
        if is(mode, NamespaceMode::NODE) {
            return Err(Error::Unimplemented(format!(
                "a pod in a machine can't be in the host's {word} namespace"
            )));
        }
    }
    namespaces.userns_options.as_ref().map_or(Ok(()), check_users)
}

/// Users of a pod's own are one range of the host's, from its root on.
fn check_users(users: &UserNamespace) -> Result<()> {
    let refused = |what: String| Err(Error::InvalidArgument(format!("users of the pod: {what}")));
    for (ids, word) in [(&users.uids, "UID"), (&users.gids, "GID")] {
        match (users.mode.enum_value(), &ids[..]) {
            (Ok(NamespaceMode::POD), [one]) if one.container_id == 0 && one.length > 0 => {}
            (Ok(NamespaceMode::NODE), []) => {}
            (Ok(NamespaceMode::POD), [one]) if one.container_id != 0 => {
                return refused(format!("no {word} is mapped to 0, the pod's root"));
            }
            (Ok(NamespaceMode::POD), [one]) => {
                return refused(format!("a {word} mapping has length {}", one.length));
            }
            (Ok(NamespaceMode::POD | NamespaceMode::NODE), many) => {
                let (mode, count) = (users.mode, many.len());
                return refused(format!(
                    "{count} {word} mappings, which can't be with mode {mode:?}"
                ));
            }
            _ => return refused(format!("mode {:?} is not supported", users.mode)),
        }
    }
    Ok(())
}

/// What all containers of a pod together may use, as these say.
fn size(resources: &LinuxContainerResources) -> PodSize {
    let positive = |n: i64| u64::try_from(n).unwrap_or_default();
    PodSize {
        memory: positive(resources.memory_limit_in_bytes),
        cpu_quota: positive(resources.cpu_quota),
        cpu_period: positive(resources.cpu_period),
    }
}

/// Where containerd would put the pause container: below the pod's cgroup, in the form of who manages it.
pub fn cgroup(parent: &str, id: &str) -> Option<PathBuf> {
    let slice = parent.rsplit('/').next().filter(|name| name.strip_suffix(".slice").is_some());
    match slice {
        _ if parent.is_empty() => None,
        Some(slice) => Some(format!("{slice}:cri-containerd:{id}").into()),
        None => Some(Path::new(parent).join(id)),
    }
}

/// resolv.conf(5).
fn resolv_conf(dns: &DNSConfig) -> String {
    let mut text = String::new();
    let mut line = |word: &str, of: &[String]| {
        if !of.is_empty() {
            text.push_str(&format!("{word} {}\n", of.join(" ")));
        }
    };
    line("search", &dns.searches);
    for server in &dns.servers {
        line("nameserver", std::slice::from_ref(server));
    }
    line("options", &dns.options);
    text
}

fn read_host(path: &str) -> Result<String> {
    use std::io::Read as _;
    let mut text = Vec::new();
    let read = std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE).read_to_end(&mut text))
        .map_err(Error::path("read", path));
    read.map(|_| String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::cri::{IDMapping, LinuxPodSandboxConfig, LinuxSandboxSecurityContext};

    fn config() -> PodSandboxConfig {
        let strings = |all: &[&str]| all.iter().map(|&s| s.to_owned()).collect();
        PodSandboxConfig {
            hostname: "web".into(),
            dns_config: Some(DNSConfig {
                servers: strings(&["10.0.0.10", "fd00::10"]),
                searches: strings(&["a.local", "local"]),
                options: strings(&["ndots:5"]),
                ..Default::default()
            })
            .into(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: "/kubepods/pod1".into(),
                sysctls: [(PORTS.0.to_owned(), "1024".to_owned())].into(),
                resources: Some(LinuxContainerResources {
                    cpu_quota: -1,
                    cpu_period: 100_000,
                    memory_limit_in_bytes: 1 << 30,
                    ..Default::default()
                })
                .into(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        }
    }

    fn with(namespaces: NamespaceOption) -> PodSandboxConfig {
        let mut config = config();
        let context = LinuxSandboxSecurityContext {
            namespace_options: Some(namespaces).into(),
            ..Default::default()
        };
        config.linux.mut_or_insert_default().security_context = Some(context).into();
        config
    }

    fn text<'a>(spec: &'a SandboxSpec, name: &str) -> &'a str {
        let files = &spec.pod.as_ref().unwrap().files;
        &files.iter().find(|file| file.destination == Path::new("/etc").join(name)).unwrap().text
    }

    #[test]
    fn a_pod_is_what_its_configuration_says() {
        let spec = spec(&config(), "p", Some("/run/netns/n".into())).unwrap();
        assert_eq!(spec.hostname.as_deref(), Some("web"));
        assert_eq!(spec.cgroup, Some(Placement::Path("/kubepods/pod1/p".into())));
        assert_eq!(spec.size, PodSize { memory: 1 << 30, cpu_quota: 0, cpu_period: 100_000 });
        assert_eq!(text(&spec, "hostname"), "web\n");
        assert_eq!(
            text(&spec, "resolv.conf"),
            "search a.local local\nnameserver 10.0.0.10\nnameserver fd00::10\noptions ndots:5\n"
        );
        let pod = spec.pod.unwrap();
        assert_eq!(pod.network, Some("/run/netns/n".into()));
        let [ports, ping] = [PORTS.0, PING.0].map(|name| pod.sysctls[name].as_str());
        assert_eq!((ports, ping), ("1024", PING.1), "what is named is not overridden");
    }

    #[test]
    fn what_is_not_said_is_the_hosts() {
        let spec = spec(&PodSandboxConfig::new(), "p", None).unwrap();
        let read = |path: &str| std::fs::read_to_string(path).unwrap();
        assert_eq!(text(&spec, "hostname"), read("/proc/sys/kernel/hostname"));
        assert_eq!(text(&spec, "hosts"), read("/etc/hosts"));
        assert_eq!(text(&spec, "resolv.conf"), read("/etc/resolv.conf"));
        assert_eq!((spec.cgroup, spec.size), (None, PodSize::default()));
    }

    #[test]
    fn cgroups_are_named_for_who_manages_them() {
        let path = |parent| cgroup(parent, "p").map(|path| path.display().to_string());
        assert_eq!(path("/a/b").as_deref(), Some("/a/b/p"));
        assert_eq!(path("/a.slice/b.slice").as_deref(), Some("b.slice:cri-containerd:p"));
        assert_eq!(path(""), None);
    }

    #[test]
    fn namespaces_of_the_host_are_refused_but_for_that_of_processes() {
        let node = EnumOrUnknown::new(NamespaceMode::NODE);
        let refused = |namespaces| spec(&with(namespaces), "p", None).unwrap_err().to_string();
        let of = NamespaceOption::default;
        assert!(
            refused(NamespaceOption { network: node, ..of() }).contains("host's network namespace")
        );
        assert!(refused(NamespaceOption { ipc: node, ..of() }).contains("host's IPC namespace"));
        let spec = |namespaces| spec(&with(namespaces), "p", None).unwrap().pod.unwrap();
        assert!(spec(NamespaceOption { pid: node, ..of() }).pids_of_guest);
        let users = NamespaceOption { userns_options: Some(users(0, &[0])).into(), ..of() };
        assert!(!spec(users).sysctls.contains_key(PING.0));
    }

    /// In this mode, with a mapping that begins with each of these.
    fn users(mode: i32, first: &[u32]) -> UserNamespace {
        let mapping = |&container_id: &u32| IDMapping {
            host_id: 100_000,
            container_id,
            length: 65536,
            ..Default::default()
        };
        let ids: Vec<_> = first.iter().map(mapping).collect();
        let mode = EnumOrUnknown::from_i32(mode);
        UserNamespace { mode, uids: ids.clone(), gids: ids, ..Default::default() }
    }

    #[test]
    fn users_of_a_pods_own_are_one_range_with_a_root() {
        let check = |users| check_users(&users).map_err(|e| e.to_string());
        let (pod, container, node, target) = (0, 1, 2, 3);
        check(users(pod, &[0])).unwrap();
        check(users(node, &[])).unwrap();
        for (mode, first, words) in [
            (pod, &[][..], "0 UID mappings"),
            (pod, &[0, 1], "2 UID mappings"),
            (pod, &[1], "no UID is mapped to 0"),
            (node, &[0], "1 UID mappings"),
            (container, &[0], "CONTAINER is not supported"),
            (target, &[0], "TARGET is not supported"),
            (77, &[0], "77"),
        ] {
            let error = check(users(mode, first)).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        let lacking = UserNamespace { gids: Vec::new(), ..users(pod, &[0]) };
        assert!(check(lacking).unwrap_err().contains("0 GID mappings"));
        let mut empty = users(pod, &[0]);
        empty.uids[0].length = 0;
        assert!(check(empty).unwrap_err().contains("length 0"));
    }

    #[test]
    fn options_that_are_no_pod_are_refused() {
        let any = |url: &str, value: Vec<u8>| Any { type_url: url.into(), value, ..Any::default() };
        let bytes = config().write_to_bytes().unwrap();
        assert_eq!(read(Some(&any(TYPE, bytes.clone()))).unwrap(), config());
        assert_eq!(
            read(Some(&any("types.googleapis.com/runtime.v1.PodSandboxConfig", bytes))).unwrap(),
            config()
        );
        let refused = |options: Option<&Any>| read(options).unwrap_err().to_string();
        assert!(refused(None).contains("none"));
        assert!(refused(Some(&any("a.B", Vec::new()))).contains("a.B"));
        assert!(refused(Some(&any(TYPE, vec![0xff]))).contains("options of the sandbox"));
    }
}
