//! The weight of a container's block I/O, which the specification has as cgroups of version 1 had it: the file
//! `io.weight` of version 2. (libcgroups would calculate it in 16 bits, where most do not fit.)

use oci_spec::runtime::{LinuxBlockIo, LinuxResources};
use std::ops::RangeInclusive;

/// What the weight may be.
const WEIGHTS: RangeInclusive<u16> = 10..=1000;

/// Its file.
const FILE: &str = "io.weight";

/// A weight that cgroups don't have.
#[derive(Debug, thiserror::Error)]
#[error("blockIO.weight {0} is not from {first} to {last}", first = WEIGHTS.start(), last = WEIGHTS.end())]
pub struct NoWeight(u16);

/// Takes the weight out of `blockIO` and names its file instead, unless that is named already. 0 is none, as to runc.
///
/// # Errors
/// See [`NoWeight`].
pub fn to_file(resources: &mut LinuxResources) -> Result<(), NoWeight> {
    let Some(weight) = resources.block_io().as_ref().and_then(LinuxBlockIo::weight) else {
        return Ok(());
    };
    if let Some(limits) = resources.block_io_mut() {
        limits.set_weight(None);
    }
    if weight == 0 {
        return Ok(());
    }
    if !WEIGHTS.contains(&weight) {
        return Err(NoWeight(weight));
    }
    let mut files = resources.unified().clone().unwrap_or_default();
    files.entry(FILE.to_owned()).or_insert_with(|| of_version_2(weight).to_string());
    resources.set_unified(Some(files));
    Ok(())
}

/// As runc: 10 to 1000 are 1 to 10000.
fn of_version_2(weight: u16) -> u32 {
    1 + (u32::from(weight) - 10) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn changed(resources: Value) -> Result<Value, NoWeight> {
        let mut resources: LinuxResources = serde_json::from_value(resources).unwrap();
        resources.set_devices(None);
        to_file(&mut resources)?;
        Ok(serde_json::to_value(resources).unwrap())
    }

    #[test]
    fn a_weight_becomes_what_runc_makes_of_it() {
        for (weight, file) in [(10, "1"), (500, "4950"), (750, "7475"), (1000, "10000")] {
            let expected = json!({"blockIO": {}, "unified": {"io.weight": file}});
            assert_eq!(changed(json!({"blockIO": {"weight": weight}})).unwrap(), expected);
        }
    }

    #[test]
    fn the_rest_stays_and_a_file_that_is_named_counts_more() {
        let limit = json!([{"major": 8, "minor": 0, "rate": 7}]);
        let said = json!({"blockIO": {"weight": 10, "throttleReadBpsDevice": limit},
            "unified": {"io.weight": "5", "memory.high": "max"}});
        let mut expected = said.clone();
        expected["blockIO"].as_object_mut().unwrap().remove("weight");
        assert_eq!(changed(said).unwrap(), expected);
        for none in [json!({"blockIO": {}}), json!({"memory": {"limit": 1}}), json!({})] {
            assert_eq!(changed(none.clone()).unwrap(), none);
        }
        assert_eq!(changed(json!({"blockIO": {"weight": 0}})).unwrap(), json!({"blockIO": {}}));
    }

    #[test]
    fn what_is_no_weight_is_named() {
        for weight in [1, 9, 1001, 65535] {
            let error = changed(json!({"blockIO": {"weight": weight}})).unwrap_err().to_string();
            assert_eq!(error, format!("blockIO.weight {weight} is not from 10 to 1000"));
        }
    }
}
