//! What a container process is reduced to, in the right order with its seccomp filter.
//!
//! libcontainer drops capabilities before it calls the executor. A filter may be installed without
//! `no_new_privs` only by a process with `CAP_SYS_ADMIN`, so where neither is given the process keeps
//! that capability (and `CAP_SETPCAP`, to drop it from its bounding set) until the filter is in place.

use crate::spec::seccomp::Filter;
use caps::{CapSet, Capability, CapsHashSet};
use libcontainer::capabilities::CapabilityExt as _;
use oci_spec::runtime::{Capabilities, Capability as SpecCapability, LinuxCapabilities, Process};

/// What the executor needs until the filter is in place.
const FOR_THE_FILTER: [Capability; 2] = [Capability::CAP_SYS_ADMIN, Capability::CAP_SETPCAP];

/// How a process is to end up.
#[derive(Debug, Clone)]
pub struct Privileges {
    /// Its user and group.
    pub owner: (u32, u32),
    /// To be installed in this order.
    pub filters: Vec<Filter>,
    /// The sets that the specification asks for, when libcontainer was told to leave more.
    pub reduce_to: Option<CapabilitySets>,
}

/// The sets that were widened, as they are to be.
#[derive(Debug, Clone, Default)]
pub struct CapabilitySets {
    bounding: CapsHashSet,
    effective: CapsHashSet,
    permitted: CapsHashSet,
}

impl Privileges {
    /// Notes what `process` is to be reduced to, and widens its capabilities for the time before.
    pub fn take_over(process: &mut Process, filters: Vec<Filter>) -> Self {
        let user = process.user();
        let owner = (user.uid(), user.gid());
        let privileged_filter = !filters.is_empty() && process.no_new_privileges() != Some(true);
        let wanted = complete(process.capabilities().as_ref());
        let reduce_to = privileged_filter.then(|| CapabilitySets::of(&wanted));
        let wanted = if privileged_filter { widened(wanted) } else { wanted };
        process.set_capabilities(Some(wanted));
        Self { owner, filters, reduce_to }
    }
}

impl CapabilitySets {
    fn of(wanted: &LinuxCapabilities) -> Self {
        Self {
            bounding: to_caps(wanted.bounding().as_ref()),
            effective: to_caps(wanted.effective().as_ref()),
            permitted: to_caps(wanted.permitted().as_ref()),
        }
    }

    /// Looks at files as the finished process will.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn lower(&self) -> Result<(), caps::errors::CapsError> {
        caps::set(None, CapSet::Effective, &self.effective)
    }

    /// Takes up again what the filter needs; the bounding set is brought down for good.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn before_filter(&self) -> Result<(), caps::errors::CapsError> {
        let needed = self.effective.iter().copied().chain(FOR_THE_FILTER).collect();
        caps::set(None, CapSet::Effective, &needed)?;
        for capability in FOR_THE_FILTER {
            if !self.bounding.contains(&capability) {
                caps::drop(None, CapSet::Bounding, capability)?;
            }
        }
        Ok(())
    }

    /// Leaves the sets as the specification has them.
    ///
    /// # Errors
    /// When the kernel, or the filter just installed, refuses.
    pub fn after_filter(&self) -> Result<(), caps::errors::CapsError> {
        caps::set(None, CapSet::Effective, &self.effective)?;
        caps::set(None, CapSet::Permitted, &self.permitted)
    }
}

/// A set that is not named is empty, as for runc; libcontainer would leave it as it is.
fn complete(wanted: Option<&LinuxCapabilities>) -> LinuxCapabilities {
    let set = |set: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
        Some(wanted.and_then(|wanted| set(wanted).clone()).unwrap_or_default())
    };
    let mut all = LinuxCapabilities::default();
    all.set_bounding(set(LinuxCapabilities::bounding))
        .set_effective(set(LinuxCapabilities::effective))
        .set_permitted(set(LinuxCapabilities::permitted))
        .set_inheritable(set(LinuxCapabilities::inheritable))
        .set_ambient(set(LinuxCapabilities::ambient));
    all
}

fn widened(mut wanted: LinuxCapabilities) -> LinuxCapabilities {
    let widen = |set: &Option<Capabilities>| {
        let mut set = set.clone().unwrap_or_default();
        set.extend(FOR_THE_FILTER.map(SpecCapability::from_cap));
        Some(set)
    };
    let (bounding, effective, permitted) =
        (widen(wanted.bounding()), widen(wanted.effective()), widen(wanted.permitted()));
    wanted.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
    wanted
}

fn to_caps(set: Option<&Capabilities>) -> CapsHashSet {
    set.into_iter().flatten().map(SpecCapability::to_cap).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{LinuxCapabilitiesBuilder, ProcessBuilder};

    fn process(no_new_privileges: bool) -> Process {
        let net: Capabilities = [SpecCapability::NetBindService].into();
        let wanted = LinuxCapabilitiesBuilder::default()
            .bounding(net.clone())
            .effective(net.clone())
            .permitted(net.clone())
            .inheritable(net.clone())
            .ambient(net)
            .build()
            .unwrap();
        ProcessBuilder::default()
            .capabilities(wanted)
            .no_new_privileges(no_new_privileges)
            .build()
            .unwrap()
    }

    #[test]
    fn capabilities_are_widened_only_for_a_filter_without_no_new_privs() {
        let filter = vec![Filter::default()];
        for (no_new_privs, filters) in [(true, filter), (true, Vec::new()), (false, Vec::new())] {
            let mut p = process(no_new_privs);
            let before = p.clone();
            assert!(Privileges::take_over(&mut p, filters).reduce_to.is_none());
            assert_eq!(p, before);
        }
    }

    #[test]
    fn a_set_that_is_not_named_is_empty() {
        let mut p = process(true);
        p.set_capabilities(None);
        Privileges::take_over(&mut p, Vec::new());
        let got = p.capabilities().clone().unwrap();
        let sets = [got.bounding(), got.effective(), got.permitted(), got.inheritable()];
        assert!(sets.iter().all(|set| set.as_ref().unwrap().is_empty()));
    }

    #[test]
    fn what_is_inherited_is_never_widened() {
        let mut p = process(false);
        let privileges = Privileges::take_over(&mut p, vec![Filter::default()]);
        let got = p.capabilities().clone().unwrap();
        for widened in [got.bounding(), got.effective(), got.permitted()] {
            assert!(widened.as_ref().unwrap().contains(&SpecCapability::SysAdmin));
        }
        for kept in [got.inheritable(), got.ambient()] {
            assert_eq!(kept.as_ref().unwrap().len(), 1);
        }
        let back = privileges.reduce_to.unwrap();
        assert_eq!(back.effective, [Capability::CAP_NET_BIND_SERVICE].into());
        assert_eq!(back.permitted, back.bounding);
    }
}
