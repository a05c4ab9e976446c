//! The command line, in the form of Go's flag package that containerd writes.

use anyhow::{Context, bail};

/// What containerd asks.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Flags {
    /// More of a log.
    pub debug: bool,
    /// Show the version.
    pub version: bool,
    /// Show what the runtime can do, as protobuf.
    pub info: bool,
    /// containerd's namespace.
    pub namespace: String,
    /// Id of the task.
    pub id: String,
    /// containerd's gRPC address.
    pub address: String,
    /// Bundle directory, if not the working directory.
    pub bundle: String,
    /// Server only: containerd's ttrpc address; empty: nobody takes events.
    pub ttrpc_address: String,
    /// Server only: the configuration file to start with.
    pub config: String,
    /// Server only: what its first container's spec says of the sandbox, as JSON; empty: the sandbox API will.
    pub sandbox: String,
    /// Server: path of the socket that it inherits, to be removed at the end. Clean-up: of one that may live.
    pub socket: String,
    /// Clean-up only: where sandboxes' states are.
    pub states: String,
    /// `start`, `delete`, or one of our own.
    pub action: String,
}

impl Flags {
    /// Reads `-name value`, `-name=value` and `--name …`, then the action.
    ///
    /// # Errors
    /// An unknown flag, or one without its value.
    pub fn parse(args: impl IntoIterator<Item = String>) -> anyhow::Result<Self> {
        let mut flags = Self::default();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let Some(name) = arg.strip_prefix('-') else {
                flags.action = arg;
                break;
            };
            let name = name.strip_prefix('-').unwrap_or(name);
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (name, None),
            };
            if let Some(switch) = flags.switch(name) {
                *switch = value.is_none_or(|v| v != "false" && v != "0");
                continue;
            }
            let value = value.or_else(|| args.next());
            let value = value.with_context(|| format!("flag -{name} needs a value"))?;
            flags.set(name, value)?;
        }
        Ok(flags)
    }

    fn switch(&mut self, name: &str) -> Option<&mut bool> {
        match name {
            "debug" => Some(&mut self.debug),
            "v" | "version" => Some(&mut self.version),
            "info" => Some(&mut self.info),
            _ => None,
        }
    }

    fn set(&mut self, name: &str, value: String) -> anyhow::Result<()> {
        match name {
            "namespace" => self.namespace = value,
            "id" => self.id = value,
            "address" => self.address = value,
            "bundle" => self.bundle = value,
            "states" => self.states = value,
            "ttrpc-address" => self.ttrpc_address = value,
            "config" => self.config = value,
            "sandbox" => self.sandbox = value,
            "socket" => self.socket = value,
            // The binary that older containerds let shims call to publish events.
            "publish-binary" => {}
            _ => bail!("unknown flag -{name}"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> anyhow::Result<Flags> {
        Flags::parse(line.split(' ').map(str::to_owned))
    }

    #[test]
    fn containerds_own_line_is_understood() {
        let flags = parse(
            "-namespace default -address /run/containerd/containerd.sock \
             -publish-binary /usr/bin/containerd -id=c1 --debug start",
        );
        let expected = Flags {
            debug: true,
            namespace: "default".into(),
            address: "/run/containerd/containerd.sock".into(),
            id: "c1".into(),
            action: "start".into(),
            ..Flags::default()
        };
        assert_eq!(flags.unwrap(), expected);
    }

    #[test]
    fn cri_os_line_with_an_empty_address_is_understood() {
        let line = "-namespace default -address  -publish-binary /usr/bin/crio -id c1 start";
        let flags = parse(line).unwrap();
        assert_eq!((flags.address.as_str(), flags.action.as_str()), ("", "start"));
    }

    #[test]
    fn unknown_and_incomplete_flags_are_named() {
        assert!(parse("-nonsense x").unwrap_err().to_string().contains("-nonsense"));
        assert!(parse("-id").unwrap_err().to_string().contains("-id"));
    }
}
