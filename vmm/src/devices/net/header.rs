//! The header before each frame (virtio 1.3 §5.1.6), as the driver sends it.

use super::feature;

/// Its bytes, with `num_buffers`.
pub const HEADER: usize = 12;

/// Where `num_buffers` is.
pub(super) const NUM_BUFFERS: usize = 10;

/// Bytes of an Ethernet header, and of one with a VLAN tag.
pub(super) const ETHERNET: usize = 14;
pub(super) const ETHERNET_VLAN: usize = 18;

/// Longest frame: IP's longest packet, behind an Ethernet header with a VLAN tag.
pub(super) const MAX_FRAME: usize = ETHERNET_VLAN + 65_535;

const F_NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// Whether a frame of so many bytes may go to the host's kernel with this header: it parses what it is told to, so it
/// is told nothing that was not negotiated or lies outside the frame.
pub(super) fn is_sound(header: &[u8; HEADER], frame: usize, features: u64) -> bool {
    let word = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let has = |bit: u64| features & bit != 0;
    let (flags, gso, header_len, gso_size) = (header[0], header[1], word(2), word(4));
    let (start, offset) = (word(6), word(8));
    let csum = match flags {
        0 => true,
        F_NEEDS_CSUM => has(feature::CSUM) && start + offset + 2 <= frame,
        _ => false,
    };
    let segments = match gso {
        GSO_NONE => true,
        GSO_TCPV4 | GSO_TCPV6 => {
            let bit = if gso == GSO_TCPV4 { feature::HOST_TSO4 } else { feature::HOST_TSO6 };
            has(bit) && flags == F_NEEDS_CSUM && gso_size > 0 && header_len <= frame
        }
        _ => false,
    };
    csum && segments && (ETHERNET..=MAX_FRAME).contains(&frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::net::FEATURES;

    fn header(flags: u8, gso: u8, words: [u16; 4]) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        (header[0], header[1]) = (flags, gso);
        for (at, word) in (2..).step_by(2).zip(words) {
            header[at..at + 2].copy_from_slice(&word.to_le_bytes());
        }
        header
    }

    #[test]
    fn what_linux_sends_passes() {
        for (flags, gso, words, frame) in [
            (0, 0, [0; 4], 60),
            (0, 0, [0; 4], ETHERNET),
            (1, 0, [0, 0, 34, 16], 60),
            (1, 1, [66, 1448, 34, 16], 60_000),
            (1, 4, [86, 1428, 54, 16], MAX_FRAME),
        ] {
            assert!(is_sound(&header(flags, gso, words), frame, FEATURES), "{flags} {gso}");
        }
    }

    #[test]
    fn what_the_hosts_kernel_is_not_to_parse_does_not() {
        for (why, flags, gso, words, frame) in [
            ("no Ethernet header", 0, 0, [0; 4], ETHERNET - 1),
            ("nothing at all", 0, 0, [0; 4], 0),
            ("too long", 0, 0, [0; 4], MAX_FRAME + 1),
            ("an unknown flag", 3, 0, [0, 0, 34, 16], 60),
            ("a checksum outside", 1, 0, [0, 0, 42, 17], 60),
            ("a checksum far outside", 1, 0, [0, 0, u16::MAX, u16::MAX], MAX_FRAME),
            ("segments without checksum", 0, 1, [66, 1448, 34, 16], 6000),
            ("segments of nothing", 1, 1, [66, 0, 34, 16], 6000),
            ("headers longer than the frame", 1, 4, [6001, 1448, 34, 16], 6000),
            ("UDP fragments, which nobody offered", 1, 3, [66, 1448, 34, 6], 6000),
            ("UDP segments, the same", 1, 5, [66, 1448, 34, 6], 6000),
            ("ECN, the same", 1, 0x81, [66, 1448, 34, 16], 6000),
        ] {
            assert!(!is_sound(&header(flags, gso, words), frame, FEATURES), "{why}");
        }
        for (lacks, gso) in [(feature::CSUM, 0), (feature::HOST_TSO4, 1), (feature::HOST_TSO6, 4)] {
            let header = header(1, gso, [66, 1448, 34, 16]);
            assert!(!is_sound(&header, 6000, FEATURES & !lacks), "{gso}");
        }
    }
}
