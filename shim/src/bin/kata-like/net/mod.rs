//! The network of `run`: pasta, from Debian's package passt, fills the network namespace of the container's machine,
//! and carries what goes in and out by sockets of the host's.

mod pasta;
mod publish;
mod resolver;

pub(crate) use pasta::Pasta;

use crate::record::Home;
use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use oci_spec::runtime::{LinuxNamespaceBuilder, LinuxNamespaceType, Mount, MountBuilder, Spec};
use publish::Published;
use sandbox::Sandbox;
use std::path::{Path, PathBuf};

/// What is said of a container's network.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct NetworkOptions {
    /// Network: of an image pasta, where that is installed; of a bundle what its config.json says
    #[arg(long, visible_alias = "network", value_enum, value_name = "NETWORK")]
    net: Option<Mode>,
    /// Let connections to a port of the host reach one of the container's; /udp for datagrams
    #[arg(short, long, value_name = "[IP:]HOSTPORT:PORT[/udp]")]
    publish: Vec<Published>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// The host's network as a user of its would see it, through pasta
    Pasta,
    /// A loopback interface alone
    None,
}

/// A network that a container is to have.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    program: PathBuf,
    /// By name: a container of an image has it otherwise as well, but does without where it can't be had.
    asked: bool,
    published: Vec<Published>,
}

/// Where the container finds who translates names.
const RESOLV_CONF: &str = "/etc/resolv.conf";

impl NetworkOptions {
    /// What is to be done, for an image or a bundle.
    ///
    /// # Errors
    /// They contradict each other, or what was asked for is not installed.
    pub(crate) fn decide(&self, image: bool) -> Result<Option<Network>> {
        let installed = crate::check::program("pasta");
        self.decide_with(image, installed)
    }

    fn decide_with(&self, image: bool, installed: Option<PathBuf>) -> Result<Option<Network>> {
        let asked = self.net == Some(Mode::Pasta) || !self.publish.is_empty();
        match (self.net, installed) {
            (Some(Mode::None), _) if asked => {
                bail!("--publish: a container with --net none has no port that could be reached")
            }
            (Some(Mode::None), _) => Ok(None),
            _ if !asked && !image => Ok(None),
            (_, Some(program)) => {
                Ok(Some(Network { program, asked, published: self.publish.clone() }))
            }
            (_, None) if asked => {
                bail!(
                    "a network needs the program pasta, which is not installed: it is in the package passt"
                )
            }
            (_, None) => {
                tracing::warn!(
                    "the container has no network, for which pasta of the package passt would be needed; --net none says that it needs none"
                );
                Ok(None)
            }
        }
    }
}

impl Network {
    /// Puts it into a container's spec. What is not there yet is made in the container's directory.
    ///
    /// # Errors
    /// The spec names a network already, or a file can't be written.
    pub(crate) fn put_into(spec: &mut Spec, home: &Home) -> Result<()> {
        let linux = spec.linux_mut().get_or_insert_default();
        let namespaces = linux.namespaces_mut().get_or_insert_default();
        let of_network = |typ: LinuxNamespaceType| typ == LinuxNamespaceType::Network;
        match namespaces.iter().find(|namespace| of_network(namespace.typ())) {
            None => {
                let kind = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Network);
                namespaces.push(kind.build()?);
            }
            Some(named) => {
                if let Some(path) = named.path() {
                    bail!("--net pasta: config.json names the network {}", path.display());
                }
            }
        }
        let mounts = spec.mounts_mut().get_or_insert_default();
        if mounts.iter().all(|mount| mount.destination() != Path::new(RESOLV_CONF)) {
            mounts.push(resolv_conf(home)?);
        }
        Ok(())
    }

    /// Fills the network namespace of a container's machine, before the container is started. A network that nobody asked
    /// for may be missing.
    ///
    /// # Errors
    /// pasta says why.
    pub(crate) async fn fill(&self, sandbox: &Sandbox, home: &Home) -> Result<Option<Pasta>> {
        self.may_fail(Pasta::start(&self.program, &self.published, sandbox.pid(), home).await)
    }

    fn may_fail<T>(&self, made: Result<T>) -> Result<Option<T>> {
        match made {
            Err(error) if !self.asked => {
                tracing::warn!(
                    "the container has no network: {error:#}; --net none says that it needs none"
                );
                Ok(None)
            }
            made => made.map(Some),
        }
    }
}

/// One that reaches the host's resolvers, in the container's directory. Read-only: it is in the host's memory.
fn resolv_conf(home: &Home) -> Result<Mount> {
    let path = home.path().join("resolv.conf");
    let hosts = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    std::fs::write(&path, resolver::of_container(&hosts))
        .with_context(|| path.display().to_string())?;
    Ok(MountBuilder::default()
        .destination(RESOLV_CONF)
        .typ("bind")
        .source(path)
        .options(vec!["rbind".to_owned(), "ro".to_owned()])
        .build()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parsed::parsed;

    fn decided(words: &[&str], image: bool, installed: bool) -> Result<Option<usize>> {
        let options: NetworkOptions = parsed(words)?;
        let program = installed.then(|| PathBuf::from("/usr/bin/pasta"));
        let network = options.decide_with(image, program)?;
        Ok(network.map(|network| network.published.len()))
    }

    #[test]
    fn an_image_has_a_network_unless_told_otherwise_and_a_bundle_when_told() {
        for (words, image, installed, expected) in [
            (&[][..], true, true, Some(0)),
            (&[], true, false, None),
            (&[], false, true, None),
            (&["--net", "none"], true, true, None),
            (&["--network", "pasta"], false, true, Some(0)),
            (&["-p", "8080:80", "-p", "53:53/udp"], false, true, Some(2)),
        ] {
            assert_eq!(decided(words, image, installed).unwrap(), expected, "{words:?} {image}");
        }
        for words in [&["--net", "pasta"][..], &["-p", "8080:80"]] {
            let error = decided(words, true, false).unwrap_err().to_string();
            assert!(error.contains("package passt"), "{error}");
        }
        let error = decided(&["--net=none", "-p", "1:1"], true, true).unwrap_err().to_string();
        assert!(error.contains("--net none"), "{error}");
        assert!(decided(&["--net", "host"], true, true).is_err());
    }

    #[test]
    fn a_network_that_nobody_asked_for_may_fail() {
        let outcome = |words: &[&str]| {
            let options: NetworkOptions = parsed(words).unwrap();
            let network = options.decide_with(true, Some("/usr/bin/pasta".into()));
            network.unwrap().unwrap().may_fail::<()>(Err(anyhow::anyhow!("no tun")))
        };
        assert!(outcome(&[]).unwrap().is_none());
        for words in [&["--net", "pasta"][..], &["-p", "8080:80"]] {
            assert_eq!(outcome(words).unwrap_err().to_string(), "no tun");
        }
    }

    #[test]
    fn what_a_spec_has_of_its_own_stays() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::new(root.path(), "c").unwrap();
        std::fs::create_dir(home.path()).unwrap();
        let spec = |json: &str| serde_json::from_str::<Spec>(json).unwrap();
        let mut plain = spec(r#"{"ociVersion": "1.0.0", "linux": {}}"#);
        Network::put_into(&mut plain, &home).unwrap();
        let namespaces = plain.linux().as_ref().unwrap().namespaces().clone().unwrap();
        assert_eq!(namespaces.last().unwrap().typ(), LinuxNamespaceType::Network);
        assert_eq!(plain.mounts().as_ref().unwrap()[0].destination(), Path::new(RESOLV_CONF));
        let before = plain.clone();
        Network::put_into(&mut plain, &home).unwrap();
        assert_eq!(plain, before);
        let mut named = spec(
            r#"{"ociVersion": "1.0.0",
                "linux": {"namespaces": [{"type": "network", "path": "/run/netns/x"}]}}"#,
        );
        let error = Network::put_into(&mut named, &home).unwrap_err().to_string();
        assert!(error.contains("/run/netns/x"), "{error}");
    }
}
