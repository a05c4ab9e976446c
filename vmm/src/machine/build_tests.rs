use super::*;

#[test]
fn the_image_lies_behind_the_kernel() {
    let at = place_initrd(128 << 20, (32 << 20) + 1, 5 << 20).unwrap();
    assert_eq!(at, 34 << 20);
}

#[test]
fn too_little_memory_says_how_much_is_needed() {
    let needs = |size: u64, kernel: u64, initrd: u64| match place_initrd(size, kernel, initrd) {
        Err(StartError::TooLittleMemory { has_mib, needs_mib, .. }) => (has_mib, needs_mib),
        other => panic!("{other:?}"),
    };
    assert_eq!(needs(1 << 20, 32 << 20, 10 << 20), (1, 32 + 20 + 24));
    assert_eq!(needs(75 << 20, 32 << 20, 10 << 20), (75, 76));
    assert!(place_initrd(76 << 20, 32 << 20, 10 << 20).is_ok());
    assert_eq!(needs(0, 32 << 20, u64::MAX).0, 0);
    // Not into the device hole, however large the memory is.
    assert_eq!(needs(16 << 30, 32 << 20, 3 << 30).0, 16 << 10);
    let error = place_initrd(1 << 20, 32 << 20, 0).unwrap_err();
    assert!(error.remedy().contains("at least 56 MiB"), "{}", error.remedy());
}

#[test]
fn no_vcpus_and_too_many_are_refused() {
    for asked in [0, 4096, u32::MAX] {
        let error = open_kvm(asked).map(drop).unwrap_err();
        // Where KVM itself is refused (PVM), that comes first.
        let expected = match error {
            StartError::Vcpus { asked: named, .. } => named == asked,
            StartError::Kvm(KvmError::CannotRunGuests(_)) => asked != 0,
            _ => false,
        };
        assert!(expected, "{error}");
    }
}
