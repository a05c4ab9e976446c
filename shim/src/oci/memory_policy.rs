//! Whether `linux.memoryPolicy` is one at all: what is wrong with it is said before a guest is asked.

use crate::host::number_list::NumberList;
use oci_spec::runtime::{MemoryPolicyFlagType, MemoryPolicyModeType};
use serde::Deserialize;
use serde_json::Value;

/// Checks that of a `config.json`, in runc's order. What has another type than it should is left for whoever reads on.
///
/// # Errors
/// In runc's words, which callers look for.
pub fn check(spec: &Value) -> Result<(), String> {
    use MemoryPolicyModeType::{MpolDefault, MpolLocal, MpolPreferred};
    let policy = spec.pointer("/linux/memoryPolicy").and_then(Value::as_object);
    let Some(policy) = policy else { return Ok(()) };
    let text = |name: &str| policy.get(name).map_or(Some(""), Value::as_str);
    let (Some(mode), Some(nodes)) = (text("mode"), text("nodes")) else { return Ok(()) };
    let known = MemoryPolicyModeType::deserialize(&Value::from(mode));
    let known = known.map_err(|_| format!("invalid memory policy mode {mode:?}"))?;
    let list = NumberList::parse(nodes);
    let list = list.map_err(|e| format!("invalid memory policy nodes {nodes:?}: {e}"))?;
    let flags = policy.get("flags").and_then(Value::as_array);
    for flag in flags.into_iter().flatten().filter(|flag| flag.is_string()) {
        if MemoryPolicyFlagType::deserialize(flag).is_err() {
            return Err(format!("invalid memory policy flag {flag}"));
        }
    }
    match (known, list.count()) {
        (MpolPreferred, _) | (MpolDefault | MpolLocal, 0) => Ok(()),
        (MpolDefault | MpolLocal, count) => {
            Err(format!("memory policy mode requires 0 nodes but got {count}"))
        }
        (_, 0) => Err("memory policy mode requires at least one node but got 0".into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_wrong_with_a_policy_is_said_in_runcs_words() {
        for (policy, words) in [
            (json!({}), "invalid memory policy mode \"\""),
            (
                json!({"mode": "INTERLEAVE", "nodes": "0"}),
                "invalid memory policy mode \"INTERLEAVE\"",
            ),
            (json!({"nodes": "0-7"}), "invalid memory policy mode"),
            (json!({"mode": "MPOL_BIND", "nodes": "0-9876543210"}), "invalid memory policy nodes"),
            (
                json!({"mode": "MPOL_PREFERRED", "flags": ["MPOL_F_RELATIVE_NODES", "badflag"]}),
                "invalid memory policy flag \"badflag\"",
            ),
            (json!({"mode": "MPOL_DEFAULT", "nodes": "0-7"}), "mode requires 0 nodes but got 8"),
            (json!({"mode": "MPOL_LOCAL", "nodes": "1"}), "mode requires 0 nodes but got 1"),
            (json!({"mode": "MPOL_BIND"}), "mode requires at least one node but got 0"),
        ] {
            let said = check(&json!({"linux": {"memoryPolicy": policy}})).unwrap_err();
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn a_policy_with_nothing_wrong_is_left_to_whoever_decides() {
        for policy in [
            json!(null),
            json!({"mode": "MPOL_DEFAULT", "flags": ["MPOL_F_STATIC_NODES"]}),
            json!({"mode": "MPOL_BIND", "nodes": "0,2-3"}),
            json!({"mode": "MPOL_PREFERRED"}),
            json!({"mode": 1}),
        ] {
            assert_eq!(check(&json!({"linux": {"memoryPolicy": policy}})), Ok(()), "{policy}");
        }
    }
}
