//! CPUID: what KVM supports on this host, less what no guest gets, plus who the vCPU is.

mod features;
mod topology;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

/// What a guest is told about its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// How many vCPUs it can have: one package, a thread per core. At least 1.
    pub vcpus: u8,
    /// Whether it may run virtual machines of its own (VMX, SVM).
    pub nested: bool,
}

/// The CPUID that KVM can give to guests here, the base of every vCPU's.
///
/// # Errors
/// KVM's.
pub fn supported(kvm: &Kvm) -> Result<CpuId, kvm_ioctls::Error> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
}

/// The CPUID of vCPU `id` of a guest.
///
/// # Errors
/// `E2BIG` when there are more leaves than KVM takes.
pub fn for_vcpu(supported: &CpuId, id: u8, shape: Shape) -> Result<CpuId, kvm_ioctls::Error> {
    let mut leaves = supported.as_slice().to_vec();
    features::reduce(&mut leaves, shape.nested);
    topology::describe(&mut leaves, id.into(), shape.vcpus.into());
    CpuId::from_entries(&leaves).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))
}

/// Whether the processor is one of Intel's.
pub fn is_intel(supported: &CpuId) -> bool {
    let name = supported.as_slice().iter().find(|leaf| leaf.function == 0);
    let words = name.map(|leaf| [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes));
    words.is_some_and(|words| words.concat() == b"GenuineIntel")
}

fn leaf(
    leaves: &mut [kvm_cpuid_entry2],
    function: u32,
    index: u32,
) -> Option<&mut kvm_cpuid_entry2> {
    leaves.iter_mut().find(|leaf| leaf.function == function && leaf.index == index)
}

#[cfg(test)]
mod tables;
#[cfg(test)]
mod tests;
