//! What a container process is reduced to, in the right order with its seccomp filter.
//!
//! libcontainer drops capabilities before it calls the executor. A filter may be installed without
//! `no_new_privs` only by a process with `CAP_SYS_ADMIN`, so where neither is given the process keeps
//! that capability (and `CAP_SETPCAP`, to drop it from its bounding set) until the filter is in place.

use crate::spec::seccomp::{Compiled, Filter};
use caps::{CapSet, Capability, CapsHashSet};
use libcontainer::capabilities::CapabilityExt as _;
use oci_spec::runtime::{Capabilities, Capability as SpecCapability, LinuxCapabilities, Process};

/// What the executor needs until the filter is in place.
const FOR_THE_FILTER: [Capability; 2] = [Capability::CAP_SYS_ADMIN, Capability::CAP_SETPCAP];

/// How a process is to end up.
#[derive(Debug, Clone)]
pub struct Privileges {
    /// Its user and group, as the guest numbers them.
    pub owner: (u32, u32),
    /// To be installed in this order.
    pub filters: Vec<Filter>,
    /// Names of calls in the profile that this kernel does not have.
    pub unknown_calls: Vec<String>,
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
    /// Notes what `process`, of that owner, is to be reduced to, and widens its capabilities for the time before.
    pub fn take_over(process: &mut Process, owner: (u32, u32), compiled: Compiled) -> Self {
        let Compiled { filters, unknown: unknown_calls } = compiled;
        let privileged_filter = !filters.is_empty() && process.no_new_privileges() != Some(true);
        let wanted = complete(process.capabilities().as_ref());
        // libcontainer sets them after the permitted ones, and then that takes a privilege.
        let inherits_more = !is_subset(wanted.inheritable().as_ref(), wanted.permitted().as_ref());
        let privileged = privileged_filter || inherits_more;
        let reduce_to = privileged.then(|| CapabilitySets::of(&wanted));
        let wanted = if privileged { widened(wanted) } else { wanted };
        process.set_capabilities(Some(wanted));
        Self { owner, filters, unknown_calls, reduce_to }
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
        .set_inheritable(set(LinuxCapabilities::inheritable));
    all.set_ambient(Some(raisable(&set(LinuxCapabilities::ambient).unwrap_or_default(), &all)));
    all
}

/// Of an ambient set what the kernel takes: a capability that is permitted and inheritable. runc warns of others.
fn raisable(ambient: &Capabilities, all: &LinuxCapabilities) -> Capabilities {
    let held = |set: &Option<Capabilities>, capability: &SpecCapability| {
        set.as_ref().is_some_and(|set| set.contains(capability))
    };
    let (raised, lost): (Capabilities, Capabilities) =
        ambient.iter().copied().partition(|capability| {
            held(all.permitted(), capability) && held(all.inheritable(), capability)
        });
    for capability in lost {
        tracing::warn!(
            "can't raise ambient capability CAP_{capability}: it is not inheritable and permitted"
        );
    }
    raised
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

fn is_subset(set: Option<&Capabilities>, of: Option<&Capabilities>) -> bool {
    set.into_iter().flatten().all(|capability| of.is_some_and(|of| of.contains(capability)))
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

    fn filter() -> Compiled {
        Compiled { filters: vec![Filter::default()], unknown: Vec::new() }
    }

    #[test]
    fn capabilities_are_widened_only_for_a_filter_without_no_new_privs() {
        for (no_new_privs, compiled) in
            [(true, filter()), (true, Compiled::default()), (false, Compiled::default())]
        {
            let mut p = process(no_new_privs);
            let before = p.clone();
            assert!(Privileges::take_over(&mut p, (0, 0), compiled).reduce_to.is_none());
            assert_eq!(p, before);
        }
    }

    #[test]
    fn a_set_that_is_not_named_is_empty() {
        let mut p = process(true);
        p.set_capabilities(None);
        Privileges::take_over(&mut p, (0, 0), Compiled::default());
        let got = p.capabilities().clone().unwrap();
        let sets = [got.bounding(), got.effective(), got.permitted(), got.inheritable()];
        assert!(sets.iter().all(|set| set.as_ref().unwrap().is_empty()));
    }

    #[test]
    fn capabilities_are_widened_for_a_process_that_inherits_what_it_may_not_use() {
        let mut p = process(true);
        let mut wanted = p.capabilities().clone().unwrap();
        wanted.set_permitted(Some(Capabilities::new()));
        p.set_capabilities(Some(wanted));
        let back = Privileges::take_over(&mut p, (0, 0), Compiled::default()).reduce_to.unwrap();
        assert!(back.permitted.is_empty());
        let permitted = p.capabilities().as_ref().unwrap().permitted().clone().unwrap();
        assert!(permitted.contains(&SpecCapability::Setpcap));
    }

    #[test]
    fn an_ambient_capability_that_cannot_be_raised_is_left_out() {
        let set = |all: &[SpecCapability]| Some(all.iter().copied().collect::<Capabilities>());
        let mut wanted = LinuxCapabilities::default();
        wanted
            .set_permitted(set(&[SpecCapability::Kill, SpecCapability::Chown]))
            .set_inheritable(set(&[SpecCapability::Kill, SpecCapability::Fowner]))
            .set_ambient(set(&[
                SpecCapability::Kill,
                SpecCapability::Chown,
                SpecCapability::Fowner,
            ]));
        let mut p = process(true);
        p.set_capabilities(Some(wanted));
        Privileges::take_over(&mut p, (0, 0), Compiled::default());
        let got = p.capabilities().clone().unwrap();
        assert_eq!(got.ambient(), &set(&[SpecCapability::Kill]));
    }

    #[test]
    fn what_is_inherited_is_never_widened() {
        let mut p = process(false);
        let privileges = Privileges::take_over(&mut p, (0, 0), filter());
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
