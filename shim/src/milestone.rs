//! Points of a sandbox's life on the log, one line each, for the benchmark.
//!
//! A line contains `phase=<name> mono_ns=<CLOCK_MONOTONIC, nanoseconds> id=<sandbox or container>`.

use nix::time::{ClockId, clock_gettime};

/// Now, on `CLOCK_MONOTONIC`, nanoseconds.
pub fn now_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}

/// Logs that `name` happens now.
pub fn mark(name: &str, id: &str) {
    mark_at(name, id, now_ns());
}

/// Logs that `name` happened at `mono_ns`.
pub fn mark_at(name: &str, id: &str, mono_ns: u64) {
    tracing::info!("phase={name} mono_ns={mono_ns} id={id}");
}
