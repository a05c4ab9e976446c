//! Every way a start can fail ends in one `Failed` event that names the thing and its remedy.
//! Needs no guest kernel and no particular kind of KVM.

mod launch;

use protocol::control::{self, Command, ControlError, Event};
use protocol::machine::{JailConfig, MachineConfig, Size};
use std::path::{Path, PathBuf};

fn config() -> MachineConfig {
    MachineConfig {
        vcpus: 1,
        memory_mib: 128,
        max: Size::default(),
        nested: false,
        // The first file that the VMM looks at; tests of what comes later give a good one.
        kernel: "/nonexistent/vmlinux".into(),
        initrd: None,
        cmdline: String::new(),
        console_log: None,
        slots: 0,
        vsock: None,
        shared_dirs: Vec::new(),
        jail: JailConfig { uid: 65_534, gid: 65_534, namespaces: false, core_scheduling: true },
    }
}

/// Error and remedy of a start with this configuration; the process has ended with status 1.
fn failure(config: MachineConfig) -> (String, String) {
    failure_after(config, || Ok(()))
}

/// As [`failure`], where `prepare` has changed the process before the VMM starts.
fn failure_after(
    config: MachineConfig,
    prepare: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static,
) -> (String, String) {
    let program = Path::new(env!("CARGO_BIN_EXE_kata-like-vmm"));
    let (socket, mut vmm) = launch::spawn_after(program, prepare).unwrap();
    control::send(&socket, &Command::Boot(Box::new(config)), &[]).unwrap();
    let (event, _) = control::receive::<Event>(&socket).unwrap();
    assert!(matches!(control::receive::<Event>(&socket), Err(ControlError::Closed)));
    assert_eq!(vmm.wait().unwrap().code(), Some(1));
    match event {
        Event::Failed { error, remedy } => (error, remedy),
        other => panic!("{other:?}"),
    }
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("kata-like-start-{}-{name}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An ELF executable for x86-64 with one segment of `file_len` bytes, needing `memory_len`.
fn kernel(file_len: u64, memory_len: u64) -> Vec<u8> {
    let mut file = vec![0u8; 120];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    (file[16], file[18], file[54], file[56], file[64]) = (2, 62, 56, 1, 1);
    let words = [
        (24, 0x10_0000u64),
        (32, 64),
        (72, 120),
        (88, 0x10_0000),
        (96, file_len),
        (104, memory_len),
    ];
    for (offset, value) in words {
        file[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }
    file.resize(120 + file_len as usize, 0xf4);
    file
}

#[test]
fn a_kernel_that_is_missing_cut_or_none() {
    let (error, remedy) = failure(config());
    assert!(error.contains("/nonexistent/vmlinux") && error.contains("No such file"), "{error}");
    assert!(remedy.contains("install"), "{remedy}");

    let scratch = Scratch::new("kernels");
    let whole = kernel(4096, 4096);
    for (name, bytes, says) in [
        ("cut", &whole[..4000], "truncated: it has 4000 bytes of 4216"),
        ("text", &[b'x'; 4000][..], "not a kernel"),
        ("empty", &[][..], "truncated"),
    ] {
        let path = scratch.file(name, bytes);
        let (error, remedy) = failure(MachineConfig { kernel: path.clone(), ..config() });
        assert!(error.contains(&*path.to_string_lossy()), "{error}");
        assert!(error.contains(says), "{error}");
        assert!(!remedy.is_empty());
    }
}

#[test]
fn a_guest_image_that_is_missing() {
    let scratch = Scratch::new("image");
    let kernel = scratch.file("kernel", &kernel(4096, 4096));
    let initrd = Some("/nonexistent/guest.img".into());
    let (error, _) = failure(MachineConfig { kernel, initrd, ..config() });
    assert!(error.contains("/nonexistent/guest.img"), "{error}");
}

#[test]
fn too_little_memory() {
    let scratch = Scratch::new("memory");
    let kernel = scratch.file("kernel", &kernel(4096, 40 << 20));
    for memory_mib in [0, 1, 60] {
        let kernel = kernel.clone();
        let (error, remedy) = failure(MachineConfig { kernel, memory_mib, ..config() });
        assert!(
            error.starts_with(&format!("{memory_mib} MiB of memory are too little")),
            "{error}"
        );
        assert!(remedy.contains("at least 66 MiB"), "{remedy}");
    }
}

#[test]
fn too_few_and_too_many_vcpus() {
    let scratch = Scratch::new("vcpus");
    let kernel = scratch.file("kernel", &kernel(4096, 4096));
    for vcpus in [0, 4096] {
        let (error, remedy) = failure(MachineConfig { kernel: kernel.clone(), vcpus, ..config() });
        // A KVM that runs no guests at all is the better reason.
        let no_guests = vcpus != 0 && error.contains("can't run guest kernels");
        assert!(no_guests || error.starts_with(&format!("{vcpus} vCPUs")), "{error}");
        assert!(!remedy.is_empty());
    }
}

/// A `/dev` of the process's own, with a `kvm` that may not be opened, or with nothing in it.
fn another_dev(with_kvm: bool) -> std::io::Result<()> {
    let number = libc::makedev(10, 232);
    // SAFETY: plain system calls on constant strings.
    let done = unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(
                std::ptr::null(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            ) == 0
            && libc::mount(
                c"dev".as_ptr(),
                c"/dev".as_ptr(),
                c"tmpfs".as_ptr(),
                libc::MS_NODEV, // opening a device is then refused, to root as well
                std::ptr::null(),
            ) == 0
            && (!with_kvm || libc::mknod(c"/dev/kvm".as_ptr(), libc::S_IFCHR | 0o666, number) == 0)
    };
    if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[test]
fn no_kvm_and_a_kvm_that_may_not_be_opened() {
    let scratch = Scratch::new("kvm");
    let kernel = scratch.file("kernel", &kernel(4096, 4096));
    let config = MachineConfig { kernel, ..config() };
    let (error, remedy) = failure_after(config.clone(), || another_dev(false));
    assert!(error.contains("/dev/kvm"), "{error}");
    assert!(remedy.contains("modprobe"), "{remedy}");
    let (error, remedy) = failure_after(config, || another_dev(true));
    assert!(error.contains("/dev/kvm") && error.contains("ermission"), "{error}");
    assert!(remedy.contains("usermod"), "{remedy}");
}

#[test]
fn a_kvm_that_runs_no_kernels() {
    if !Path::new("/sys/module/kvm_pvm").exists() {
        return;
    }
    let scratch = Scratch::new("pvm");
    let kernel = scratch.file("kernel", &kernel(4096, 4096));
    let (error, remedy) = failure(MachineConfig { kernel, ..config() });
    assert!(error.contains("can't run guest kernels"), "{error}");
    assert!(remedy.contains("VT-x or AMD-V"), "{remedy}");
}

#[test]
fn a_configuration_that_is_none() {
    let program = Path::new(env!("CARGO_BIN_EXE_kata-like-vmm"));
    for message in [&b"{}"[..], b"\xff", b"\"pause\""] {
        let (socket, mut vmm) = launch::spawn(program).unwrap();
        nix::sys::socket::send(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            message,
            nix::sys::socket::MsgFlags::empty(),
        )
        .unwrap();
        assert_eq!(vmm.wait().unwrap().code(), Some(1));
    }
    let (socket, mut vmm) = launch::spawn(program).unwrap();
    drop(socket);
    assert_eq!(vmm.wait().unwrap().code(), Some(1));
}

#[test]
fn what_a_shim_left_open_by_mistake_is_closed_before_the_first_message() {
    let program = Path::new(env!("CARGO_BIN_EXE_kata-like-vmm"));
    let (socket, mut vmm) = launch::spawn_after(program, || {
        // SAFETY: a plain system call on a descriptor that is open; the copy is open across exec.
        let copy = unsafe { libc::dup2(0, 77) };
        if copy == 77 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    })
    .unwrap();
    let descriptors = PathBuf::from(format!("/proc/{}/fd", vmm.id()));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while descriptors.join("77").symlink_metadata().is_ok() {
        assert!(std::time::Instant::now() < deadline, "it stays open");
        std::thread::yield_now();
    }
    let mut left: Vec<_> = std::fs::read_dir(&descriptors)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["0", "1", "2", "3"]);
    drop(socket);
    vmm.wait().unwrap();
}
