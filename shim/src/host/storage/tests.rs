use super::*;
use crate::host::persist::ProcessId;
use crate::oci::plan::{AccessTimes, Follows};
use jail::{Capabilities, Jail, Namespaces, Root};
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

/// Runs `test` in a child with its own mount namespace.
fn in_own_namespace(test: impl FnOnce()) {
    // SAFETY: the child only runs the test and leaves by _exit; other test threads hold no lock it takes.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let inside = std::panic::AssertUnwindSafe(|| {
                private_mounts().expect("this test makes mounts and namespaces: run it as root");
                test();
            });
            let code = std::panic::catch_unwind(inside).is_err().into();
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
        }
    }
}

#[test]
fn a_container_shows_its_root_and_binds_and_leaves_nothing() {
    in_own_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("file"), "x").unwrap();
        let paths = SandboxPaths::new(dir.path(), "ns", "s").unwrap();
        paths.create().unwrap();
        let mut sandbox = Undo::new();
        make_shared(&paths, &mut sandbox).unwrap();
        let rootfs = RootfsMount {
            fstype: "bind".into(),
            source: source.display().to_string(),
            options: vec!["rbind".into()],
            ..Default::default()
        };
        let binds = [
            Bind { source: source.clone(), read_only: true, recursive: true, ..Bind::default() },
            Bind { source: source.join("file"), ..Bind::default() },
        ];
        let mut undo = Undo::new();
        add_container(&paths, "c", &[rootfs], &binds, &mut undo).unwrap();
        let shown = paths.container("c");
        fs::write(shown.join("rootfs/file"), "y").unwrap();
        assert_eq!(fs::read_to_string(shown.join("mounts/1")).unwrap(), "y");
        assert!(fs::write(shown.join("mounts/0/file"), "z").is_err(), "read-only on the host");
        assert!(undo.run().is_empty());
        assert!(!shown.exists());
        let error = fs::create_dir(&shown).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem, "nor does the guest make it");
        assert!(sandbox.run().is_empty());
    });
}

#[test]
fn a_read_only_bind_is_so_all_the_way_down_and_owners_are_mapped() {
    in_own_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("source/below");
        fs::create_dir_all(&below).unwrap();
        mount(Some("t"), &below, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fs::write(below.join("file"), "x").unwrap();
        let mapping = serde_json::json!({"containerID": 0, "hostID": 5000, "size": 10});
        let mapping = vec![serde_json::from_value(mapping).unwrap()];
        let owners = Owners { users: mapping.clone(), groups: mapping, recursive: true };
        let bind = Bind {
            source: dir.path().join("source"),
            read_only: true,
            read_only_below: true,
            recursive: true,
            owners: Some(owners),
            ..Bind::default()
        };
        let target = dir.path().join("target");
        fs::create_dir(&target).unwrap();
        bind::mount(&bind, &target).unwrap();
        assert_eq!(fs::metadata(target.join("below/file")).unwrap().uid(), 5000);
        let error = fs::write(target.join("below/file"), "y").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        let only_at_the_top = Bind { read_only_below: false, owners: None, ..bind };
        let target = dir.path().join("other");
        fs::create_dir(&target).unwrap();
        bind::mount(&only_at_the_top, &target).unwrap();
        fs::write(target.join("below/file"), "y").unwrap();
        let error = fs::write(target.join("file"), "y").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
    });
}

#[test]
fn a_bind_follows_what_the_host_mounts_later_unless_it_is_private() {
    in_own_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let on = |target: &Path| {
            fs::create_dir(target).unwrap();
            mount(Some("t"), target, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            mount(None::<&str>, target, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
        };
        let source = dir.path().join("source");
        on(&source);
        on(&source.join("below"));
        let all = [Follows::All, Follows::Below, Follows::Nothing].map(|follows| {
            let target = dir.path().join(format!("{follows:?}"));
            fs::create_dir(&target).unwrap();
            let source = source.clone();
            let bind = Bind { source, recursive: true, follows, ..Bind::default() };
            bind::mount(&bind, &target).unwrap();
            target
        });
        for later in ["later", "below/later"] {
            on(&source.join(later));
            fs::write(source.join(later).join("file"), "x").unwrap();
        }
        let seen = all.map(|target| {
            ["later/file", "below/later/file"].map(|file| target.join(file).exists())
        });
        assert_eq!(seen, [[true, true], [false, true], [false, false]]);
    });
}

#[test]
fn accesses_are_noted_as_a_bind_says_and_not_otherwise_below_it() {
    in_own_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let [source, target] = ["source", "target"].map(|name| dir.path().join(name));
        for dir in [&source, &target] {
            fs::create_dir(dir).unwrap();
        }
        let on = |target: &Path| {
            let flags = MsFlags::MS_STRICTATIME;
            mount(Some("t"), target, Some("tmpfs"), flags, None::<&str>).unwrap();
        };
        on(&source);
        fs::create_dir(source.join("below")).unwrap();
        on(&source.join("below"));
        let never = libc::MOUNT_ATTR_NOATIME;
        let never = AccessTimes { set: never, clear: libc::MOUNT_ATTR__ATIME };
        let read = |at: &Path, times: AccessTimes, times_below: AccessTimes| {
            fs::write(at.join("file"), "x").unwrap();
            let source = source.clone();
            let bind = Bind { source, recursive: true, times, times_below, ..Bind::default() };
            bind::mount(&bind, &target).unwrap();
            let at = target.join(at.strip_prefix(&bind.source).unwrap()).join("file");
            let accessed = || fs::metadata(&at).unwrap().accessed().unwrap();
            let before = accessed();
            // Longer than a tick of the clock of files.
            std::thread::sleep(std::time::Duration::from_millis(30));
            fs::read(&at).unwrap();
            let noted = accessed() != before;
            umount2(&target, MntFlags::MNT_DETACH).unwrap();
            noted
        };
        let (below, same) = (source.join("below"), AccessTimes::default());
        assert!(read(&source, same, same) && read(&below, same, same));
        assert!(!read(&source, never, same) && read(&below, never, same));
        assert!(!read(&source, same, never) && !read(&below, same, never));
    });
}

#[test]
fn the_root_of_a_user_namespace_has_its_owners() {
    in_own_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        // Overlays want layers that are none themselves.
        mount(Some("t"), dir.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let snapshots = dir.path().join("snapshots");
        for name in ["1/fs", "2/fs", "3/fs", "3/work"] {
            fs::create_dir_all(snapshots.join(name)).unwrap();
        }
        fs::write(snapshots.join("1/fs/file"), "x").unwrap();
        let paths = SandboxPaths::new(dir.path(), "ns", "s").unwrap();
        paths.create().unwrap();
        let mut sandbox = Undo::new();
        make_shared(&paths, &mut sandbox).unwrap();
        let of = |name: &str| snapshots.join(name).display().to_string();
        let maps = ["uidmap=0:5000:10".to_owned(), "gidmap=0:6000:10".to_owned()];
        let overlay = [
            format!("lowerdir={}:{}", of("2/fs"), of("1/fs")),
            format!("upperdir={}", of("3/fs")),
            format!("workdir={}", of("3/work")),
        ];
        let roots = [
            ("overlay", "overlay".to_owned(), &overlay[..]),
            ("bind", of("1/fs"), &["rbind".to_owned()]),
        ];
        for (fstype, source, options) in roots {
            let options = [options, &maps[..]].concat();
            let root = RootfsMount { fstype: fstype.into(), source, options, ..Default::default() };
            let mut undo = Undo::new();
            add_container(&paths, "c", &[root], &[], &mut undo).unwrap();
            let file = fs::metadata(paths.container("c").join("rootfs/file")).unwrap();
            assert_eq!((file.uid(), file.gid()), (5000, 6000), "{fstype}");
            assert!(!paths.layout().join("c/unmapped").exists());
            assert!(undo.run().is_empty());
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains("unmapped"), "{mounts}");
        assert!(sandbox.run().is_empty());
    });
}

#[test]
fn a_failed_mount_is_named_and_the_rest_undone() {
    in_own_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let paths = SandboxPaths::new(dir.path(), "ns", "s").unwrap();
        paths.create().unwrap();
        let mut sandbox = Undo::new();
        make_shared(&paths, &mut sandbox).unwrap();
        let missing = RootfsMount {
            source: "/nowhere/rootfs".into(),
            options: vec!["bind".into()],
            ..Default::default()
        };
        let mut undo = Undo::new();
        let error = add_container(&paths, "c", &[missing], &[], &mut undo).unwrap_err();
        assert!(error.chain().contains("/nowhere/rootfs"), "{}", error.chain());
        drop(undo);
        assert!(!paths.container("c").exists());
    });
}

/// A file server, as far as mounts go: says when it is there, waits, and gives the errors of writing to the root by
/// name and by a directory that it has held since before.
fn play_file_server(shared: &Path, mut shim: UnixStream) -> io::Result<()> {
    let jail = Jail {
        identity: None,
        capabilities: Capabilities::DAC_OVERRIDE,
        root: Root::Directory { path: shared.into(), receive_mounts: true },
        namespaces: Namespaces::NONE,
        open_files: None,
    };
    jail.enter().map_err(io::Error::other)?;
    fs::write("/c/rootfs/before", "")?;
    let held = File::open("/c/rootfs")?;
    shim.write_all(b".")?;
    shim.read_exact(&mut [0])?;
    let flags = OFlag::O_CREAT | OFlag::O_WRONLY;
    let tries = [
        open("/c/rootfs/after", flags, Mode::empty()),
        openat(&held, "after", flags, Mode::empty()),
    ];
    shim.write_all(&tries.map(|file| file.err().map_or(0, |error| error as u8)))
}

#[test]
fn a_root_becomes_read_only_for_a_file_server_that_holds_it() {
    in_own_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        fs::create_dir(&source).unwrap();
        let paths = SandboxPaths::new(dir.path(), "ns", "s").unwrap();
        paths.create().unwrap();
        let mut undo = Undo::new();
        make_shared(&paths, &mut undo).unwrap();
        let rootfs = RootfsMount {
            source: source.display().to_string(),
            options: vec!["rbind".into(), "rw".into()],
            ..Default::default()
        };
        add_container(&paths, "c", &[rootfs], &[], &mut undo).unwrap();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        // SAFETY: this process has one thread.
        let child = match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                // So that it ends with this test, whichever way.
                drop(ours);
                let played = play_file_server(&paths.shared(), theirs);
                // SAFETY: ends the child without running the parent's exit handlers.
                unsafe { libc::_exit(played.is_err().into()) }
            }
            ForkResult::Parent { child } => child,
        };
        drop(theirs);
        ours.read_exact(&mut [0]).unwrap();
        make_root_read_only(ProcessId::of(child.as_raw()).unwrap(), "c").unwrap();
        ours.write_all(b".").unwrap();
        let mut errors = Vec::new();
        ours.read_to_end(&mut errors).unwrap();
        assert_eq!(errors, [libc::EROFS as u8; 2]);
        assert!(source.join("before").exists() && !source.join("after").exists());
        fs::write(source.join("of-the-host"), "").unwrap();
        assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
        assert!(undo.run().is_empty());
    });
}
