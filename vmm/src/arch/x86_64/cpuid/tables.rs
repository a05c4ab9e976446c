//! What KVM gives (KVM_GET_SUPPORTED_CPUID) on two processors, as far as it matters here.
//!
//! Values of the processors: the guests' fingerprints in Firecracker's tests (`tests/data/cpu_template_helper`,
//! SAPPHIRE_RAPIDS and GENOA), the caches' sharing and the tiles as in the processors' manuals. What KVM makes of
//! the leaves: `__do_cpuid_func` in Linux 6.12's `arch/x86/kvm/cpuid.c`, which empties 0xb, 0x1f and 0x8000_001e,
//! passes 4 and 0x8000_001d through, and puts the asking CPU's id into EDX of the first two.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Function, index if it has any, EAX to EDX.
type Row = (u32, Option<u32>, [u32; 4]);

/// A Xeon of the fourth generation (Sapphire Rapids): 48 cores of two threads; asked on CPU 0x57.
const INTEL: [Row; 27] = [
    (0x0, None, [0x1f, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
    (0x1, None, [0x0008_06f8, 0x5780_0800, 0xfffa_b223, 0x1f8b_fbff]),
    (0x4, Some(0), [0xfc00_4121, 0x02c0_003f, 0x3f, 0]),
    (0x4, Some(1), [0xfc00_4122, 0x01c0_003f, 0x3f, 0]),
    (0x4, Some(2), [0xfc00_4143, 0x03c0_003f, 0x7ff, 0]),
    (0x4, Some(3), [0xfc1f_c163, 0x0380_003f, 0x1_bfff, 4]),
    (0x4, Some(4), [0, 0, 0, 0]),
    (0x6, None, [4, 0, 0, 0]),
    (0x7, Some(0), [2, 0xf1bf_27eb, 0x1a41_5f4e, 0xafc1_4410]),
    (0x7, Some(1), [0x0020_1c30, 0, 0, 0x0000_4100]),
    (0xa, None, [0x0730_0802, 0, 0, 0x0000_8603]),
    (0xb, Some(0), [0, 0, 0, 0x57]),
    (0xd, Some(0), [0x0006_02e7, 0x240, 0x2b00, 0]),
    (0xd, Some(1), [0x1f, 0x240, 0x1800, 0]),
    (0xd, Some(2), [0x100, 0x240, 0, 0]),
    (0xd, Some(9), [0x8, 0xa80, 0, 0]),
    (0xd, Some(11), [0x10, 0, 1, 0]),
    (0xd, Some(17), [0x40, 0xac0, 2, 0]),
    (0xd, Some(18), [0x2000, 0xb00, 6, 0]),
    (0x1d, Some(0), [1, 0, 0, 0]),
    (0x1d, Some(1), [0x0400_2000, 0x0008_0040, 0x10, 0]),
    (0x1e, Some(0), [0, 0x4010, 0, 0]),
    (0x1f, Some(0), [0, 0, 0, 0x57]),
    (0x4000_0001, None, [0x0100_7efb, 0, 0, 0]),
    (0x8000_0000, None, [0x8000_0008, 0, 0, 0]),
    (0x8000_0001, None, [0, 0, 0x121, 0x2c10_0800]),
    (0x8000_0008, None, [0x392e, 0x0100_d200, 0, 0]),
];

/// An EPYC of the fourth generation (Genoa): 96 cores of two threads; asked on CPU 0x2a.
const AMD: [Row; 22] = [
    (0x0, None, [0x10, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
    (0x1, None, [0x00a1_0f11, 0x2ac0_0800, 0xf7fa_3203, 0x178b_fbff]),
    (0x4, Some(0), [0, 0, 0, 0]),
    (0x6, None, [4, 0, 0, 0]),
    (0x7, Some(0), [1, 0xf1bf_07ab, 0x0041_5fce, 0x9c00_0010]),
    (0x7, Some(1), [0x20, 0, 0, 0]),
    (0xa, None, [0, 0, 0, 0]),
    (0xb, Some(0), [0, 0, 0, 0x2a]),
    (0xd, Some(0), [0x2e7, 0x240, 0x988, 0]),
    (0xd, Some(2), [0x100, 0x240, 0, 0]),
    (0xd, Some(9), [0x8, 0x980, 0, 0]),
    (0xd, Some(11), [0x10, 0, 1, 0]),
    (0x8000_0000, None, [0x8000_0022, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
    (0x8000_0001, None, [0x00a1_0f11, 0x4000_0000, 0x00c0_03f7, 0x2fd3_fbff]),
    (0x8000_0008, None, [0x34_3934, 0x530a_d205, 0x70bf, 0]),
    (0x8000_000a, None, [1, 8, 0, 0x0009_0049]),
    (0x8000_001d, Some(0), [0x4121, 0x01c0_003f, 0x3f, 0]),
    (0x8000_001d, Some(1), [0x4122, 0x01c0_003f, 0x3f, 0]),
    (0x8000_001d, Some(2), [0x4143, 0x01c0_003f, 0x7ff, 2]),
    (0x8000_001d, Some(3), [0x3_c163, 0x03c0_003f, 0x7fff, 1]),
    (0x8000_001e, None, [0, 0, 0, 0]),
    (0x8000_0022, None, [1, 6, 0, 0]),
];

fn table(rows: &[Row]) -> CpuId {
    let entry = |&(function, index, [eax, ebx, ecx, edx]): &Row| kvm_cpuid_entry2 {
        function,
        index: index.unwrap_or(0),
        flags: if index.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    };
    CpuId::from_entries(&rows.iter().map(entry).collect::<Vec<_>>()).unwrap()
}

pub(super) fn intel() -> CpuId {
    table(&INTEL)
}

pub(super) fn amd() -> CpuId {
    table(&AMD)
}
