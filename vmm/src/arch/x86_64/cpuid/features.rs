//! Features: those that Linux needs to be told of, and those that no guest gets.

use super::leaf;
use kvm_bindings::kvm_cpuid_entry2;

/// Leaf 1, ECX.
mod ecx1 {
    pub const VMX: u32 = 1 << 5;
    /// Where counters say what they can (`IA32_PERF_CAPABILITIES`).
    pub const PDCM: u32 = 1 << 15;
    pub const TSC_DEADLINE: u32 = 1 << 24;
    pub const HYPERVISOR: u32 = 1 << 31;
}

/// Leaf 0x8000_0001, ECX.
mod ext_ecx {
    pub const SVM: u32 = 1 << 2;
    /// Counters of the core, of the north bridge and of the last cache.
    pub const COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;
}

/// Tiles (AMX): leaf 7.0 EDX (BF16, TILE, INT8), 7.1 EAX (FP16), 7.1 EDX (COMPLEX), and two parts of the
/// extended state.
mod amx {
    pub const EDX7: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    pub const EAX7_1: u32 = 1 << 21;
    pub const EDX7_1: u32 = 1 << 8;
    pub const STATES: [u32; 2] = [17, 18];
}

/// Leaves without which a feature is not there. A leaf that is missing reads as zero.
const PERFORMANCE: [u32; 3] = [0xa, 0x23, 0x8000_0022];
const TILES: [u32; 2] = [0x1d, 0x1e];
const SVM: u32 = 0x8000_000a;

/// Bytes of the legacy area and the header of XSAVE (Intel SDM 1, 13.4).
const XSAVE_LEGACY: u32 = 576;

/// Adds and takes away features.
pub(super) fn reduce(leaves: &mut Vec<kvm_cpuid_entry2>, nested: bool) {
    if let Some(one) = leaf(leaves, 1, 0) {
        // Without the hypervisor bit Linux looks for no paravirtual clock and hangs in the
        // calibration of the TSC; without the deadline mode it calibrates the APIC timer.
        one.ecx |= ecx1::HYPERVISOR | ecx1::TSC_DEADLINE;
        one.ecx &= !ecx1::PDCM;
        if !nested {
            one.ecx &= !ecx1::VMX;
        }
    }
    if let Some(extended) = leaf(leaves, 0x8000_0001, 0) {
        extended.ecx &= !ext_ecx::COUNTERS;
        if !nested {
            extended.ecx &= !ext_ecx::SVM;
        }
    }
    // No performance counters: they cost start time, and tell of what else the processor does.
    leaves.retain(|leaf| !PERFORMANCE.contains(&leaf.function));
    leaves.retain(|leaf| nested || leaf.function != SVM);
    hide_tiles(leaves);
}

/// No tiles: their 8 KiB of registers a thread need leave from the host's kernel (`ARCH_REQ_XCOMP_GUEST_PERM`),
/// before which a guest that is told of them gets a fault; and matrices are multiplied elsewhere.
fn hide_tiles(leaves: &mut Vec<kvm_cpuid_entry2>) {
    if let Some(seven) = leaf(leaves, 7, 0) {
        seven.edx &= !amx::EDX7;
    }
    if let Some(seven) = leaf(leaves, 7, 1) {
        seven.eax &= !amx::EAX7_1;
        seven.edx &= !amx::EDX7_1;
    }
    let of_tiles = |leaf: &kvm_cpuid_entry2| match leaf.function {
        0xd => amx::STATES.contains(&leaf.index),
        function => TILES.contains(&function),
    };
    leaves.retain(|leaf| !of_tiles(leaf));
    let part = |leaf: &&kvm_cpuid_entry2| leaf.function == 0xd && leaf.index >= 2;
    // Parts of the user's state lie at fixed offsets; ECX bit 0 marks the supervisor's, which are elsewhere.
    let parts = leaves.iter().filter(part).filter(|leaf| leaf.ecx & 1 == 0);
    let size = parts.map(|leaf| leaf.ebx + leaf.eax).max().unwrap_or(0).max(XSAVE_LEGACY);
    if let Some(state) = leaf(leaves, 0xd, 0) {
        state.eax &= !amx::STATES.iter().fold(0, |bits, state| bits | 1 << state);
        state.ecx = state.ecx.min(size);
    }
}
