//! The MultiProcessor table (Intel MP specification 1.4, chapter 4): processors, the ISA bus, the
//! IO-APIC and its lines.
//!
//! There always is one. Without it Linux stays on the 8259, and under nested SVM a guest then
//! hangs now and again with an interrupt pending that it never takes.

use super::layout::{IO_APIC, IO_APIC_PINS, LOCAL_APIC, MP_TABLE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

const SPECIFICATION_1_4: u8 = 4;
/// What KVM's APICs report as their version.
const APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;
const ISA_BUS: u8 = 0;
const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;
/// Family 6, which is all that Linux reads of it; the truth is in CPUID.
const CPU_SIGNATURE: u32 = 0x600;
const CPU_FEATURES_APIC_FPU: u32 = 0x201;

/// Types of interrupt entries (§4.3.4).
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;

/// Writes the table for `vcpus` processors, with APIC ids from 0.
///
/// # Errors
/// If it does not fit into the memory.
pub fn write(memory: &GuestMemoryMmap, vcpus: u8) -> Result<(), GuestMemoryError> {
    let table = build(vcpus);
    memory.write_slice(&floating_pointer(MP_TABLE as u32 + 16), GuestAddress(MP_TABLE))?;
    memory.write_slice(&table, GuestAddress(MP_TABLE + 16))
}

/// §4.1
fn floating_pointer(table: u32) -> [u8; 16] {
    let mut pointer = [0u8; 16];
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&table.to_le_bytes());
    pointer[8] = 1; // length, in 16 bytes
    pointer[9] = SPECIFICATION_1_4;
    pointer[10] = checksum(&pointer);
    pointer
}

/// §4.2 and §4.3
fn build(vcpus: u8) -> Vec<u8> {
    let io_apic_id = vcpus;
    let mut entries: Vec<Vec<u8>> = Vec::new();
    for id in 0..vcpus {
        let flags = if id == 0 { ENABLED | BOOT_PROCESSOR } else { ENABLED };
        let mut entry = vec![0, id, APIC_VERSION, flags];
        entry.extend(CPU_SIGNATURE.to_le_bytes());
        entry.extend(CPU_FEATURES_APIC_FPU.to_le_bytes());
        entry.extend([0; 8]);
        entries.push(entry);
    }
    entries.push([&[1, ISA_BUS], &b"ISA   "[..]].concat());
    entries.push([&[2, io_apic_id, IO_APIC_VERSION, ENABLED], &IO_APIC.to_le_bytes()[..]].concat());
    for line in 0..IO_APIC_PINS {
        // Polarity and trigger "as the bus does": edge, active high.
        entries.push(vec![3, INT, 0, 0, ISA_BUS, line, io_apic_id, line]);
    }
    entries.push(vec![4, EXT_INT, 0, 0, ISA_BUS, 0, 0, 0]);
    entries.push(vec![4, NMI, 0, 0, ISA_BUS, 0, 0xff, 1]);

    let mut table = vec![0u8; 44];
    table[..4].copy_from_slice(b"PCMP");
    table[6] = SPECIFICATION_1_4;
    table[8..16].copy_from_slice(b"KATALIKE");
    table[16..28].copy_from_slice(b"MICROVM     ");
    table[34..36].copy_from_slice(&(entries.len() as u16).to_le_bytes());
    table[36..40].copy_from_slice(&LOCAL_APIC.to_le_bytes());
    table.extend(entries.concat());
    let len = table.len() as u16;
    table[4..6].copy_from_slice(&len.to_le_bytes());
    table[7] = checksum(&table);
    table
}

/// The byte that makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, b| sum.wrapping_add(*b))
    }

    #[test]
    fn both_structures_sum_to_zero_and_say_their_length() {
        assert_eq!(sum(&floating_pointer(0xf0010)), 0);
        for vcpus in [1u8, 2, 4, 254] {
            let table = build(vcpus);
            assert_eq!(sum(&table), 0);
            assert_eq!(u16::from_le_bytes([table[4], table[5]]) as usize, table.len());
            let entries = u16::from_le_bytes([table[34], table[35]]) as usize;
            assert_eq!(entries, vcpus as usize + 2 + 24 + 2);
            assert_eq!(table.len(), 44 + 20 * vcpus as usize + 8 * (entries - vcpus as usize));
            assert!(MP_TABLE as usize + 16 + table.len() <= 0x10_0000);
        }
    }

    #[test]
    fn only_the_first_processor_boots_and_the_io_apic_has_its_own_id() {
        let table = build(3);
        let flags: Vec<u8> = (0..3).map(|i| table[44 + 20 * i + 3]).collect();
        assert_eq!(flags, [3, 1, 1]);
        let io_apic = &table[44 + 60 + 8..];
        assert_eq!(io_apic[..2], [2, 3]);
    }
}
