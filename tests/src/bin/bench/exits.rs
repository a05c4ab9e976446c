//! Counts how often guests leave to the host, by the kernel's tracepoints, which know of each and outlive them.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// What is counted: every exit; and those that notify a device, which are writes to the ports that our machine has for it.
const EVENTS: [(&str, &str); 2] =
    [("kvm_exit", "hist:keys=exit_reason"), ("kvm_pio", "hist:keys=port if port >= 0xc000")];

/// Counting, until it is dropped.
pub struct Exits([PathBuf; 2]);

impl Exits {
    /// Begins.
    pub fn count() -> Result<Self> {
        let events = Path::new("/sys/kernel/tracing/events/kvm");
        let counting = Self(EVENTS.map(|(event, _)| events.join(event)));
        for (event, (_, trigger)) in counting.0.iter().zip(EVENTS) {
            let file = event.join("trigger");
            fs::write(&file, trigger).with_context(|| file.display().to_string())?;
        }
        Ok(counting)
    }

    /// All exits and notifications since then.
    pub fn so_far(&self) -> Result<[u64; 2]> {
        let of = |event: &Path| -> Result<u64> {
            let text = fs::read_to_string(event.join("hist"))?;
            let hits = text.lines().find_map(|line| line.trim().strip_prefix("Hits: "));
            Ok(hits.context("a histogram without hits")?.parse()?)
        };
        Ok([of(&self.0[0])?, of(&self.0[1])?])
    }
}

impl Drop for Exits {
    fn drop(&mut self) {
        for (event, (_, trigger)) in self.0.iter().zip(EVENTS) {
            let _ = fs::write(event.join("trigger"), format!("!{trigger}"));
        }
    }
}
