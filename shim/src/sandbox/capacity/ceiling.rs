//! What the cgroups above a sandbox's leave it.

use super::Capacity;
use protocol::machine::Size;

/// What our processes really need of the host's memory besides the guest's, MiB, and one over this part of it: less than
/// [`super::host`] allows them, as the pod's own overhead is all that there is where its limit counts.
pub(super) const COST_MIB: u64 = 24;
const COST_PART: u64 = 170;

/// What is a guest's of what the host leaves its sandbox, MiB of bytes.
pub(super) fn guests_part(ceiling: u64) -> u64 {
    let mib = ceiling >> 20;
    mib.saturating_sub(COST_MIB + mib / COST_PART)
}

impl Capacity {
    /// The most blocks that those above the sandbox's cgroup leave the guest: if its page cache took more, the VMM would
    /// be killed.
    pub(super) fn below_ceiling(&self) -> u64 {
        let Some(ceiling) = self.ceiling.memory else { return u64::MAX };
        guests_part(ceiling).saturating_sub(self.initial_mib) / self.block_mib()
    }

    /// What a machine of this size may take, and what those above leave it, MiB, where that is less.
    pub(super) fn beyond_ceiling(&self, size: Size) -> Option<(u64, u64)> {
        let left = self.ceiling.memory? >> 20;
        let taken = self.initial_mib + size.added_mib + COST_MIB;
        (taken > left).then_some((taken, left))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::capacity;
    use super::*;
    use crate::host::cgroup::Ceiling;

    #[test]
    fn a_machine_that_is_more_than_is_left_to_it_is_told() {
        let of = |ceiling_mib: Option<u64>| {
            let memory = ceiling_mib.map(|mib| mib << 20);
            let ceiling = Ceiling { memory, cpus: None };
            Capacity { ceiling, ..capacity(&[]) }.beyond_ceiling(Size { vcpus: 1, added_mib: 128 })
        };
        assert_eq!((of(None), of(Some(280))), (None, None));
        assert_eq!(of(Some(279)), Some((280, 279)));
    }
}
