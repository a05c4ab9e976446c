//! A vCPU's registers as plain data.

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

/// Version of [`VcpuState`].
const VERSION: u32 = 1;

/// Model-specific registers that hold state of a Linux guest, by their numbers in the manuals of
/// Intel and AMD, and KVM's own (0x4b56_4dxx).
const MSRS: [u32; 27] = [
    0x10,        // TSC
    0x1b,        // APIC base
    0x3b,        // TSC adjust
    0x48,        // speculation control
    0x174,       // SYSENTER CS
    0x175,       // SYSENTER ESP
    0x176,       // SYSENTER EIP
    0x1a0,       // miscellaneous features
    0x277,       // PAT
    0x2ff,       // MTRR default type
    0x6e0,       // TSC deadline
    0xda0,       // XSS
    0xc000_0080, // EFER
    0xc000_0081, // STAR
    0xc000_0082, // LSTAR
    0xc000_0083, // CSTAR
    0xc000_0084, // SYSCALL mask
    0xc000_0100, // FS base
    0xc000_0101, // GS base
    0xc000_0102, // kernel GS base
    0xc000_0103, // TSC auxiliary
    0x4b56_4d00, // wall clock
    0x4b56_4d01, // system time
    0x4b56_4d02, // asynchronous page faults
    0x4b56_4d03, // steal time
    0x4b56_4d04, // end of interrupt
    0x4b56_4d05, // polling in the host
];

/// Everything that KVM holds about a vCPU of a Linux guest.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    version: u32,
    regs: kvm_regs,
    sregs: kvm_sregs,
    debug: kvm_debugregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    msrs: Vec<kvm_msr_entry>,
    lapic: kvm_lapic_state,
    mp_state: kvm_mp_state,
    events: kvm_vcpu_events,
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: u32,
}

impl VcpuState {
    /// Reads a vCPU that does not run.
    pub(super) fn save(vcpu: &VcpuFd) -> Result<Self, kvm_ioctls::Error> {
        // First: KVM may have to finish an injection, which changes the other registers.
        let mp_state = vcpu.get_mp_state()?;
        Ok(Self {
            version: VERSION,
            regs: vcpu.get_regs()?,
            sregs: vcpu.get_sregs()?,
            debug: vcpu.get_debug_regs()?,
            xsave: vcpu.get_xsave()?,
            xcrs: vcpu.get_xcrs()?,
            msrs: read_msrs(vcpu)?,
            lapic: vcpu.get_lapic()?,
            mp_state,
            events: vcpu.get_vcpu_events()?,
            cpuid: vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES)?.as_slice().to_vec(),
            tsc_khz: vcpu.get_tsc_khz()?,
        })
    }
}

/// Those of [`MSRS`] that this host has. KVM stops at the first that it hasn't.
fn read_msrs(vcpu: &VcpuFd) -> Result<Vec<kvm_msr_entry>, kvm_ioctls::Error> {
    let mut found = Vec::new();
    for index in MSRS {
        let entry = kvm_msr_entry { index, ..Default::default() };
        let mut one =
            Msrs::from_entries(&[entry]).map_err(|_| kvm_ioctls::Error::new(libc::EINVAL))?;
        if vcpu.get_msrs(&mut one)? == 1 {
            found.extend_from_slice(one.as_slice());
        }
    }
    Ok(found)
}

/// Where the guest was when KVM gave up, and KVM's reason.
pub(super) fn describe_fault(vcpu: &mut VcpuFd) -> String {
    let place = match (vcpu.get_regs(), vcpu.get_sregs()) {
        (Ok(regs), Ok(sregs)) => {
            format!("rip {:#x}, cr0 {:#x}, cr3 {:#x}", regs.rip, sregs.cr0, sregs.cr3)
        }
        _ => "registers unknown".to_owned(),
    };
    let run = vcpu.get_kvm_run();
    if run.exit_reason != kvm_bindings::KVM_EXIT_INTERNAL_ERROR {
        return place;
    }
    // SAFETY: with this exit reason the kernel has filled in this member of the union.
    let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
    format!("suberror {suberror}, {place}")
}
