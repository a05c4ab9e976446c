//! What containerd says to `start`, and the answer in its own form.
//!
//! | containerd | says | understands |
//! |---|---|---|
//! | 1.7 | flags, environment, options (`Any`) on stdin | a plain address, JSON up to version 2 |
//! | 2.0 to 2.2 | the same | a plain address, JSON up to version 3 |
//! | 2.3 and later | `BootstrapParams` on stdin, flags too | all of these, and `BootstrapResult` |
//! | 2.4 and later | | in that also which mounts are the shim's |
//!
//! CRI-O calls as 1.7 does, but names nobody who takes events.
//!
//! Nothing tells 1.7 from 2.0, so both get the plain address, and ask this program for every container of a
//! pod; 2.3 and later get version 3, and keep one connection for each pod.

use crate::flags::Flags;
use anyhow::bail;
use containerd_shim_protos::TASK_API_VERSION;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult, Extension};
use protobuf::well_known_types::any::Any;
use protobuf::{CodedInputStream, Message};
use protocol::mounts::MountCapabilities;
use std::path::PathBuf;

/// Longest input that is read, bytes; containerd's own limit.
pub const MAX_INPUT: u64 = 10 << 20;

/// Where containerd's own shims put their sockets.
const DEFAULT_SOCKET_DIR: &str = "/run/containerd/s";

/// `LOG_LEVEL_DEBUG`; lower is more.
const LEVEL_DEBUG: i32 = -4;

/// In which form to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The address.
    Plain,
    /// `BootstrapResult`.
    Protobuf,
}

/// What `start` was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Where events go; empty: nobody takes them.
    pub ttrpc_address: String,
    /// Where to make the socket.
    pub socket_dir: PathBuf,
    /// More of a log.
    pub debug: bool,
    /// The configuration file that the runtime's options name.
    pub config: Option<PathBuf>,
    /// How to answer.
    pub form: Form,
}

impl Start {
    /// Reads what came on stdin, with flags and the environment's `TTRPC_ADDRESS`.
    ///
    /// # Errors
    /// The message is for another task.
    pub fn read(input: &[u8], flags: &Flags, ttrpc_env: Option<String>) -> anyhow::Result<Self> {
        Ok(match bootstrap_params(input, flags)? {
            Some(params) => Self::from_params(params, flags, ttrpc_env),
            None => Self {
                ttrpc_address: ttrpc_env.unwrap_or_default(),
                socket_dir: DEFAULT_SOCKET_DIR.into(),
                debug: flags.debug,
                config: Any::parse_from_bytes(input).ok().as_ref().and_then(config_path),
                form: Form::Plain,
            },
        })
    }

    fn from_params(params: BootstrapParams, flags: &Flags, ttrpc_env: Option<String>) -> Self {
        let mut options = params.extensions.iter().filter_map(|e| e.value.as_ref());
        Self {
            config: options.find_map(config_path),
            debug: flags.debug || params.log_level.value() <= LEVEL_DEBUG,
            socket_dir: match params.socket_dir {
                Some(dir) if !dir.is_empty() => dir.into(),
                _ => DEFAULT_SOCKET_DIR.into(),
            },
            ttrpc_address: match params.containerd_ttrpc_address {
                address if address.is_empty() => ttrpc_env.unwrap_or_default(),
                address => address,
            },
            form: Form::Protobuf,
        }
    }
}

/// The message of 2.3 and later; `None` if `input` is something else.
fn bootstrap_params(input: &[u8], flags: &Flags) -> anyhow::Result<Option<BootstrapParams>> {
    let Ok(params) = BootstrapParams::parse_from_bytes(input) else { return Ok(None) };
    if params.instance_id == flags.id && params.namespace == flags.namespace {
        return Ok(Some(params));
    }
    // Options of older containerds parse as this message too: the type's name and the value are in the
    // first two fields, and nothing else is set.
    let first_two = BootstrapParams {
        instance_id: params.instance_id.clone(),
        namespace: params.namespace.clone(),
        ..Default::default()
    };
    if params == first_two {
        return Ok(None);
    }
    bail!(
        "stdin is for task {} in namespace {}, the command line for {} in {}",
        params.instance_id,
        params.namespace,
        flags.id,
        flags.namespace
    )
}

/// The `config_path` of a `runtimeoptions.v1.Options`; any other options are for other runtimes.
pub fn config_path(options: &Any) -> Option<PathBuf> {
    /// Field 2, length-delimited.
    const CONFIG_PATH: u32 = 2 << 3 | 2;
    if options.type_url.rsplit('/').next() != Some("runtimeoptions.v1.Options") {
        return None;
    }
    let mut stream = CodedInputStream::from_bytes(&options.value);
    let mut found = None;
    while let Ok(Some(tag)) = stream.read_raw_tag_or_eof() {
        if tag == CONFIG_PATH {
            found = stream.read_string().ok();
        } else {
            protobuf::rt::skip_field_for_tag(tag, &mut stream).ok()?;
        }
    }
    found.filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// The answer to `start`.
///
/// # Errors
/// None that is known: encoding to memory.
pub fn answer(form: Form, address: &str) -> anyhow::Result<Vec<u8>> {
    Ok(match form {
        Form::Plain => address.into(),
        Form::Protobuf => {
            let mut result = BootstrapResult {
                version: TASK_API_VERSION,
                address: address.into(),
                protocol: "ttrpc".into(),
                ..Default::default()
            };
            let mounts = Extension { value: Some(own_mounts()?).into(), ..Default::default() };
            let unknown = result.special_fields.mut_unknown_fields();
            unknown.add_length_delimited(EXTENSIONS, mounts.write_to_bytes()?);
            result.write_to_bytes()?
        }
    })
}

/// The field of `BootstrapResult` that the crate does not know; containerds before 2.4 don't either, and pass over it.
const EXTENSIONS: u32 = 6;

/// The mounts that containerd shall not make on the host, since the guest does: of the EROFS snapshotter's, see
/// `shim/src/oci/plan/layers.rs`.
fn own_mounts() -> anyhow::Result<Any> {
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    let own = MountCapabilities {
        types: words(&["erofs"]),
        transforms: words(&["format", "mkdir"]),
        ..Default::default()
    };
    let type_url = "type.googleapis.com/containerd.types.MountCapabilities".into();
    Ok(Any { type_url, value: own.write_to_bytes()?, ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::bootstrap_api::LogLevel;
    use protobuf::EnumOrUnknown;

    const ENV: &str = "/run/containerd/containerd.sock.ttrpc";

    fn flags() -> Flags {
        Flags { id: "c1".into(), namespace: "k8s.io".into(), ..Flags::default() }
    }

    fn read(input: &[u8]) -> anyhow::Result<Start> {
        Start::read(input, &flags(), Some(ENV.into()))
    }

    fn options(path: &str) -> Any {
        let mut value = vec![0x0a, 1, b't', 0x12, path.len() as u8];
        value.extend_from_slice(path.as_bytes());
        Any { type_url: "runtimeoptions.v1.Options".into(), value, ..Default::default() }
    }

    fn params() -> BootstrapParams {
        BootstrapParams {
            instance_id: "c1".into(),
            namespace: "k8s.io".into(),
            containerd_ttrpc_address: "unix:///run/other.ttrpc".into(),
            extensions: vec![Extension {
                value: Some(options("/etc/a.toml")).into(),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn the_oldest_form_is_answered_with_the_address() {
        let start = read(b"").unwrap();
        assert_eq!((start.form, start.ttrpc_address.as_str()), (Form::Plain, ENV));
        assert_eq!(answer(start.form, "unix:///s").unwrap(), b"unix:///s");
    }

    #[test]
    fn options_of_an_old_containerd_are_not_taken_for_the_new_message() {
        let input = options("/etc/b.toml").write_to_bytes().unwrap();
        let start = read(&input).unwrap();
        assert_eq!(start.form, Form::Plain);
        assert_eq!(start.config, Some("/etc/b.toml".into()));
    }

    #[test]
    fn options_of_another_runtime_are_ignored() {
        let other = Any { type_url: "containerd.runc.v1.Options".into(), ..options("/x") };
        assert_eq!(config_path(&other), None);
        let damaged = Any { value: vec![0xff, 0xff], ..options("/x") };
        assert_eq!(config_path(&damaged), None);
    }

    #[test]
    fn the_new_message_is_answered_in_kind() {
        let start = read(&params().write_to_bytes().unwrap()).unwrap();
        let expected = Start {
            ttrpc_address: "unix:///run/other.ttrpc".into(),
            socket_dir: DEFAULT_SOCKET_DIR.into(),
            debug: false,
            config: Some("/etc/a.toml".into()),
            form: Form::Protobuf,
        };
        assert_eq!(start, expected);
        let result = BootstrapResult::parse_from_bytes(&answer(start.form, "unix:///s").unwrap());
        let result = result.unwrap();
        assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
        assert_eq!(result.address, "unix:///s");
        // As containerd's own program writes the same.
        let extension = [
            &[0x0a, 0x50, 0x0a, 54][..],
            b"type.googleapis.com/containerd.types.MountCapabilities",
            &[0x12, 22, 0x0a, 5],
            b"erofs",
            &[0x12, 6],
            b"format",
            &[0x12, 5],
            b"mkdir",
        ];
        let unknown: Vec<_> = result.special_fields.unknown_fields().iter().collect();
        let [(6, protobuf::UnknownValueRef::LengthDelimited(bytes))] = unknown[..] else {
            panic!("{unknown:?}")
        };
        assert_eq!(bytes, extension.concat());
    }

    #[test]
    fn the_socket_goes_where_containerd_says_and_the_log_level_is_its() {
        let message = BootstrapParams {
            socket_dir: Some("/run/user/1/s".into()),
            log_level: EnumOrUnknown::new(LogLevel::LOG_LEVEL_TRACE),
            ..params()
        };
        let start = read(&message.write_to_bytes().unwrap()).unwrap();
        assert_eq!((start.socket_dir, start.debug), ("/run/user/1/s".into(), true));
    }

    #[test]
    fn a_message_for_another_task_is_refused() {
        let other = BootstrapParams { instance_id: "c2".into(), ..params() };
        let error = read(&other.write_to_bytes().unwrap()).unwrap_err().to_string();
        assert!(error.contains("c2"), "{error}");
    }

    #[test]
    fn an_engine_that_takes_no_events_starts_it_as_well() {
        for none in [None, Some(String::new())] {
            let start = Start::read(b"", &flags(), none).unwrap();
            assert_eq!((start.form, start.ttrpc_address.as_str()), (Form::Plain, ""));
        }
    }
}
