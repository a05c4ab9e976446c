//! What a tap leaves to its other side.

use super::feature;
use std::fs::File;
use std::os::fd::AsRawFd;

/// The request that tells a tap which offloads the other side takes, `_IOW('T', 208, unsigned int)`.
pub(crate) const TUNSETOFFLOAD: u32 = 0x4004_54d0;

/// Its bits.
const TUN_F_CSUM: u32 = 1;
const TUN_F_TSO4: u32 = 2;
const TUN_F_TSO6: u32 = 4;

/// Has the tap cut and sum up frames that a driver with these features doesn't take as they are.
pub(super) fn set(tap: &File, features: u64) {
    let offered = [
        (feature::GUEST_CSUM, TUN_F_CSUM),
        (feature::GUEST_TSO4, TUN_F_TSO4),
        (feature::GUEST_TSO6, TUN_F_TSO6),
    ];
    let taken = offered.iter().filter(|(bit, _)| features & bit != 0);
    let mut bits = taken.fold(0, |bits, (_, bit)| bits | bit);
    if bits & TUN_F_CSUM == 0 {
        // Segments are cut from what has no checksum yet.
        bits = 0;
    }
    // SAFETY: the request takes a number; the descriptor is the tap's.
    // It can fail only where there is no tap, as in tests: then there is nothing to be offloaded.
    let _ = unsafe {
        libc::ioctl(tap.as_raw_fd(), libc::Ioctl::from(TUNSETOFFLOAD), libc::c_ulong::from(bits))
    };
}
