//! Who a vCPU is: one package of cores with a thread each, whose APIC ids are the vCPUs' numbers.
//!
//! KVM since Linux 6.2 says nothing of topology (leaf 0xb is empty, 0x8000_001e as well), before it said the
//! host's; and what it says of caches is always the host's. So all of it is made here.

use super::leaf;
use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

const EDX1_HTT: u32 = 1 << 28;
/// Level types of leaf 0xb and 0x1f.
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;
/// Leaves that list the levels of a topology: Intel's two, and AMD's own, which is left out.
const LEVELS: [u32; 2] = [0xb, 0x1f];
const AMD_LEVELS: u32 = 0x8000_0026;
/// From this level on a cache belongs to all cores.
const SHARED_CACHE: u32 = 3;

/// Number of APIC id bits below the package.
fn package_shift(vcpus: u32) -> u32 {
    vcpus.next_power_of_two().trailing_zeros()
}

/// Writes it into every leaf that speaks of it.
pub(super) fn describe(leaves: &mut Vec<kvm_cpuid_entry2>, id: u32, vcpus: u32) {
    leaves.retain(|leaf| leaf.function != AMD_LEVELS);
    for function in LEVELS {
        if leaf(leaves, function, 0).is_some() {
            leaves.retain(|leaf| leaf.function != function);
            leaves.extend(levels(function, id, vcpus));
        }
    }
    for leaf in leaves {
        adapt(leaf, id, vcpus);
    }
}

/// The levels, with the empty one that ends them.
fn levels(function: u32, id: u32, vcpus: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, shift, count, kind: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | kind << 8,
        edx: id,
        ..Default::default()
    };
    [
        level(0, 0, 1, LEVEL_SMT),
        level(1, package_shift(vcpus), vcpus, LEVEL_CORE),
        level(2, 0, 0, 0),
    ]
}

fn adapt(leaf: &mut kvm_cpuid_entry2, id: u32, vcpus: u32) {
    match leaf.function {
        0x1 => {
            leaf.ebx = (leaf.ebx & 0xffff) | (id << 24) | (vcpus << 16);
            leaf.edx = if vcpus > 1 { leaf.edx | EDX1_HTT } else { leaf.edx & !EDX1_HTT };
        }
        // Intel's caches: ids of cores in a package minus 1 (31:26), of threads that share it minus 1 (25:14).
        0x4 if leaf.eax & 0x1f != 0 => {
            let ids = (1u32 << package_shift(vcpus)) - 1;
            leaf.eax = (leaf.eax & 0x3fff) | (ids.min(0x3f) << 26) | (sharing(leaf, ids) << 14);
        }
        // AMD's caches: threads that share it minus 1 (25:14).
        0x8000_001d if leaf.eax & 0x1f != 0 => {
            leaf.eax = (leaf.eax & !0x3ff_c000) | (sharing(leaf, vcpus - 1) << 14);
        }
        // AMD: size of the APIC id (15:12) and number of threads minus 1 (7:0).
        0x8000_0008 => {
            leaf.ecx = (leaf.ecx & !0xf0ff) | (package_shift(vcpus) << 12) | (vcpus - 1);
        }
        // AMD: extended APIC id; core id with one thread per core; one node.
        0x8000_001e => (leaf.eax, leaf.ebx, leaf.ecx) = (id, id & 0xff, 0),
        _ => {}
    }
}

/// What a cache's leaf says of sharing: `all`, or nobody.
fn sharing(leaf: &kvm_cpuid_entry2, all: u32) -> u32 {
    let level = (leaf.eax >> 5) & 7;
    if level >= SHARED_CACHE { all } else { 0 }
}
