//! The OCI spec of a container: an image's configuration and the command line made into one, or a bundle's
//! with the command line over it.

use super::Arguments;
use crate::image::Account;
use anyhow::{Context, Result, bail};
use oci_spec::image::Config;
use oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxNamespaceBuilder, LinuxNamespaceType,
    Mount, MountBuilder, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
    get_default_maskedpaths, get_default_readonly_paths,
};
use sandbox::seccomp::default_profile;
use std::path::{Path, PathBuf};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a container's root may do unless it is told otherwise: what Docker and containerd agree on.
const CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Destination, type, options.
const MOUNTS: [(&str, &str, &str); 7] = [
    ("/proc", "proc", "nosuid,noexec,nodev"),
    ("/dev", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
    ("/dev/pts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
    ("/dev/shm", "tmpfs", "nosuid,noexec,nodev,mode=1777,size=65536k"),
    ("/dev/mqueue", "mqueue", "nosuid,noexec,nodev"),
    ("/sys", "sysfs", "nosuid,noexec,nodev,ro"),
    ("/sys/fs/cgroup", "cgroup", "nosuid,noexec,nodev,relatime,ro"),
];

/// No network namespace: the guest's only network is the container's.
const NAMESPACES: [LinuxNamespaceType; 5] = [
    LinuxNamespaceType::Pid,
    LinuxNamespaceType::Ipc,
    LinuxNamespaceType::Uts,
    LinuxNamespaceType::Mount,
    LinuxNamespaceType::Cgroup,
];

/// Puts the command line over a bundle's spec.
pub(super) fn adapt_bundle(spec: &mut Spec, arguments: &Arguments) -> Result<()> {
    if arguments.user.is_some() || arguments.entrypoint.is_some() {
        bail!("--user and --entrypoint are for images; a bundle has them in its config.json");
    }
    let process = spec.process_mut().as_mut().context("config.json: no process")?;
    if !arguments.command.is_empty() {
        process.set_args(Some(arguments.command.clone()));
    }
    let env = process.env().clone().unwrap_or_default();
    process.set_env(Some(environment(env, &arguments.env)?));
    if let Some(directory) = &arguments.workdir {
        process.set_cwd(directory.clone());
    }
    if arguments.tty {
        process.set_terminal(Some(true));
    }
    if arguments.read_only
        && let Some(root) = spec.root_mut()
    {
        root.set_readonly(Some(true));
    }
    spec.mounts_mut().get_or_insert_default().extend(volumes(&arguments.volume)?);
    Ok(())
}

/// The spec of an image that is unpacked to `rootfs`.
pub(super) fn of_image(
    config: Option<&Config>,
    account: &Account,
    rootfs: PathBuf,
    arguments: &Arguments,
) -> Result<Spec> {
    let part = |part: Option<&Vec<String>>| part.cloned().unwrap_or_default();
    let args = command(
        part(config.and_then(|config| config.entrypoint().as_ref())),
        part(config.and_then(|config| config.cmd().as_ref())),
        arguments,
    )?;
    let mut env = part(config.and_then(|config| config.env().as_ref()));
    if !env.iter().any(|variable| variable.starts_with("PATH=")) {
        env.push(PATH.into());
    }
    if !env.iter().any(|variable| variable.starts_with("HOME=")) {
        env.push(format!("HOME={}", account.home));
    }
    if arguments.tty && !env.iter().any(|variable| variable.starts_with("TERM=")) {
        env.push(format!("TERM={}", std::env::var("TERM").unwrap_or_else(|_| "xterm".into())));
    }
    let directory =
        config.and_then(|config| config.working_dir().clone()).filter(|d| !d.is_empty());
    let directory = arguments.workdir.clone().or(directory.map(Into::into));
    let user = UserBuilder::default()
        .uid(account.uid)
        .gid(account.gid)
        .additional_gids(account.groups.clone())
        .build()?;
    let process = ProcessBuilder::default()
        .terminal(arguments.tty)
        .user(user)
        .args(args)
        .env(environment(env, &arguments.env)?)
        .cwd(directory.unwrap_or_else(|| "/".into()))
        .capabilities(capabilities()?)
        .no_new_privileges(false)
        .build()?;
    let root = RootBuilder::default().path(rootfs).readonly(arguments.read_only).build()?;
    let mut mounts: Vec<Mount> = MOUNTS.into_iter().map(default_mount).collect::<Result<_>>()?;
    mounts.extend(volumes(&arguments.volume)?);
    let linux = LinuxBuilder::default()
        .namespaces(
            NAMESPACES
                .into_iter()
                .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build())
                .collect::<Result<Vec<_>, _>>()?,
        )
        .seccomp(default_profile()?)
        .masked_paths(get_default_maskedpaths())
        .readonly_paths(get_default_readonly_paths())
        .build()?;
    let spec = SpecBuilder::default()
        .version("1.0.2")
        .process(process)
        .root(root)
        .mounts(mounts)
        .linux(linux)
        .build()?;
    Ok(spec)
}

fn capabilities() -> Result<oci_spec::runtime::LinuxCapabilities> {
    Ok(LinuxCapabilitiesBuilder::default()
        .bounding(CAPABILITIES)
        .effective(CAPABILITIES)
        .permitted(CAPABILITIES)
        .inheritable([])
        .ambient([])
        .build()?)
}

fn default_mount((destination, kind, options): (&str, &str, &str)) -> Result<Mount> {
    Ok(MountBuilder::default()
        .destination(destination)
        .typ(kind)
        .source(kind)
        .options(options.split(',').map(ToOwned::to_owned).collect::<Vec<_>>())
        .build()?)
}

/// Entrypoint and command: what is given replaces the image's, and an entrypoint its command too.
fn command(
    entrypoint: Vec<String>,
    cmd: Vec<String>,
    arguments: &Arguments,
) -> Result<Vec<String>> {
    let (mut args, cmd) = match &arguments.entrypoint {
        Some(entrypoint) => (vec![entrypoint.clone()], Vec::new()),
        None => (entrypoint, cmd),
    };
    args.extend(if arguments.command.is_empty() { cmd } else { arguments.command.clone() });
    if args.is_empty() {
        bail!("the image names no command: give one");
    }
    Ok(args)
}

/// Variables, each with its last value.
fn environment(mut env: Vec<String>, more: &[String]) -> Result<Vec<String>> {
    for text in more {
        let Some(new) = variable(text)? else { continue };
        let name = new.split_inclusive('=').next().unwrap_or_default().to_owned();
        env.retain(|old| !old.starts_with(&name));
        env.push(new);
    }
    Ok(env)
}

/// `NAME=VALUE`, or the value that `NAME` has here.
fn variable(text: &str) -> Result<Option<String>> {
    if text.starts_with('=') || text.is_empty() {
        bail!("--env {text:?} has no name");
    }
    if text.contains('=') {
        return Ok(Some(text.to_owned()));
    }
    Ok(std::env::var(text).ok().map(|value| format!("{text}={value}")))
}

fn volumes(texts: &[String]) -> Result<Vec<Mount>> {
    texts.iter().map(|text| volume(text).with_context(|| format!("--volume {text}"))).collect()
}

fn volume(text: &str) -> Result<Mount> {
    let mut parts = text.split(':');
    let (Some(source), Some(destination), option, None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        bail!("it is HOST:CONTAINER or HOST:CONTAINER:ro");
    };
    let access = match option {
        None | Some("rw") => "rw",
        Some("ro") => "ro",
        Some(other) => bail!("unknown option {other:?}"),
    };
    if !Path::new(destination).is_absolute() {
        bail!("{destination} is not an absolute path");
    }
    let source = Path::new(source).canonicalize().with_context(|| source.to_owned())?;
    Ok(MountBuilder::default()
        .destination(destination)
        .typ("bind")
        .source(source)
        .options(vec!["rbind".to_owned(), access.to_owned()])
        .build()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parsed::parsed;

    fn arguments(words: &[&str]) -> Arguments {
        parsed(words).unwrap()
    }

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn commands_are_put_together_as_docker_does() {
        let (entrypoint, cmd) = (strings(&["entry"]), strings(&["default"]));
        for (words, expected) in [
            (&["image"][..], &["entry", "default"][..]),
            (&["image", "ls", "-l"], &["entry", "ls", "-l"]),
            (&["--entrypoint", "sh", "image"], &["sh"]),
            (&["--entrypoint", "sh", "image", "-c", "true"], &["sh", "-c", "true"]),
        ] {
            let args = command(entrypoint.clone(), cmd.clone(), &arguments(words)).unwrap();
            assert_eq!(args, strings(expected));
        }
        assert!(command(vec![], vec![], &arguments(&["image"])).is_err());
    }

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let env = environment(strings(&["A=1", "AB=2"]), &strings(&["A=3", "C=", "NOT_SET_HERE"]));
        assert_eq!(env.unwrap(), strings(&["AB=2", "A=3", "C="]));
        assert!(environment(vec![], &strings(&["=x"])).is_err());
    }

    #[test]
    fn volumes_are_read_only_when_they_say_so() {
        let options = |text: &str| volume(text).unwrap().options().clone().unwrap();
        assert_eq!(options("/etc:/x"), ["rbind", "rw"]);
        assert_eq!(options("/etc:/x:ro"), ["rbind", "ro"]);
        for bad in ["/etc", "/etc:x", "/etc:/x:maybe", "/nowhere:/x", "/etc:/x:ro:y"] {
            assert!(volume(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_images_settings_are_in_the_spec_and_the_command_line_is_over_them() {
        let json = r#"{"User": "web", "Env": ["A=1"], "Cmd": ["serve"], "WorkingDir": "/srv"}"#;
        let config: Config = serde_json::from_str(json).unwrap();
        let account = Account { uid: 33, gid: 34, groups: vec![70], home: "/home/web".into() };
        let make = |words: &[&str]| {
            of_image(Some(&config), &account, "/rootfs".into(), &arguments(words)).unwrap()
        };
        let spec = make(&["image"]);
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.user().uid(), 33);
        assert_eq!(process.args().as_deref().unwrap(), ["serve"]);
        assert_eq!(process.cwd(), Path::new("/srv"));
        let env = process.env().as_deref().unwrap();
        assert_eq!(env, ["A=1", PATH, "HOME=/home/web"]);
        assert!(spec.linux().as_ref().unwrap().seccomp().is_some());
        assert!(!crate::monitor::has_terminal(&spec));
        let spec = make(&["-it", "-w", "/tmp", "-e", "A=2", "--read-only", "image", "sh"]);
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.cwd(), Path::new("/tmp"));
        assert!(process.env().as_ref().unwrap().contains(&"A=2".to_owned()));
        assert!(
            crate::monitor::has_terminal(&spec)
                && spec.root().as_ref().unwrap().readonly().unwrap()
        );
    }
}
