//! Counters for people and for reports of guests that hang: what each vCPU did.

use std::sync::atomic::{AtomicU64, Ordering};

/// Exits of one vCPU by kind. Written by its thread, read by any.
#[derive(Debug, Default)]
pub struct VcpuCounters {
    /// Reads of an I/O port.
    pub port_reads: AtomicU64,
    /// Writes to an I/O port.
    pub port_writes: AtomicU64,
    /// Reads of a device's memory.
    pub mmio_reads: AtomicU64,
    /// Writes to a device's memory.
    pub mmio_writes: AtomicU64,
    /// Accesses that no device answered.
    pub unanswered: AtomicU64,
    /// Kicks and other signals.
    pub interrupted: AtomicU64,
    /// Anything else.
    pub other: AtomicU64,
}

/// Adds one.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl VcpuCounters {
    /// Names and values, of vCPU `id`.
    pub fn list(&self, id: usize) -> Vec<(String, u64)> {
        [
            ("port_reads", &self.port_reads),
            ("port_writes", &self.port_writes),
            ("mmio_reads", &self.mmio_reads),
            ("mmio_writes", &self.mmio_writes),
            ("unanswered", &self.unanswered),
            ("interrupted", &self.interrupted),
            ("other_exits", &self.other),
        ]
        .into_iter()
        .map(|(name, value)| (format!("vcpu{id}.{name}"), value.load(Ordering::Relaxed)))
        .collect()
    }
}
