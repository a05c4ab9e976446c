//! The file server as its machine sees it, and what a hostile guest can do to it.
//!
//! The tests need root.

mod frontend;

use frontend::fuse::{Body, Caller, GUEST_ROOT, ROOT, chain, header, u32_at, u64_at};
use frontend::{ANSWER, Descriptor, HIGH_PRIORITY, Machine, REQUEST, REQUESTS, fuse};
use rustix::fs::{XattrFlags, getxattr, setxattr};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// A directory, `shared` inside it, and a file beside `shared` that no guest may see.
struct Scratch {
    _parent: TempDir,
    shared: PathBuf,
    secret: PathBuf,
}

/// How long an answer is waited for that must not come.
const NO_ANSWER: Duration = Duration::from_secs(2);

const SECRET: &str = "not for the guest";

fn scratch() -> Scratch {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test makes mounts and namespaces: run it as root"
    );
    let parent = tempfile::tempdir().unwrap();
    let (shared, secret) = (parent.path().join("shared"), parent.path().join("secret"));
    fs::create_dir(&shared).unwrap();
    fs::write(&secret, SECRET).unwrap();
    Scratch { _parent: parent, shared, secret }
}

#[test]
fn a_file_written_by_the_guest_is_on_the_host_and_back() {
    let scratch = scratch();
    fs::write(scratch.shared.join("from-host"), "hello").unwrap();
    let mut machine = Machine::start(&scratch.shared);
    machine.init();
    assert_eq!(machine.read_path(ROOT, "from-host").unwrap(), b"hello");
    let (entry, handle) = machine.create(GUEST_ROOT, ROOT, "from-guest").unwrap();
    let data = vec![7; 1 << 20];
    assert_eq!(machine.write_file(entry.node, handle, 0, &data).unwrap(), 1 << 20);
    assert!(fs::read(scratch.shared.join("from-guest")).unwrap() == data);
    assert!(machine.read(entry.node, handle, 1 << 20).unwrap() == data);
}

/// A number of an answer by which the kernel knows never to ask again.
const NEVER: i32 = libc::ENOSYS;

fn error_of<T: std::fmt::Debug>(answer: std::io::Result<T>) -> Option<i32> {
    answer.unwrap_err().raw_os_error()
}

#[test]
fn layers_are_read_without_being_opened_and_can_not_be_written() {
    let scratch = scratch();
    let root = scratch.shared.join("c1/rootfs");
    fs::create_dir_all(&root).unwrap();
    for n in 0..600 {
        fs::write(root.join(format!("{n}")), format!("text {n}")).unwrap();
    }
    symlink("0", root.join("link")).unwrap();
    setxattr(root.join("0"), "user.colour", b"red", XattrFlags::empty()).unwrap();
    let mut machine = Machine::start_for_layers(&scratch.shared);
    machine.init();
    let descriptors = format!("/proc/{}/fd", machine.server.id());
    let descriptors = || fs::read_dir(&descriptors).unwrap().count();
    let before = descriptors();
    let container = machine.lookup(ROOT, "c1").unwrap().node;
    let root_node = machine.lookup(container, "rootfs").unwrap().node;
    let node = machine.lookup(root_node, "0").unwrap().node;
    assert_eq!(error_of(machine.open(node, libc::O_RDONLY)), Some(NEVER));
    let opendir = Body::new().u32(0).u32(0);
    assert_eq!(error_of(machine.call(fuse::OPENDIR, root_node, &opendir)), Some(NEVER));
    let flush = Body::new().u64(0).u32(0).u32(0).u64(0);
    assert_eq!(error_of(machine.call(fuse::FLUSH, node, &flush)), Some(NEVER));
    // Whatever handle is named: there is none.
    assert_eq!(machine.read(node, 77, 100).unwrap(), b"text 0");
    let list = Body::new().u64(0).u64(0).u32(4096).u32(0).u64(0).u32(0).u32(0);
    let listed = machine.call(fuse::READDIR, root_node, &list).unwrap();
    let of_ours = Body::new().u64(NO_HANDLE).u64(0).u32(4096).u32(0).u64(0).u32(0).u32(0);
    assert_eq!(machine.call(fuse::READDIR, root_node, &of_ours).unwrap(), listed);
    // The end is told where it is, to our kernel.
    let listed = names(&machine.call(fuse::READDIR, container, &list).unwrap());
    let ended = names(&machine.call(fuse::READDIR, container, &of_ours).unwrap());
    assert_eq!(ended.split_last(), Some((&String::new(), &*listed)));
    let get = |name: &str| Body::new().u32(100).u32(0).name(name);
    assert_eq!(machine.call(fuse::GETXATTR, node, &get("user.colour")).unwrap(), b"red");
    let link = machine.lookup(root_node, "link").unwrap().node;
    assert!(machine.call(fuse::GETXATTR, link, &get("security.capability")).is_err());
    let trusted = machine.call(fuse::GETXATTR, node, &get("trusted.overlay.metacopy"));
    assert_eq!(error_of(trusted), Some(NEVER));
    // Far more files than are kept open.
    let nodes: Vec<_> =
        (0..600).map(|n| machine.lookup(root_node, &format!("{n}")).unwrap().node).collect();
    for _ in 0..2 {
        for (n, &node) in nodes.iter().enumerate() {
            assert_eq!(machine.read(node, NO_HANDLE, 100).unwrap(), format!("text {n}").as_bytes());
        }
    }
    let open = descriptors() - before;
    assert!((600..600 + 256 + 16).contains(&open), "{open} descriptors");
    for _ in 0..2 {
        // Looked up twice.
        machine.forget(node);
    }
    for &node in &nodes {
        machine.forget(node);
    }
    let left = descriptors() - before;
    assert!(left < 16, "{left} descriptors are left of files that the guest has forgotten");
    assert!(machine.write_file(root_node, 0, 0, b"x").is_err());
    assert!(machine.create(GUEST_ROOT, root_node, "new").is_err());
    let mkdir = Body::new().u32(0o755).u32(0).name("new");
    assert!(machine.call(fuse::MKDIR, root_node, &mkdir).is_err());
    assert!(machine.call(fuse::UNLINK, root_node, &Body::new().name("1")).is_err());
    assert!(!root.join("new").exists() && root.join("1").exists());
}

#[test]
fn files_belong_to_the_user_of_the_guest_who_makes_them() {
    let scratch = scratch();
    fs::set_permissions(&scratch.shared, fs::Permissions::from_mode(0o777)).unwrap();
    let mut machine = Machine::start(&scratch.shared);
    machine.init();
    let user = Caller { uid: 1234, gid: 5678 };
    let (entry, _) = machine.create(user, ROOT, "mine").unwrap();
    assert_eq!((entry.uid, entry.mode), (1234, libc::S_IFREG | 0o644));
    let metadata = fs::metadata(scratch.shared.join("mine")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (1234, 5678));
}

#[test]
fn what_is_mounted_later_is_served_and_announced() {
    let scratch = scratch();
    rustix::mount::mount_bind(&scratch.shared, &scratch.shared).unwrap();
    rustix::mount::mount_change(&scratch.shared, MountPropagationFlags::SHARED).unwrap();
    let rootfs = scratch.shared.join("rootfs");
    fs::create_dir(&rootfs).unwrap();
    let mut machine = Machine::start(&scratch.shared);
    machine.init();
    assert!(!machine.lookup(ROOT, "rootfs").unwrap().submount);
    rustix::mount::mount("tmpfs", &rootfs, "tmpfs", MountFlags::empty(), None).unwrap();
    fs::write(rootfs.join("file"), "late").unwrap();
    let entry = machine.lookup(ROOT, "rootfs").unwrap();
    let content = machine.read_path(entry.node, "file");
    // The guest still knows the directory, which must not keep the host from unmounting it.
    rustix::mount::unmount(&rootfs, UnmountFlags::DETACH).unwrap();
    rustix::mount::unmount(&scratch.shared, UnmountFlags::DETACH).unwrap();
    assert!(entry.submount);
    assert_eq!(content.unwrap(), b"late");
}

#[test]
fn no_name_leads_out_of_the_directory() {
    let scratch = scratch();
    let directory = scratch.shared.join("dir");
    fs::create_dir(&directory).unwrap();
    symlink(&scratch.secret, directory.join("absolute")).unwrap();
    symlink("../../secret", directory.join("relative")).unwrap();
    symlink(scratch.secret.parent().unwrap(), directory.join("parent")).unwrap();
    let mut machine = Machine::start(&scratch.shared);
    machine.init();
    let dir = machine.lookup(ROOT, "dir").unwrap().node;
    let absolute = scratch.secret.display().to_string();
    let names = [
        "..",
        "../secret",
        "../../secret",
        "../../../etc/passwd",
        "dir/../../secret",
        "absolute",
        "relative",
        "parent",
        "parent/secret",
        "/",
        "//etc/passwd",
        "/etc/passwd",
        "/proc/self/root/etc/passwd",
        "proc",
        &absolute,
    ];
    for parent in [ROOT, dir] {
        for name in names {
            let Ok(entry) = machine.lookup(parent, name) else { continue };
            if let Ok(handle) = machine.open(entry.node, libc::O_RDONLY) {
                let content = machine.read(entry.node, handle, 4096).unwrap_or_default();
                assert!(content.is_empty(), "{name} was read: {content:?}");
            }
            assert!(machine.lookup(entry.node, "secret").is_err(), "{name} leads out");
            assert!(machine.lookup(entry.node, "passwd").is_err(), "{name} leads out");
        }
        // Nor is anything made outside.
        for name in ["../made", "../../made", &format!("{absolute}-made")] {
            let _ = machine.create(GUEST_ROOT, parent, name);
            let _ = machine.call(fuse::MKDIR, parent, &Body::new().u32(0o755).u32(0).name(name));
        }
    }
    let beside: Vec<_> =
        fs::read_dir(scratch.secret.parent().unwrap()).unwrap().flatten().collect();
    assert_eq!(beside.len(), 2, "{beside:?}");
    assert_eq!(fs::read_to_string(&scratch.secret).unwrap(), SECRET);
}

#[test]
fn a_name_with_a_zero_byte_is_refused_and_does_no_harm() {
    let scratch = scratch();
    fs::write(scratch.shared.join("a"), "").unwrap();
    let mut machine = Machine::start(&scratch.shared);
    machine.init();
    let patience = std::mem::replace(&mut machine.patience, NO_ANSWER);
    let answer = machine.call(fuse::LOOKUP, ROOT, &Body::new().bytes(b"a\0b\0"));
    assert!(answer.is_err());
    machine.patience = patience;
    // The request queue is stopped; the server and its other queue are not.
    let attributes = Body::new().u32(0).u32(0).u64(0);
    machine.call_on(HIGH_PRIORITY, GUEST_ROOT, fuse::GETATTR, ROOT, &attributes).unwrap();
}

#[test]
fn forged_nodes_and_handles_are_refused() {
    let scratch = scratch();
    fs::write(scratch.shared.join("file"), "x").unwrap();
    let mut machine = Machine::start(&scratch.shared);
    machine.init();
    let node = machine.lookup(ROOT, "file").unwrap().node;
    for forged in [0, 3, 4, 5, u64::MAX, node + 1] {
        // The last is that of what the guest has not asked to open.
        let read = machine.read(node, forged, 4096).map_err(|error| error.raw_os_error());
        assert_eq!(
            read,
            if forged == NO_HANDLE { Ok(b"x".to_vec()) } else { Err(Some(libc::EBADF)) }
        );
        assert!(machine.open(forged, libc::O_RDONLY).is_err());
        assert!(machine.lookup(forged, "file").is_err());
    }
}

#[test]
fn malformed_chains_stop_a_queue_and_nothing_else() {
    let scratch = scratch();
    let request = |address, len, next| Descriptor { address, len, writable: false, next };
    let answer = |address, len, next| Descriptor { address, len, writable: true, next };
    let malformed: [&[Descriptor]; 9] = [
        // Outside memory, over its end, at the end of the address space.
        &[request(1 << 40, 40, Some(1)), answer(ANSWER, 100, None)],
        &[request(REQUEST, 40, Some(1)), answer((4 << 20) - 8, 100, None)],
        &[request(u64::MAX - 8, 100, Some(1)), answer(ANSWER, 100, None)],
        // Too short for a header, empty, no room for an answer.
        &[request(REQUEST, 39, Some(1)), answer(ANSWER, 100, None)],
        &[request(REQUEST, 0, Some(1)), answer(ANSWER, 100, None)],
        &[request(REQUEST, 56, Some(1)), answer(ANSWER, 15, None)],
        &[request(REQUEST, 56, None)],
        // A loop, a successor that does not exist.
        &[request(REQUEST, 40, Some(0))],
        &[request(REQUEST, 40, Some(9999))],
    ];
    for chain in malformed {
        let mut machine = Machine::start(&scratch.shared);
        machine.init();
        let getattr = Body::new().u32(0).u32(0).u64(0);
        let mut bytes = header(fuse::GETATTR, ROOT, GUEST_ROOT, getattr.0.len());
        bytes.extend(&getattr.0);
        machine.write_bytes(REQUEST, &bytes);
        machine.make_available(REQUESTS, chain);
        machine
            .call_on(HIGH_PRIORITY, GUEST_ROOT, fuse::GETATTR, ROOT, &getattr)
            .unwrap_or_else(|e| panic!("{chain:?}: {e}"));
        assert!(machine.disconnect().is_some_and(|status| status.success()), "{chain:?}");
    }
}

#[test]
fn a_ring_that_claims_too_much_stops_its_queue() {
    let scratch = scratch();
    let mut machine = Machine::start(&scratch.shared);
    machine.init();
    machine.overrun(REQUESTS);
    machine.settle();
    machine.patience = NO_ANSWER;
    let getattr = Body::new().u32(0).u32(0).u64(0);
    let error = machine.call(fuse::GETATTR, ROOT, &getattr).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}

/// As when a machine is paused in the middle of work.
#[test]
fn a_queue_handed_back_with_requests_in_it_is_served_when_it_returns() {
    let scratch = scratch();
    let mut machine = Machine::start(&scratch.shared);
    machine.init();
    machine.settle();
    let getattr = Body::new().u32(0).u32(0).u64(0);
    let bytes = [header(fuse::GETATTR, ROOT, GUEST_ROOT, getattr.0.len()), getattr.0.clone()];
    machine.write_bytes(REQUEST, &bytes.concat());
    // The server finds the request and the message at once.
    machine.stop_server();
    machine.make_available(REQUESTS, &chain(bytes.concat().len()));
    let server = Pid::from_child(&machine.server);
    let base = std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_secs(1));
            kill_process(server, Signal::CONT).unwrap();
        });
        machine.take_back(REQUESTS)
    });
    assert_eq!(base, 1, "INIT alone has been answered");
    machine.hand_over(REQUESTS, base);
    machine.answered(REQUESTS).unwrap();
    for _ in 0..3 {
        machine.call(fuse::GETATTR, ROOT, &getattr).unwrap();
    }
}

#[test]
fn a_spoilt_queue_that_is_set_up_anew_is_served() {
    let scratch = scratch();
    let mut machine = Machine::start(&scratch.shared);
    machine.init();
    machine.overrun(REQUESTS);
    machine.settle();
    let getattr = Body::new().u32(0).u32(0).u64(0);
    machine.take_back(REQUESTS);
    machine.set_up_anew(REQUESTS);
    machine.call(fuse::GETATTR, ROOT, &getattr).unwrap();
}

/// A server that does not survive is a hole in the filter of system calls, or a panic.
#[test]
fn garbage_in_every_operation_is_survived() {
    let scratch = scratch();
    fs::write(scratch.shared.join("file"), "content").unwrap();
    for operation in 0..fuse::OPERATIONS {
        for (filler, len) in [(0, 0), (0, 8), (0, 128), (0xff, 128), (b'a', 64), (0xff, 4096)] {
            let mut machine = Machine::start(&scratch.shared);
            machine.init();
            let body = Body::new().bytes(&vec![filler; len]);
            let mut bytes = header(operation, ROOT, GUEST_ROOT, len);
            bytes.extend(&body.0);
            machine.write_bytes(REQUEST, &bytes);
            machine.make_available(REQUESTS, &chain(bytes.len()));
            let ended = machine.disconnect();
            assert!(
                ended.is_some_and(|status| status.success()),
                "operation {operation}, {len} bytes of {filler:#x}: {ended:?}"
            );
        }
    }
}

/// virtiofsd alone would panic: it takes room for granted.
#[test]
fn no_room_for_an_answer_is_survived_in_every_operation() {
    let scratch = scratch();
    for operation in 0..fuse::OPERATIONS {
        for room in [0, 1, 15] {
            let mut machine = Machine::start(&scratch.shared);
            machine.init();
            let bytes = [header(operation, ROOT, GUEST_ROOT, 64), vec![0; 64]].concat();
            machine.write_bytes(REQUEST, &bytes);
            let [request, answer] = chain(bytes.len());
            let answer = Descriptor { len: room, ..answer };
            match room {
                0 => machine.make_available(REQUESTS, &[Descriptor { next: None, ..request }]),
                _ => machine.make_available(REQUESTS, &[request, answer]),
            }
            let getattr = Body::new().u32(0).u32(0).u64(0);
            machine.call_on(HIGH_PRIORITY, GUEST_ROOT, fuse::GETATTR, ROOT, &getattr).unwrap();
            let ended = machine.disconnect();
            assert!(
                ended.is_some_and(|status| status.success()),
                "operation {operation}: {ended:?}"
            );
        }
    }
}

#[test]
fn what_is_written_loses_setuid_and_setgid_where_the_guest_says_so() {
    const KILL_SUIDGID: u32 = 1 << 2;
    const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
    let shared = scratch();
    let path = shared.shared.join("program");
    fs::write(&path, "old").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
    let mut machine = Machine::start(&shared.shared);
    // InitOut: two numbers of the version, the read-ahead, the features.
    let features = fuse::u32_at(&machine.init(), 12);
    assert_ne!(features & HANDLE_KILLPRIV_V2, 0, "Linux asks before each write, or says nothing");
    let node = machine.lookup(ROOT, "program").unwrap().node;
    let handle = machine.open(node, libc::O_WRONLY).unwrap();
    let mode = || fs::metadata(&path).unwrap().mode() & 0o7777;
    machine.write_file(node, handle, 0, b"new").unwrap();
    assert_eq!(mode(), 0o6777);
    machine.write_file(node, handle, KILL_SUIDGID, b"new").unwrap();
    assert_eq!(mode(), 0o777);
}

/// A truncation, by the open as well, is a write; a new owner takes the bits from everybody. Capabilities go with each.
#[test]
fn what_is_truncated_or_given_away_loses_its_privileges() {
    type Case<'a> = (&'a str, &'a dyn Fn(&mut Machine), u32);
    const OPEN_KILL_SUIDGID: u32 = 1;
    const SETATTR_KILL_SUIDGID: u32 = 1 << 11;
    const OWNER: u32 = 2 | 4;
    const SIZE: u32 = 8;
    const NAME: &str = "security.capability";
    // CAP_CHOWN, effective: VFS_CAP_REVISION_2 in <linux/capability.h>.
    const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let shared = scratch();
    let path = shared.shared.join("program");
    let mut machine = Machine::start(&shared.shared);
    machine.init();
    fs::write(&path, "old").unwrap();
    let node = machine.lookup(ROOT, "program").unwrap().node;
    let handle = machine.open(node, libc::O_RDWR).unwrap();
    let set = |machine: &mut Machine, valid: u32| {
        let body = Body::new().u32(valid).u32(0).u64(handle).u64(1).u64(0);
        let body = body.u64(1).u64(1).u64(1).u32(0).u32(0).u32(0).u32(0).u32(0);
        machine.call(fuse::SETATTR, node, &body.u32(7).u32(7).u32(0)).unwrap();
    };
    let open = |machine: &mut Machine, flags: u32| {
        let body = Body::new().u32((libc::O_WRONLY | libc::O_TRUNC) as u32).u32(flags);
        machine.call(fuse::OPEN, node, &body).unwrap();
    };
    let cases: [Case<'_>; 6] = [
        ("truncated by root", &|machine| set(machine, SIZE), 0o6777),
        ("truncated", &|machine| set(machine, SIZE | SETATTR_KILL_SUIDGID), 0o777),
        ("opened by root", &|machine| open(machine, 0), 0o6777),
        ("opened", &|machine| open(machine, OPEN_KILL_SUIDGID), 0o777),
        ("given away", &|machine| set(machine, OWNER | SETATTR_KILL_SUIDGID), 0o777),
        ("given away by root", &|machine| set(machine, OWNER), 0o777),
    ];
    for (what, change, mode) in cases {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
        setxattr(&path, NAME, &CAPABILITY, XattrFlags::empty()).unwrap();
        change(&mut machine);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, mode, "{what}");
        let gone = getxattr(&path, NAME, &mut [0; 64][..]);
        assert_eq!(gone, Err(Errno::NODATA), "{what}");
    }
}

#[test]
fn an_offset_that_no_file_has_is_refused() {
    let scratch = scratch();
    let mut machine = Machine::start(&scratch.shared);
    machine.init();
    let (file, handle) = machine.create(GUEST_ROOT, ROOT, "file").unwrap();
    for offset in [1 << 63, u64::MAX] {
        let body = || Body::new().u64(handle).u64(offset).u32(4).u32(0).u64(0).u32(0).u32(0);
        for (operation, body) in [(fuse::READ, body()), (fuse::WRITE, body().bytes(b"text"))] {
            let error = machine.call(operation, file.node, &body).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        }
    }
}

/// Each operation once as the guest's kernel makes it, for the filter of system calls.
#[test]
fn every_operation_works_under_the_filter() {
    let scratch = scratch();
    let mut machine = Machine::start(&scratch.shared);
    machine.init();
    let (file, handle) = machine.create(GUEST_ROOT, ROOT, "file").unwrap();
    let node = file.node;
    machine.write_file(node, handle, 0, b"0123456789").unwrap();
    // By a user who has to lose set-user-id bits: FUSE_WRITE_KILL_SUIDGID.
    machine.write_file(node, handle, 1 << 2, b"0123456789").unwrap();

    links_and_nodes(&mut machine, node);
    attributes(&mut machine, node, handle);
    extended_attributes(&mut machine, node);
    contents(&mut machine, node, handle);
    directories(&mut machine);

    let user = Caller { uid: 1000, gid: 1000 };
    let rename =
        Body::new().u64(ROOT).u32(libc::RENAME_NOREPLACE).u32(0).name("file").name("renamed");
    machine.call(fuse::RENAME2, ROOT, &rename).unwrap();
    machine.call(fuse::UNLINK, ROOT, &Body::new().name("renamed")).unwrap();
    assert!(
        machine
            .call_as(user, fuse::MKDIR, ROOT, &Body::new().u32(0o755).u32(0).name("no"))
            .is_err()
    );
    machine.call(fuse::RELEASE, node, &Body::new().u64(handle).u32(0).u32(0).u64(0)).unwrap();
    machine.call(fuse::STATFS, ROOT, &Body::new()).unwrap();
    assert!(machine.disconnect().is_some_and(|status| status.success()));
}

fn links_and_nodes(machine: &mut Machine, node: u64) {
    machine.call(fuse::SYMLINK, ROOT, &Body::new().name("link").name("target")).unwrap();
    let link = machine.lookup(ROOT, "link").unwrap();
    assert_eq!(machine.call(fuse::READLINK, link.node, &Body::new()).unwrap(), b"target");
    machine.call(fuse::LINK, ROOT, &Body::new().u64(node).name("hard")).unwrap();
    for (name, kind, device) in
        [("pipe", libc::S_IFIFO, 0), ("socket", libc::S_IFSOCK, 0), ("null", libc::S_IFCHR, 0x103)]
    {
        let body = Body::new().u32(kind | 0o600).u32(device).u32(0).u32(0).name(name);
        machine.call(fuse::MKNOD, ROOT, &body).unwrap();
        let special = machine.lookup(ROOT, name).unwrap().node;
        // The guest's kernel opens these itself; the server must not touch the host's.
        assert!(machine.open(special, libc::O_RDWR).is_err(), "{name}");
        let mode = Body::new().u32(1).u32(0).bytes(&[0; 60]).u32(0o640).bytes(&[0; 16]);
        machine.call(fuse::SETATTR, special, &mode).unwrap();
    }
}

fn attributes(machine: &mut Machine, node: u64, handle: u64) {
    const MODE: u32 = 1;
    const OWNER: u32 = 2 | 4;
    const SIZE: u32 = 8;
    const TIMES: u32 = 16 | 32;
    const HANDLE: u32 = 64;
    for valid in [MODE, OWNER, SIZE, TIMES] {
        for valid in [valid, valid | HANDLE] {
            let body = Body::new().u32(valid).u32(0).u64(handle).u64(5).u64(0);
            let body = body.u64(1).u64(1).u64(1).u32(0).u32(0).u32(0).u32(0o4755).u32(0);
            machine.call(fuse::SETATTR, node, &body.u32(7).u32(7).u32(0)).unwrap();
        }
    }
    machine.call(fuse::GETATTR, node, &Body::new().u32(0).u32(0).u64(0)).unwrap();
    machine.call(fuse::ACCESS, node, &Body::new().u32(4).u32(0)).unwrap();
}

fn extended_attributes(machine: &mut Machine, node: u64) {
    let link = machine.lookup(ROOT, "link").unwrap().node;
    let set = Body::new().u32(3).u32(0).u32(0).u32(0).name("user.test").bytes(b"abc");
    let done = machine.call(fuse::SETXATTR, node, &set);
    // Not every file system of a developer's machine has user attributes.
    if done.is_ok() {
        let get = Body::new().u32(64).u32(0).name("user.test");
        assert_eq!(machine.call(fuse::GETXATTR, node, &get).unwrap(), b"abc");
        machine.call(fuse::REMOVEXATTR, node, &Body::new().name("user.test")).unwrap();
    }
    let capability = Body::new().u32(20).u32(0).u32(0).u32(0).name("security.capability");
    let value = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    machine.call(fuse::SETXATTR, node, &capability.bytes(&value)).unwrap();
    for node in [ROOT, node, link] {
        machine.call(fuse::LISTXATTR, node, &Body::new().u32(1000).u32(0)).unwrap();
    }
    let get = Body::new().u32(64).u32(0).name("user.none");
    assert!(machine.call(fuse::GETXATTR, link, &get).is_err());
}

fn contents(machine: &mut Machine, node: u64, handle: u64) {
    let opened = machine.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(machine.read(node, opened, 100).unwrap(), b"01234");
    machine.call(fuse::FSYNC, node, &Body::new().u64(handle).u32(0).u32(0)).unwrap();
    machine.call(fuse::FSYNC, node, &Body::new().u64(handle).u32(1).u32(0)).unwrap();
    machine.call(fuse::FLUSH, node, &Body::new().u64(handle).u32(0).u32(0).u64(0)).unwrap();
    let _ =
        machine.call(fuse::FALLOCATE, node, &Body::new().u64(handle).u64(0).u64(9).u32(0).u32(0));
    machine
        .call(fuse::LSEEK, node, &Body::new().u64(handle).u64(0).u32(libc::SEEK_DATA as u32).u32(0))
        .unwrap();
    let (copy, to) = machine.create(GUEST_ROOT, ROOT, "copy").unwrap();
    let range = Body::new().u64(handle).u64(0).u64(copy.node).u64(to).u64(0).u64(5).u64(0);
    let _ = machine.call(fuse::COPY_FILE_RANGE, node, &range);
    for lock in [fuse::GETLK, fuse::SETLK, fuse::SETLKW] {
        let _ = machine.call(lock, node, &Body::new().u64(handle).bytes(&[0; 40]));
    }
    machine.call(fuse::SYNCFS, ROOT, &Body::new().u64(0)).unwrap();
    let _ = machine.call(
        fuse::TMPFILE,
        ROOT,
        &Body::new().u32(libc::O_RDWR as u32).u32(0o600).u32(0).u32(0).name("t"),
    );
}

fn directories(machine: &mut Machine) {
    machine.call(fuse::MKDIR, ROOT, &Body::new().u32(0o755).u32(0).name("dir")).unwrap();
    let opened = machine.call(fuse::OPENDIR, ROOT, &Body::new().u32(0).u32(0)).unwrap();
    let handle = u64_at(&opened, 0);
    for operation in [fuse::READDIR, fuse::READDIRPLUS] {
        let body = Body::new().u64(handle).u64(0).u32(4096).u32(0).u64(0).u32(0).u32(0);
        assert!(machine.call(operation, ROOT, &body).unwrap().len() > 100);
    }
    machine.call(fuse::FSYNCDIR, ROOT, &Body::new().u64(handle).u32(0).u32(0)).unwrap();
    machine.call(fuse::RELEASEDIR, ROOT, &Body::new().u64(handle).u32(0).u32(0).u64(0)).unwrap();
    machine.call(fuse::RMDIR, ROOT, &Body::new().name("dir")).unwrap();
}

#[test]
fn a_device_node_of_the_guest_is_a_node_on_the_host() {
    let scratch = scratch();
    let mut machine = Machine::start(&scratch.shared);
    machine.init();
    let body = Body::new().u32(libc::S_IFCHR | 0o600).u32(0x103).u32(0).u32(0).name("null");
    machine.call(fuse::MKNOD, ROOT, &body).unwrap();
    let metadata = fs::metadata(scratch.shared.join("null")).unwrap();
    assert!(metadata.file_type().is_char_device());
    assert_eq!(metadata.rdev(), 0x103);
}

#[test]
fn the_server_is_confined() {
    let scratch = scratch();
    let mut machine = Machine::start(&scratch.shared);
    machine.init();
    let process = PathBuf::from(format!("/proc/{}", machine.server.id()));
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, MKNOD, SETFCAP.
    let kept: u64 = [0, 1, 3, 4, 6, 7, 27, 31].iter().map(|bit| 1u64 << bit).sum();
    let threads: Vec<_> = fs::read_dir(process.join("task")).unwrap().flatten().collect();
    assert_eq!(threads.len(), 4);
    for thread in threads {
        let status = fs::read_to_string(thread.path().join("status")).unwrap();
        let field = |name: &str| {
            let mut lines = status.lines();
            let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
            line.map(ToOwned::to_owned).unwrap()
        };
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(field(set), format!("{kept:016x}"), "{set}");
        }
        assert_eq!(field("CapInh"), format!("{:016x}", 0));
        assert_eq!(field("CapAmb"), format!("{:016x}", 0));
        assert_eq!((field("NoNewPrivs").as_str(), field("Seccomp").as_str()), ("1", "2"));
    }
    for kind in ["mnt", "net", "ipc", "uts", "cgroup"] {
        let namespace = |process: &Path| fs::read_link(process.join("ns").join(kind)).unwrap();
        assert_ne!(namespace(&process), namespace(Path::new("/proc/self")), "{kind}");
    }
    let (inside, outside) = (fs::metadata(process.join("root")), fs::metadata(&scratch.shared));
    assert_eq!(inside.unwrap().ino(), outside.unwrap().ino());
    println!("start to first answer: {:?}", machine.start_time);
}

/// As docs/compatibility.md tells it. The guest's kernel then does without: locks are its own, and a program that wants
/// a file without a name learns that there is none.
#[test]
fn what_the_library_does_not_do_is_refused() {
    const POSIX_LOCKS: u32 = 1 << 1;
    const FLOCK_LOCKS: u32 = 1 << 10;
    let scratch = scratch();
    let mut machine = Machine::start(&scratch.shared);
    let offered = fuse::u32_at(&machine.init(), 12);
    assert_eq!(offered & (POSIX_LOCKS | FLOCK_LOCKS), 0);
    for operation in [fuse::TMPFILE, fuse::IOCTL, fuse::STATX, fuse::GETLK] {
        let error = machine.call(operation, ROOT, &Body::new().bytes(&[0; 64])).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSYS), "{operation}");
    }
}

/// As a mail server or a build may have them; where the caller's own limit is lower and can't be raised, half of that.
#[test]
fn twenty_thousand_files_are_open_at_once() {
    let scratch = scratch();
    fs::write(scratch.shared.join("file"), "content").unwrap();
    let mut machine = Machine::start(&scratch.shared);
    machine.init();
    let limits = fs::read_to_string(format!("/proc/{}/limits", machine.server.id())).unwrap();
    let limit = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let limit: usize = limit.split_whitespace().nth(3).unwrap().parse().unwrap();
    let own = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    assert!(limit == 1_000_000 || own == Some(limit as u64), "{limit}, {own:?}");

    // The server keeps some for itself, and half of the rest for the other file system.
    let files = 20_000.min(limit / 2 - 200);
    let node = machine.lookup(ROOT, "file").unwrap().node;
    let open = |machine: &mut Machine| machine.open(node, libc::O_RDONLY).unwrap();
    let handles: Vec<u64> = (0..files).map(|_| open(&mut machine)).collect();
    assert_eq!(machine.read(node, handles[files - 1], 100).unwrap(), b"content");
    for handle in handles {
        let release = Body::new().u64(handle).u32(0).u32(0).u64(0);
        machine.call(fuse::RELEASE, node, &release).unwrap();
    }
    let open = fs::read_dir(format!("/proc/{}/fd", machine.server.id())).unwrap().count();
    assert!(open < 100, "{open} descriptors are left");
}

/// `FUSE_NO_HANDLE`, of our kernel.
const NO_HANDLE: u64 = u64::MAX;

/// By a handle that nobody can write with.
#[test]
fn what_the_guest_opens_without_asking_is_read_and_not_kept_open() {
    let scratch = scratch();
    fs::write(scratch.shared.join("file"), "content").unwrap();
    let mut machine = Machine::start(&scratch.shared);
    machine.init();
    let fds = format!("/proc/{}/fd", machine.server.id());
    let open = || fs::read_dir(&fds).unwrap().count();
    let node = machine.lookup(ROOT, "file").unwrap().node;
    let (copy, to) = machine.create(GUEST_ROOT, ROOT, "copy").unwrap();
    let before = open();
    assert_eq!(machine.read(node, NO_HANDLE, 100).unwrap(), b"content");
    let end = Body::new().u64(NO_HANDLE).u64(0).u32(libc::SEEK_HOLE as u32).u32(0);
    assert_eq!(u64_at(&machine.call(fuse::LSEEK, node, &end).unwrap(), 0), 7);
    let range = Body::new().u64(NO_HANDLE).u64(1).u64(copy.node).u64(to).u64(0).u64(6).u64(0);
    machine.call(fuse::COPY_FILE_RANGE, node, &range).unwrap();
    assert_eq!(machine.read(copy.node, NO_HANDLE, 100).unwrap(), b"ontent");
    for (operation, node) in [(fuse::FSYNC, node), (fuse::FSYNCDIR, ROOT)] {
        machine.call(operation, node, &Body::new().u64(NO_HANDLE).u32(0).u32(0)).unwrap();
    }
    let written = machine.write_file(node, NO_HANDLE, 0, b"other").unwrap_err();
    assert_eq!(written.raw_os_error(), Some(libc::EBADF));
    assert_eq!(open(), before);
    // Nothing that its host's kernel might wait for.
    let special = libc::S_IFIFO | 0o600;
    machine
        .call(fuse::MKNOD, ROOT, &Body::new().u32(special).u32(0).u32(0).u32(0).name("fifo"))
        .unwrap();
    let fifo = machine.lookup(ROOT, "fifo").unwrap().node;
    assert!(machine.read(fifo, NO_HANDLE, 100).is_err());
}

/// Names of an answer to READDIR, the last of which may be the end, which has none.
fn names(answer: &[u8]) -> Vec<String> {
    let (mut names, mut at) = (Vec::new(), 0);
    while at < answer.len() {
        let length = u32_at(answer, at + 16) as usize;
        names.push(String::from_utf8(answer[at + 24..at + 24 + length].to_vec()).unwrap());
        at += 24 + length.next_multiple_of(8);
    }
    names
}

#[test]
fn a_directory_that_the_guest_opens_without_asking_is_listed_at_once_or_not_at_all() {
    let scratch = scratch();
    for number in 0..20 {
        fs::write(scratch.shared.join(format!("file-{number}")), "").unwrap();
    }
    let mut machine = Machine::start(&scratch.shared);
    machine.init();
    let list = |machine: &mut Machine, handle: u64, size: u32| {
        let body = Body::new().u64(handle).u64(0).u32(size).u32(0).u64(0).u32(0).u32(0);
        machine.call(fuse::READDIR, ROOT, &body).map(|answer| names(&answer))
    };
    // 20 files, the directory, its parent and the end, each with attributes as well.
    let whole = 23 * (24 + 128) + 20 * 8 + 2 * 8;
    let mut all = list(&mut machine, NO_HANDLE, whole).unwrap();
    assert_eq!(all.pop().as_deref(), Some(""));
    assert!(all.len() == 22 && !all.contains(&String::new()), "{all:?}");
    let less = list(&mut machine, NO_HANDLE, whole - 8);
    assert_eq!(error_of(less), Some(libc::E2BIG));
    let opened = machine.call(fuse::OPENDIR, ROOT, &Body::new().u32(0).u32(0)).unwrap();
    assert_eq!(list(&mut machine, u64_at(&opened, 0), whole).unwrap(), all);
}

/// What the guest can't have any more it is told, and no file is lost.
#[test]
fn too_many_open_files_are_an_error_and_nothing_else() {
    const ROOM: usize = 300;
    let scratch = scratch();
    fs::write(scratch.shared.join("file"), "content").unwrap();
    let mut machine = Machine::start_with_files(&scratch.shared, ROOM as u64);
    machine.init();
    let node = machine.lookup(ROOT, "file").unwrap().node;
    let opened: Vec<_> = (0..ROOM).map(|_| machine.open(node, libc::O_RDONLY)).collect();
    let handles: Vec<u64> = opened.iter().flatten().copied().collect();
    let refused = opened.iter().find_map(|file| file.as_ref().err()).unwrap();
    assert_eq!(refused.raw_os_error(), Some(libc::ENFILE));
    assert!(machine.lookup(ROOT, "file").is_ok() && !handles.is_empty());
    assert_eq!(machine.read(node, handles[0], 100).unwrap(), b"content");
    let release = Body::new().u64(handles[0]).u32(0).u32(0).u64(0);
    machine.call(fuse::RELEASE, node, &release).unwrap();
    machine.open(node, libc::O_RDONLY).unwrap();
}

#[test]
fn a_full_disk_is_told_and_what_is_removed_makes_room() {
    let scratch = scratch();
    let size = Some(c"size=1m");
    rustix::mount::mount("tmpfs", &scratch.shared, "tmpfs", MountFlags::empty(), size).unwrap();
    let mut machine = Machine::start(&scratch.shared);
    rustix::mount::unmount(&scratch.shared, UnmountFlags::DETACH).unwrap();
    machine.init();
    let (file, handle) = machine.create(GUEST_ROOT, ROOT, "file").unwrap();
    let data = vec![7; 512 << 10];
    machine.write_file(file.node, handle, 0, &data).unwrap();
    let (more, other) = machine.create(GUEST_ROOT, ROOT, "more").unwrap();
    let written = machine.write_file(more.node, other, 0, &data).unwrap();
    assert!(written <= 512 << 10);
    let fallocate = Body::new().u64(other).u64(0).u64(4 << 20).u32(0).u32(0);
    let error = machine.call(fuse::FALLOCATE, more.node, &fallocate).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    let (third, handle) = machine.create(GUEST_ROOT, ROOT, "third").unwrap();
    let error = machine.write_file(third.node, handle, 0, &data).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    machine.call(fuse::UNLINK, ROOT, &Body::new().name("more")).unwrap();
    machine.call(fuse::RELEASE, more.node, &Body::new().u64(other).u32(0).u32(0).u64(0)).unwrap();
    machine.forget(more.node);
    assert!(machine.write_file(third.node, handle, 0, &data).unwrap() > 0);
}

/// The guest may make any device node; whoever gets hold of the server may not use it.
#[test]
fn a_hijacked_server_opens_no_device() {
    let scratch = scratch();
    let mut machine = Machine::start(&scratch.shared);
    machine.init();
    machine.create(GUEST_ROOT, ROOT, "file").unwrap();
    for (name, kind, device) in [("zero", libc::S_IFCHR, 0x105), ("loop", libc::S_IFBLK, 0x700)] {
        let body = Body::new().u32(kind | 0o600).u32(device).u32(0).u32(0).name(name);
        machine.call(fuse::MKNOD, ROOT, &body).unwrap();
    }
    machine.settle();
    machine.open_as_server("/file", libc::O_RDWR).unwrap();
    for name in ["/zero", "/loop"] {
        let error = machine.open_as_server(name, libc::O_RDONLY).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES), "{name}");
    }
}

#[test]
fn a_hijacked_server_maps_no_code() {
    let scratch = scratch();
    let mut machine = Machine::start(&scratch.shared);
    machine.init();
    machine.settle();
    let map = |protection: i32| {
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let arguments = [0, 4096, protection as u64, flags, u64::MAX, 0];
        machine.call_as_server(libc::SYS_mmap, None, |_| arguments)
    };
    assert!(map(libc::PROT_READ).is_ok());
    assert!(map(libc::PROT_READ | libc::PROT_EXEC).is_err());
    let ended = machine.disconnect().unwrap();
    assert_eq!(ended.signal(), Some(libc::SIGSYS));
}

#[test]
fn the_server_ends_with_its_socket() {
    let scratch = scratch();
    let mut machine = Machine::start(&scratch.shared);
    machine.init();
    assert!(machine.disconnect().is_some_and(|status| status.success()));
}
