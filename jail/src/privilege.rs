//! Identity and capabilities of a confined process.

use crate::error::{JailError, Step, StepResult};
use crate::{Capabilities, Identity};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits,
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};
use rustix::thread::{Gid, Uid};

/// Leaves `keep` in the bounding set.
pub(crate) fn drop_bounding_set(keep: Capabilities) -> Result<(), JailError> {
    // By number, since the kernel may know capabilities that this program does not.
    for number in 0..u64::BITS {
        let capability = Capabilities::from_bits_retain(1 << number);
        if keep.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            Err(Errno::INVAL) => break,
            Err(e) => return Err(e).step(Step::BoundingSet),
        }
    }
    Ok(())
}

/// Makes user id 0 an id like any other for execve, and ambient capabilities impossible.
///
/// Changes between user id 0 and others still switch the effective set off and on: a file server that
/// acts for a guest's user must not keep its capabilities while it does so.
pub(crate) fn lock_secure_bits() -> Result<(), JailError> {
    set_capabilities_secure_bits(
        CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED
            | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED,
    )
    .step(Step::SecureBits)
}

/// Becomes another user and group, with no supplementary group.
pub(crate) fn become_identity(identity: Identity, keep: Capabilities) -> Result<(), JailError> {
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    set_thread_groups(&[]).step(Step::Groups)?;
    set_thread_res_gid(gid, gid, gid).step(Step::Identity)?;
    // Without this flag the permitted set is emptied on the way from user id 0 to another.
    set_keep_capabilities(!keep.is_empty()).step(Step::Identity)?;
    set_thread_res_uid(uid, uid, uid).step(Step::Identity)?;
    set_keep_capabilities(false).step(Step::Identity)
}

/// Leaves `keep` in the permitted and effective sets, and no way to get more.
pub(crate) fn keep_only(keep: Capabilities) -> Result<(), JailError> {
    clear_ambient_capability_set().step(Step::Capabilities)?;
    let sets =
        CapabilitySets { effective: keep, permitted: keep, inheritable: Capabilities::empty() };
    set_capabilities(None, sets).step(Step::Capabilities)?;
    set_no_new_privs(true).step(Step::NoNewPrivs)?;
    // Last, for every change of identity sets it anew.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).step(Step::Dumpable)
}
