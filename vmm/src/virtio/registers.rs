//! The registers of all devices as the guest reads them: memory, which KVM shows it for reading only, so a read costs
//! no exit (`KVM_MEM_READONLY`, api.rst §4.35). A write still is an exit, or an ioeventfd.

use crate::kvm::KvmError;
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use vm_memory::{Bytes, MmapRegion, VolatileMemory};

/// Offsets of the registers (virtio 1.3 §4.2.2); all are 32 bits wide.
#[allow(missing_docs)]
pub mod register {
    pub const MAGIC: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_SIZE_MAX: u64 = 0x034;
    pub const QUEUE_SIZE: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_LEN_HIGH: u64 = 0x0b4;
    pub const SHM_BASE_LOW: u64 = 0x0b8;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    /// Ours, where the specification has none: the I/O port that takes notifications as [`QUEUE_NOTIFY`] does, 0 if none.
    pub const NOTIFY_PORT: u64 = 0x0f0;
    /// Ours as well: the address of the message that is the interrupt; read, 0 if it is a line's only.
    pub const MESSAGE_ADDRESS: u64 = 0x0f4;
    /// And its data, with which it holds.
    pub const MESSAGE_DATA: u64 = 0x0f8;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// Bits of the Status register (virtio 1.3 §2.1).
#[allow(missing_docs)]
pub mod status {
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const NEEDS_RESET: u32 = 64;
    pub const FAILED: u32 = 128;
}

/// Bytes of a device's registers: a page of its own.
pub const PAGE: u64 = 0x1000;

/// The registers of a machine's devices, one page after the other.
pub struct RegisterPages(Arc<MmapRegion>);

impl RegisterPages {
    /// Zeros, for so many devices.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(devices: usize) -> io::Result<Self> {
        let memory = MmapRegion::new(devices * PAGE as usize).map_err(io::Error::other)?;
        Ok(Self(Arc::new(memory)))
    }

    /// That of the device with this number; one that there is not keeps nothing.
    pub fn page(&self, number: usize) -> RegisterPage {
        RegisterPage { pages: self.0.clone(), start: number * PAGE as usize }
    }

    /// Shows them to the guest of `vm` at `address`, by KVM's slot of this number.
    ///
    /// # Errors
    /// [`KvmError::Call`].
    pub fn show(&self, vm: &VmFd, slot: u32, address: u64) -> Result<(), KvmError> {
        let slot = kvm_userspace_memory_region {
            slot,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: address,
            memory_size: self.0.size() as u64,
            userspace_addr: self.0.as_ptr() as u64,
        };
        // SAFETY: the mapping lives as long as the machine, which ends with the process; the guest can only read it.
        unsafe { vm.set_user_memory_region(slot) }
            .map_err(KvmError::call("show the guest the devices' registers"))
    }
}

/// The registers of one device.
pub struct RegisterPage {
    pages: Arc<MmapRegion>,
    start: usize,
}

impl RegisterPage {
    /// The 32-bit register at this offset is read as `value` from now on.
    pub fn set(&self, offset: u64, value: u32) {
        if let Ok(register) = self.pages.get_atomic_ref::<AtomicU32>(self.start + offset as usize) {
            register.store(value.to_le(), Ordering::Release);
        }
    }

    /// The same for bytes that the guest reads in any width.
    pub fn set_bytes(&self, offset: u64, bytes: &[u8]) {
        let place = self.pages.get_slice(self.start + offset as usize, bytes.len());
        if let Ok(place) = place {
            place.copy_from(bytes);
        }
    }

    /// What the guest reads there; zeros beyond the page.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset.checked_add(data.len() as u64).is_some_and(|end| end <= PAGE) {
            let _ = self.pages.as_volatile_slice().read(data, self.start + offset as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_a_page_of_its_own() {
        let pages = RegisterPages::new(2).unwrap();
        let (first, second) = (pages.page(0), pages.page(1));
        first.set(0xffc, 0x0403_0201);
        second.set_bytes(0, &[9, 8]);
        let read = |page: &RegisterPage, offset, len| {
            let mut data = vec![0xff; len];
            page.read(offset, &mut data);
            data
        };
        assert_eq!(read(&first, 0xffc, 4), [1, 2, 3, 4]);
        assert_eq!(read(&first, 0xffe, 2), [3, 4]);
        assert_eq!(read(&second, 0, 4), [9, 8, 0, 0]);
        for offset in [0xffd, PAGE, u64::MAX] {
            assert_eq!(read(&first, offset, 4), [0; 4], "{offset:#x}");
        }
        pages.page(2).set(0, 1);
        pages.page(2).set_bytes(0, &[1]);
    }
}
