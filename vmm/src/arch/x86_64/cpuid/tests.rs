use super::*;

fn registers(cpuid: &CpuId, function: u32, index: u32) -> [u32; 4] {
    let found = cpuid.as_slice().iter().find(|e| e.function == function && e.index == index);
    found.map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx])
}

fn guest(supported: &CpuId, id: u8, vcpus: u8) -> CpuId {
    for_vcpu(supported, id, Shape { vcpus, nested: false }).unwrap()
}

#[test]
fn each_vcpu_has_its_own_apic_id_in_every_leaf_that_has_one() {
    for supported in [tables::intel(), tables::amd()] {
        for id in [0u8, 3] {
            let cpuid = guest(&supported, id, 4);
            let id = u32::from(id);
            assert_eq!(registers(&cpuid, 1, 0)[1], (id << 24) | (4 << 16) | 0x0800);
            let levels = [0, 1, 2].map(|index| registers(&cpuid, 0xb, index)[3]);
            assert_eq!(levels, [id; 3]);
        }
    }
    let amd = guest(&tables::amd(), 3, 4);
    assert_eq!(registers(&amd, 0x8000_001e, 0), [3, 3, 0, 0]);
}

#[test]
fn the_topology_is_one_package_of_single_threaded_cores() {
    for (supported, functions) in [(tables::intel(), &[0xb, 0x1f][..]), (tables::amd(), &[0xb])] {
        // How far to shift an APIC id for the package's, as Linux takes it from here.
        for (vcpus, shift) in [(1u8, 0), (2, 1), (3, 2), (4, 2), (5, 3), (64, 6)] {
            let cpuid = guest(&supported, 0, vcpus);
            for &function in functions {
                assert_eq!(registers(&cpuid, function, 0), [0, 1, 0x100, 0]);
                assert_eq!(registers(&cpuid, function, 1), [shift, vcpus.into(), 0x201, 0]);
                assert_eq!(registers(&cpuid, function, 2), [0, 0, 2, 0]);
                let levels = cpuid.as_slice().iter().filter(|e| e.function == function);
                assert_eq!(levels.count(), 3);
            }
            let threads = registers(&cpuid, 1, 0)[3] >> 28 & 1;
            assert_eq!(threads, u32::from(vcpus > 1), "more than one in the package");
        }
    }
    let amd = guest(&tables::amd(), 0, 3);
    assert_eq!(registers(&amd, 0x8000_0008, 0), [0x34_3934, 0x530a_d205, 0x2002, 0]);
}

#[test]
fn a_leaf_that_the_processor_has_not_is_not_made() {
    assert_eq!(
        guest(&tables::amd(), 0, 4).as_slice().iter().filter(|e| e.function == 0x1f).count(),
        0
    );
}

#[test]
fn the_first_two_caches_are_a_cores_and_the_third_the_packages() {
    let caches = |cpuid: &CpuId, function| {
        [0, 1, 2, 3].map(|index| (registers(cpuid, function, index)[0] >> 14) & 0xfff)
    };
    let cores = |cpuid: &CpuId| [0, 3].map(|index| registers(cpuid, 4, index)[0] >> 26);
    let intel = |vcpus| guest(&tables::intel(), 0, vcpus);
    assert_eq!((caches(&intel(1), 4), cores(&intel(1))), ([0, 0, 0, 0], [0, 0]));
    assert_eq!((caches(&intel(4), 4), cores(&intel(4))), ([0, 0, 0, 3], [3, 3]));
    assert_eq!((caches(&intel(64), 4), cores(&intel(64))), ([0, 0, 0, 63], [63, 63]));
    // What kind of cache it is stays, and so does the end of the list.
    assert_eq!(registers(&intel(4), 4, 3)[0] & 0x3fff, 0x163);
    assert_eq!(registers(&intel(4), 4, 4), [0; 4]);
    let amd = |vcpus| caches(&guest(&tables::amd(), 0, vcpus), 0x8000_001d);
    assert_eq!([amd(1), amd(3)], [[0; 4], [0, 0, 0, 2]]);
}

#[test]
fn virtual_machines_in_a_guest_are_offered_only_where_that_is_configured() {
    for nested in [false, true] {
        let shape = Shape { vcpus: 1, nested };
        let intel = for_vcpu(&tables::intel(), 0, shape).unwrap();
        assert_eq!(registers(&intel, 1, 0)[2] & 1 << 5 != 0, nested);
        let amd = for_vcpu(&tables::amd(), 0, shape).unwrap();
        assert_eq!(registers(&amd, 0x8000_0001, 0)[2] & 1 << 2 != 0, nested);
        assert_eq!(registers(&amd, 0x8000_000a, 0)[0] != 0, nested);
    }
}

#[test]
fn there_are_no_performance_counters() {
    let (intel, amd) = (guest(&tables::intel(), 0, 2), guest(&tables::amd(), 0, 2));
    assert_eq!(registers(&intel, 0xa, 0), [0; 4]);
    assert_eq!(registers(&intel, 1, 0)[2] & 1 << 15, 0);
    assert_eq!(registers(&amd, 0x8000_0022, 0), [0; 4]);
    assert_eq!(registers(&amd, 0x8000_0001, 0)[2], 0x0040_03f3);
}

#[test]
fn tiles_and_all_that_belongs_to_them_are_hidden() {
    let intel = guest(&tables::intel(), 0, 2);
    assert_eq!(registers(&intel, 7, 0)[3], 0xac81_4410);
    assert_eq!(registers(&intel, 7, 1), [0x1c30, 0, 0, 0x4000]);
    // The size is that of a processor without them, as Firecracker's guests had it on Linux 5.10.
    assert_eq!(registers(&intel, 0xd, 0), [0x2e7, 0x240, 0xa88, 0]);
    for (function, index) in [(0xd, 17), (0xd, 18), (0x1d, 0), (0x1d, 1), (0x1e, 0)] {
        assert_eq!(registers(&intel, function, index), [0; 4]);
    }
    // Where there are none nothing changes.
    assert_eq!(registers(&guest(&tables::amd(), 0, 2), 0xd, 0), [0x2e7, 0x240, 0x988, 0]);
}

#[test]
fn linux_is_told_of_its_hypervisor_and_of_the_deadline_timer() {
    for supported in [tables::intel(), tables::amd()] {
        let ecx = registers(&guest(&supported, 0, 1), 1, 0)[2];
        assert_eq!(ecx & (1 << 31 | 1 << 24), 1 << 31 | 1 << 24);
    }
}

#[test]
fn makers_are_told_apart() {
    assert!(is_intel(&tables::intel()));
    assert!(!is_intel(&tables::amd()));
}

#[test]
fn this_hosts_kvm_takes_what_is_made_of_its_own() {
    let kvm = crate::kvm::open_at(std::path::Path::new(crate::kvm::DEVICE)).unwrap();
    let vm = crate::kvm::create_vm(&kvm).unwrap();
    let supported = supported(&kvm).unwrap();
    for id in [0, 5] {
        let vcpu = vm.create_vcpu(id).unwrap();
        vcpu.set_cpuid2(&guest(&supported, id as u8, 6)).unwrap();
        let taken = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
        assert_eq!(registers(&taken, 1, 0)[1] >> 16, (id as u32) << 8 | 6);
    }
}
