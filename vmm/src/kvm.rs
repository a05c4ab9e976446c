//! The host's KVM: opening it, and refusing one that can't run our guests, with the remedy.

use crate::probe::ProbeError;
use kvm_bindings::{
    KVM_CAP_PMU_CAPABILITY, KVM_PIT_SPEAKER_DUMMY, KVM_PMU_CAP_DISABLE, kvm_enable_cap,
    kvm_pit_config,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use std::io;
use std::path::Path;

/// Where KVM is.
pub const DEVICE: &str = "/dev/kvm";

/// Present when the running KVM is the PVM implementation, which runs ring 0 by emulation.
const PVM_MODULE: &str = "/sys/module/kvm_pvm";

/// The only API version there has ever been (`Documentation/virt/kvm/api.rst` §4.1).
const API_VERSION: i32 = 12;

/// Three pages that Intel VMX needs below 4 GiB, outside of guest memory and of every device.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// The page of the identity map that Intel VMX needs for real mode, next to the TSS.
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// Most vCPUs of a machine: what the guest's kernel takes. (The format would allow for 254: APIC ids are 8 bits,
/// 0xff is the broadcast, and the IO-APIC needs one.)
pub const MAX_VCPUS: usize = protocol::machine::MAX_VCPUS as usize;

/// What we need of KVM beyond the basic API.
const REQUIRED: [(Cap, &str); 8] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Why there is no usable KVM.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The device node is missing.
    #[error("{0} does not exist: this host offers no hardware virtualisation")]
    NoDevice(String),
    /// The device node may not be opened.
    #[error("no permission to open {0}")]
    NoPermission(String),
    /// The device node is there and does not open.
    #[error("{0} does not open")]
    Open(String, #[source] io::Error),
    /// The device is not KVM as we know it.
    #[error("{0} is not KVM, or has an unknown API version ({1}, not {API_VERSION})")]
    ApiVersion(String, i32),
    /// Something is missing.
    #[error("this host's KVM lacks {0}")]
    MissingCapability(&'static str),
    /// The tiny guest did not get through.
    #[error("this host's KVM can't run guest kernels")]
    CannotRunGuests(#[source] ProbeError),
    /// A call that does not fail on a healthy host.
    #[error("KVM refused to {0}")]
    Call(&'static str, #[source] kvm_ioctls::Error),
}

impl KvmError {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NoDevice(_) => {
                "enable virtualisation (VT-x or AMD-V) in the firmware, or nested virtualisation \
                 for this virtual machine, then `modprobe kvm_intel` or `modprobe kvm_amd`"
            }
            Self::NoPermission(_) => {
                "run as root, or let the user in with `usermod -aG kvm USER`; in a container, \
                 pass the device in (`--device /dev/kvm`)"
            }
            Self::Open(..) => {
                "load the module (`modprobe kvm_intel` or `modprobe kvm_amd`) and see `dmesg` for \
                 why it refuses this CPU"
            }
            Self::ApiVersion(..) | Self::MissingCapability(_) => {
                "use a Linux kernel 5.15 or newer with its own kvm module"
            }
            Self::CannotRunGuests(_) => {
                "use a host whose KVM works by VT-x or AMD-V (`ls /sys/module/kvm_intel \
                 /sys/module/kvm_amd`); software variants such as PVM run no ordinary kernel"
            }
            Self::Call(..) => "see `dmesg` of the host for KVM's own message",
        }
    }

    /// For `map_err`: which call failed.
    pub(crate) fn call(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Self::Call(what, source)
    }
}

/// Opens [`DEVICE`] and checks that it can carry a machine.
///
/// # Errors
/// See [`KvmError`].
pub fn open() -> Result<Kvm, KvmError> {
    let kvm = open_at(Path::new(DEVICE))?;
    if Path::new(PVM_MODULE).exists() {
        // Only on suspicion: the second VM that the probe makes costs start time.
        crate::probe::run(&kvm).map_err(KvmError::CannotRunGuests)?;
    }
    Ok(kvm)
}

/// Opens the KVM device at `path` and checks version and capabilities, but runs nothing.
///
/// # Errors
/// See [`KvmError`].
pub fn open_at(path: &Path) -> Result<Kvm, KvmError> {
    let name = path.display().to_string();
    let c_path = std::ffi::CString::new(name.as_str())
        .map_err(|e| KvmError::Open(name.clone(), e.into()))?;
    let kvm = Kvm::new_with_path(c_path).map_err(|e| match e.errno() {
        libc::ENOENT => KvmError::NoDevice(name.clone()),
        libc::EACCES | libc::EPERM => KvmError::NoPermission(name.clone()),
        errno => KvmError::Open(name.clone(), io::Error::from_raw_os_error(errno)),
    })?;
    match kvm.get_api_version() {
        API_VERSION => {}
        other => return Err(KvmError::ApiVersion(name, other)),
    }
    for (cap, cap_name) in REQUIRED {
        if !kvm.check_extension(cap) {
            return Err(KvmError::MissingCapability(cap_name));
        }
    }
    Ok(kvm)
}

/// Most vCPUs that a machine can have here.
pub fn max_vcpus(kvm: &Kvm) -> usize {
    kvm.get_max_vcpus().min(kvm.get_max_vcpu_id()).min(MAX_VCPUS)
}

/// Whether the host need not run performance counters for guests (Linux 5.18).
pub fn can_disable_counters(kvm: &Kvm) -> bool {
    let offered = kvm.check_extension_raw(u64::from(KVM_CAP_PMU_CAPABILITY));
    offered > 0 && offered as u32 & KVM_PMU_CAP_DISABLE != 0
}

/// What this KVM is too old for, and machines do without.
pub fn lacks(kvm: &Kvm) -> Vec<&'static str> {
    let counters = "leaving out performance counters, which guests can use (Linux 5.18)";
    if can_disable_counters(kvm) { Vec::new() } else { vec![counters] }
}

/// Creates a VM with interrupt controllers and timer in the kernel, without memory and vCPUs.
///
/// # Errors
/// [`KvmError::Call`].
pub fn create_vm(kvm: &Kvm) -> Result<VmFd, KvmError> {
    let vm = loop {
        match kvm.create_vm() {
            // A signal may interrupt it (api.rst does not say so, the kernel does it).
            Err(e) if e.errno() == libc::EINTR => {}
            other => break other.map_err(KvmError::call("create a VM"))?,
        }
    };
    vm.set_identity_map_address(IDENTITY_MAP_ADDRESS)
        .map_err(KvmError::call("place the identity map"))?;
    vm.set_tss_address(TSS_ADDRESS).map_err(KvmError::call("place the TSS"))?;
    vm.create_irq_chip().map_err(KvmError::call("create the interrupt controllers"))?;
    // Without performance counters, see `cpuid`; an older kernel only does not tell the guest of them.
    let no_counters = kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        args: [KVM_PMU_CAP_DISABLE.into(), 0, 0, 0],
        ..Default::default()
    };
    if can_disable_counters(kvm) {
        vm.enable_cap(&no_counters).map_err(KvmError::call("do without performance counters"))?;
    }
    // The speaker port (0x61) is answered in the kernel too: the guest's TSC calibration polls it.
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(KvmError::call("create the timer"))?;
    Ok(vm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_is_named_with_its_remedy() {
        let error = open_at(Path::new("/nonexistent/kvm")).unwrap_err();
        assert!(matches!(error, KvmError::NoDevice(_)));
        assert!(error.to_string().contains("/nonexistent/kvm"));
        assert!(error.remedy().contains("modprobe"));
    }

    #[test]
    fn a_device_that_is_not_kvm_is_refused() {
        let error = open_at(Path::new("/dev/null")).unwrap_err();
        assert!(matches!(error, KvmError::ApiVersion(..)), "{error}");
    }

    #[test]
    fn this_hosts_device_passes_the_static_checks() {
        let kvm = open_at(Path::new(DEVICE)).unwrap();
        assert!((1..=MAX_VCPUS).contains(&max_vcpus(&kvm)));
        create_vm(&kvm).unwrap();
    }

    #[test]
    fn no_machine_has_more_vcpus_than_the_guests_kernel_takes() {
        let config = include_str!("../../guest-kernel-config/x86_64.config");
        let option = config.lines().find_map(|line| line.strip_prefix("CONFIG_NR_CPUS="));
        let value = option.unwrap().split_whitespace().next().unwrap();
        assert_eq!(value.parse(), Ok(MAX_VCPUS));
    }
}
