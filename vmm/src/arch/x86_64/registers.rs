//! The state in which a vCPU enters a 64-bit kernel: long mode, flat segments, identity-mapped
//! page tables (`Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol").

use super::layout::{GDT, PAGE_TABLES, STACK};
use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_AM: u64 = 1 << 18;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_RESERVED: u64 = 2;

/// Selectors that the boot protocol names: `__BOOT_CS` and `__BOOT_DS`.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
/// 64-bit code, execute and read; and data, read and write; both accessed, 4 GiB, ring 0.
const GDT_ENTRIES: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

const PRESENT_WRITABLE: u64 = 3;
const HUGE: u64 = 1 << 7;
/// GiB that are identity-mapped: Linux's early code also touches what lies beyond the kernel.
const MAPPED_GIB: u64 = 4;

/// Writes the page tables and the descriptor table that [`set_long_mode`] points to.
///
/// # Errors
/// If the memory is smaller than 64 KiB.
pub fn write_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    let (pdpt, directories) = (PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000);
    memory.write_obj(pdpt | PRESENT_WRITABLE, GuestAddress(PAGE_TABLES))?;
    for gib in 0..MAPPED_GIB {
        let directory = directories + gib * 0x1000;
        memory.write_obj(directory | PRESENT_WRITABLE, GuestAddress(pdpt + gib * 8))?;
    }
    let entries: Vec<u8> = (0..MAPPED_GIB * 512)
        .flat_map(|i| ((i << 21) | HUGE | PRESENT_WRITABLE).to_le_bytes())
        .collect();
    memory.write_slice(&entries, GuestAddress(directories))?;
    for (entry, address) in GDT_ENTRIES.iter().zip((GDT..).step_by(8)) {
        memory.write_obj(*entry, GuestAddress(address))?;
    }
    Ok(())
}

/// Puts a fresh vCPU into long mode at `entry`, with `argument` in RSI (the zero page, for a
/// kernel) and in RAX.
///
/// # Errors
/// KVM's.
pub fn set_long_mode(vcpu: &VcpuFd, entry: u64, argument: u64) -> Result<(), kvm_ioctls::Error> {
    let code = kvm_segment {
        limit: u32::MAX,
        selector: CODE_SELECTOR,
        type_: 11,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment { selector: DATA_SELECTOR, type_: 3, db: 1, l: 0, ..code };
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt.base = GDT;
    sregs.gdt.limit = (GDT_ENTRIES.len() * 8 - 1) as u16;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: entry,
        rsi: argument,
        rax: argument,
        rsp: STACK,
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    })
}

/// Says that string instructions are fast, as firmware does on Intel's processors: without it Linux does not use
/// `rep movsb` for its copies.
///
/// # Errors
/// KVM's; `EINVAL` if it hasn't this register.
pub fn enable_fast_strings(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    const IA32_MISC_ENABLE: u32 = 0x1a0;
    const FAST_STRING: u64 = 1;
    let invalid = || kvm_ioctls::Error::new(libc::EINVAL);
    let entry = kvm_msr_entry { index: IA32_MISC_ENABLE, ..Default::default() };
    let mut registers = Msrs::from_entries(&[entry]).map_err(|_| invalid())?;
    if vcpu.get_msrs(&mut registers)? != 1 {
        return Err(invalid());
    }
    registers.as_mut_slice()[0].data |= FAST_STRING;
    if vcpu.set_msrs(&registers)? == 1 { Ok(()) } else { Err(invalid()) }
}

/// Wires the local APIC as a PC's firmware does: the 8259's interrupts on LINT0, NMI on LINT1.
///
/// # Errors
/// KVM's.
pub fn set_local_interrupts(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const DELIVER_EXTINT: u32 = 7 << 8;
    const DELIVER_NMI: u32 = 4 << 8;
    let mut apic = vcpu.get_lapic()?;
    for (register, value) in [(LVT_LINT0, DELIVER_EXTINT), (LVT_LINT1, DELIVER_NMI)] {
        for (byte, source) in apic.regs[register..].iter_mut().zip(value.to_le_bytes()) {
            *byte = source as _;
        }
    }
    vcpu.set_lapic(&apic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_strings_are_on_and_what_else_the_register_says_stays() {
        let kvm = crate::kvm::open_at(std::path::Path::new(crate::kvm::DEVICE)).unwrap();
        let vm = crate::kvm::create_vm(&kvm).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let read = || {
            let entry = kvm_msr_entry { index: 0x1a0, ..Default::default() };
            let mut registers = Msrs::from_entries(&[entry]).unwrap();
            assert_eq!(vcpu.get_msrs(&mut registers), Ok(1));
            registers.as_slice()[0].data
        };
        let before = read();
        enable_fast_strings(&vcpu).unwrap();
        assert_eq!(read(), before | 1);
    }
}
