//! What this host's KVM can do, in the words of `kata-like check`.

use crate::causes::chain;
use crate::kvm::{self, KvmError};
use crate::probe;

/// The verdict on this host's KVM, as one line of JSON for `kata-like check`: `{"max_vcpus": N, "lacks": ["…"]}`, or
/// `{"error": "…", "remedy": "…"}`.
pub fn report() -> serde_json::Value {
    let verdict = kvm::open().and_then(|kvm| {
        probe::run(&kvm).map_err(KvmError::CannotRunGuests)?;
        Ok((kvm::max_vcpus(&kvm), kvm::lacks(&kvm)))
    });
    match verdict {
        Ok((max_vcpus, lacks)) => serde_json::json!({ "max_vcpus": max_vcpus, "lacks": lacks }),
        Err(error) => serde_json::json!({
            "error": chain(&error),
            "remedy": error.remedy(),
        }),
    }
}
