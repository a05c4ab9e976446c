//! CPUID: what KVM supports on this host, plus who the vCPU is.
//!
//! The topology is one package with one thread per core.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

const ECX1_TSC_DEADLINE: u32 = 1 << 24;
const ECX1_HYPERVISOR: u32 = 1 << 31;
const EDX1_HTT: u32 = 1 << 28;
/// Level types of leaf 0xb.
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// The CPUID that KVM can give to guests here, the base of every vCPU's.
///
/// # Errors
/// KVM's.
pub fn supported(kvm: &Kvm) -> Result<CpuId, kvm_ioctls::Error> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
}

/// The CPUID of vCPU `id` of `vcpus`.
pub fn for_vcpu(supported: &CpuId, id: u8, vcpus: u8) -> CpuId {
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        adapt(entry, u32::from(id), u32::from(vcpus));
    }
    cpuid
}

/// Number of APIC id bits below the package.
fn package_shift(vcpus: u32) -> u32 {
    vcpus.next_power_of_two().trailing_zeros()
}

fn adapt(entry: &mut kvm_cpuid_entry2, id: u32, vcpus: u32) {
    match entry.function {
        0x1 => {
            // Without the hypervisor bit Linux looks for no paravirtual clock and hangs in the
            // calibration of the TSC; without the deadline mode it calibrates the APIC timer.
            entry.ecx |= ECX1_HYPERVISOR | ECX1_TSC_DEADLINE;
            entry.ebx = (entry.ebx & 0xff00) | (id << 24) | (vcpus << 16);
            if vcpus > 1 {
                entry.edx |= EDX1_HTT;
            }
        }
        // Intel's cache leaf: cores per package minus 1 (bits 31:26), sharing ids (25:14).
        0x4 if entry.eax & 0x1f != 0 => {
            let cores = package_shift(vcpus);
            let (core_ids, level) = ((1u32 << cores) - 1, (entry.eax >> 5) & 7);
            let sharing = if level == 3 { core_ids } else { 0 };
            entry.eax = (entry.eax & 0x3fff) | (core_ids.min(0x3f) << 26) | (sharing << 14);
        }
        // No performance counters: nothing in the guest uses them, and they cost start time.
        0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0xb | 0x1f => {
            let (shift, count, level) = match entry.index {
                0 => (0, 1, LEVEL_SMT),
                1 => (package_shift(vcpus), vcpus, LEVEL_CORE),
                _ => (0, 0, 0),
            };
            entry.eax = shift;
            entry.ebx = count;
            entry.ecx = entry.index | (level << 8);
            entry.edx = id;
        }
        // AMD: size of the APIC id (15:12) and number of threads minus 1 (7:0).
        0x8000_0008 => {
            entry.ecx = (entry.ecx & !0xf0ff) | (package_shift(vcpus) << 12) | (vcpus - 1);
        }
        // AMD: extended APIC id, core id, one thread per core, one node.
        0x8000_001e => {
            entry.eax = id;
            entry.ebx = (entry.ebx & !0xffff) | (id & 0xff);
            entry.ecx &= !0x7ff;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let found = cpuid.as_slice().iter().find(|e| e.function == function && e.index == index);
        *found.unwrap()
    }

    fn base() -> CpuId {
        let entry = |function, index| kvm_cpuid_entry2 { function, index, ..Default::default() };
        CpuId::from_entries(&[
            kvm_cpuid_entry2 { ebx: 0xaabb_ccdd, ..entry(1, 0) },
            kvm_cpuid_entry2 { eax: 7, ..entry(0xa, 0) },
            entry(0xb, 0),
            entry(0xb, 1),
            kvm_cpuid_entry2 { ecx: 0x7fff, ..entry(0x8000_0008, 0) },
        ])
        .unwrap()
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id() {
        for id in [0u8, 3] {
            let cpuid = for_vcpu(&base(), id, 4);
            let one = leaf(&cpuid, 1, 0);
            assert_eq!(one.ebx, (u32::from(id) << 24) | (4 << 16) | 0xcc00);
            assert_eq!(one.ecx, ECX1_HYPERVISOR | ECX1_TSC_DEADLINE);
            assert_eq!(leaf(&cpuid, 0xb, 0).edx, u32::from(id));
            assert_eq!(leaf(&cpuid, 0xb, 1).edx, u32::from(id));
        }
    }

    #[test]
    fn the_topology_is_one_package_of_single_threaded_cores() {
        let cpuid = for_vcpu(&base(), 0, 3);
        let (smt, core) = (leaf(&cpuid, 0xb, 0), leaf(&cpuid, 0xb, 1));
        assert_eq!((smt.eax, smt.ebx, smt.ecx), (0, 1, 0x100));
        assert_eq!((core.eax, core.ebx, core.ecx), (2, 3, 0x201));
        assert_eq!(leaf(&cpuid, 0x8000_0008, 0).ecx, 0x2f02);
        assert_eq!(leaf(&cpuid, 0xa, 0).eax, 0);
    }
}
