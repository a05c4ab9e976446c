//! Can this KVM run a guest kernel? Asks it, with a guest of four instructions, instead of guessing.
//!
//! The guest runs in 64-bit ring 0, as a kernel does, and executes an instruction that a
//! processor runs natively and that KVM's instruction emulator doesn't know. Where ring 0 is
//! emulated (PVM), that ends in `KVM_EXIT_INTERNAL_ERROR`.

use crate::arch::x86_64::registers;
use crate::memory::{GuestRam, MemoryError};
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress};

/// `popcnt eax, eax` (0xff has 8 bits set); `out 0xe9, al`; `hlt`.
const CODE: [u8; 7] = [0xf3, 0x0f, 0xb8, 0xc0, 0xe6, PORT as u8, 0xf4];
const PORT: u16 = 0xe9;
const CODE_ADDRESS: u64 = 0x10_0000;
const MEMORY: u64 = 0x20_0000;

/// How the tiny guest ended instead of reporting its result.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// A call to set it up failed.
    #[error("a test guest can't be set up: {0}")]
    Setup(&'static str, #[source] kvm_ioctls::Error),
    /// No memory for it.
    #[error("a test guest can't be set up")]
    Memory(#[source] MemoryError),
    /// It did not run.
    #[error("a test guest does not run")]
    Run(#[source] kvm_ioctls::Error),
    /// It ran into something that this KVM can't do.
    #[error("a test guest in 64-bit kernel mode ended with {0} instead of its result")]
    Ended(String),
}

/// Runs the tiny guest; 1 to 2 ms on hardware.
///
/// # Errors
/// [`ProbeError`], if the guest does not report the right result.
pub fn run(kvm: &Kvm) -> Result<(), ProbeError> {
    let setup = |what| move |e| ProbeError::Setup(what, e);
    let vm = kvm.create_vm().map_err(setup("create a VM"))?;
    let ram = GuestRam::new(MEMORY).map_err(ProbeError::Memory)?;
    ram.register(&vm).map_err(ProbeError::Memory)?;
    let mut vcpu = vm.create_vcpu(0).map_err(setup("create a vCPU"))?;
    let cpuid = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(setup("read the CPUID"))?;
    vcpu.set_cpuid2(&cpuid).map_err(setup("set the CPUID"))?;
    ram.memory()
        .write_slice(&CODE, GuestAddress(CODE_ADDRESS))
        .map_err(|e| ProbeError::Ended(format!("{e}")))?;
    registers::write_tables(ram.memory()).map_err(|e| ProbeError::Ended(format!("{e}")))?;
    registers::set_long_mode(&vcpu, CODE_ADDRESS, 0xff).map_err(setup("set the registers"))?;
    match vcpu.run() {
        Ok(VcpuExit::IoOut(PORT, [8])) => Ok(()),
        Ok(exit) => Err(ProbeError::Ended(format!("{exit:?}"))),
        Err(e) => Err(ProbeError::Run(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_probe_agrees_with_the_kind_of_this_hosts_kvm() {
        let kvm = crate::kvm::open_at(Path::new(crate::kvm::DEVICE)).unwrap();
        let verdict = run(&kvm);
        if Path::new("/sys/module/kvm_pvm").exists() {
            assert!(matches!(verdict, Err(ProbeError::Ended(_))), "{verdict:?}");
        } else {
            verdict.unwrap();
        }
    }
}
