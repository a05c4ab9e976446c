//! `-info`: what the runtime is, as protobuf.

use crate::RUNTIME;
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use sandbox::features;
use std::io::{IsTerminal, Read, Write};

/// As containerd names the OCI runtime-spec's Features Structure, which goes as JSON.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Writes a `RuntimeInfo` to stdout; the options on stdin are given back.
pub fn print() -> anyhow::Result<()> {
    let mut input = Vec::new();
    if !std::io::stdin().is_terminal() {
        std::io::stdin().take(crate::bootstrap::MAX_INPUT).read_to_end(&mut input)?;
    }
    std::io::stdout().write_all(&info(&input)?.write_to_bytes()?)?;
    Ok(())
}

fn info(input: &[u8]) -> anyhow::Result<RuntimeInfo> {
    let options = if input.is_empty() { None } else { Some(Any::parse_from_bytes(input)?) };
    let version =
        RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), ..Default::default() };
    let value = serde_json::to_vec(&features::document())?;
    let features = Any { type_url: FEATURES.into(), value, ..Default::default() };
    Ok(RuntimeInfo {
        name: RUNTIME.into(),
        version: Some(version).into(),
        options: options.into(),
        features: Some(features).into(),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_given_back() {
        let options = Any { type_url: "t".into(), value: vec![1], ..Default::default() };
        let info = info(&options.write_to_bytes().unwrap()).unwrap();
        assert_eq!((info.name.as_str(), info.options.as_ref()), (RUNTIME, Some(&options)));
    }

    #[test]
    fn the_features_are_told_as_containerd_reads_them() {
        let info = info(&[]).unwrap();
        let features = info.features.as_ref().unwrap();
        assert_eq!(features.type_url, FEATURES);
        let features: serde_json::Value = serde_json::from_slice(&features.value).unwrap();
        let told = |list: &serde_json::Value, word: &str| {
            list.as_array().is_some_and(|words| words.iter().any(|one| one == word))
        };
        assert!(
            told(&features["mountOptions"], "rro")
                && told(&features["linux"]["namespaces"], "user")
        );
        // By this containerd knows that the handler takes pods with users of their own.
        assert_eq!(features["linux"]["mountExtensions"]["idmap"]["enabled"], true);
        let seccomp = &features["linux"]["seccomp"];
        let flag = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV";
        assert!(told(&seccomp["knownFlags"], flag) && !told(&seccomp["supportedFlags"], flag));
    }
}
