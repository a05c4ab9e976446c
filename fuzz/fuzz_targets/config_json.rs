//! A bundle's config.json, from the file to what is sent to the guest, and the limits of an update.
#![no_main]

use fuzz::scratch;
use libfuzzer_sys::fuzz_target;
use sandbox::{bundle, plan};

fuzz_target!(|data: &[u8]| {
    let path = scratch::file("config.json");
    std::fs::write(&path, data).expect("a file");
    if let Some(directory) = path.parent()
        && let Ok(spec) = bundle::read_spec(directory)
        && let Ok(plan) = plan::container("id", spec)
    {
        let sent = serde_json::to_vec(&plan.spec).expect("a spec is JSON");
        serde_json::from_slice::<oci_spec::runtime::Spec>(&sent).expect("the agent can read it");
    }
    let _ = plan::update(data);
});
