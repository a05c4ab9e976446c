//! The builder as its users run it: same bytes from everywhere, an archive that the `cpio` tool
//! reads, and errors that say what to do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

const BUILDER: &str = env!("CARGO_BIN_EXE_kata-like-rootfs-builder");

/// The smallest file that passes for a static x86-64 executable: the ELF header, one loaded
/// segment, and something to tell its contents by.
fn agent_bytes() -> Vec<u8> {
    let mut file = vec![0; 64 + 56];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    file[16] = 2; // ET_EXEC
    file[18] = 62; // EM_X86_64
    file[32] = 64; // program headers follow the header
    file[54] = 56; // size of one
    file[56] = 1; // how many
    file[64] = 1; // PT_LOAD
    file.extend_from_slice(b"the agent's code");
    file
}

fn agent_in(dir: &Path) -> PathBuf {
    let path = dir.join("agent");
    fs::write(&path, agent_bytes()).unwrap();
    path
}

fn build(agent: &Path, out: &Path) -> Output {
    Command::new(BUILDER).arg("--agent").arg(agent).arg("--out").arg(out).output().unwrap()
}

fn failure(agent: &Path, out: &Path) -> String {
    let output = build(agent, out);
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

/// Runs `cpio`, with the image on its standard input.
fn cpio(image: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("cpio")
        .args(arguments)
        .env("TZ", "UTC")
        .stdin(fs::File::open(image).unwrap())
        .output()
        .expect("the tests need cpio: sudo apt-get install -y cpio");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn two_builds_are_equal_to_the_byte() {
    let (here, there) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let first = here.path().join("guest.img");
    assert!(build(&agent_in(here.path()), &first).status.success());

    // Another directory, umask, locale, time zone, file time, mode and a relative path.
    let copy = agent_in(there.path());
    let script = "umask 0077; touch -d 2001-02-03 agent; chmod 700 agent; exec \"$0\" --agent agent --out ./other.img";
    let status = Command::new("sh")
        .args(["-c", script, BUILDER])
        .current_dir(copy.parent().unwrap())
        .envs([("LC_ALL", "de_DE.UTF-8"), ("TZ", "Asia/Tokyo"), ("SOURCE_DATE_EPOCH", "12345")])
        .status()
        .unwrap();
    assert!(status.success());

    assert_eq!(fs::read(first).unwrap(), fs::read(there.path().join("other.img")).unwrap());
}

#[test]
fn the_image_holds_the_agent_and_its_directories_only() {
    let dir = TempDir::new().unwrap();
    let image = dir.path().join("guest.img");
    assert!(build(&agent_in(dir.path()), &image).status.success());

    let listing =
        String::from_utf8(cpio(&image, &["-itv", "--numeric-uid-gid", "--quiet"])).unwrap();
    let lines: Vec<Vec<&str>> =
        listing.lines().map(|line| line.split_whitespace().collect()).collect();
    let modes_and_names: Vec<(&str, &str)> =
        lines.iter().map(|line| (line[0], line[line.len() - 1])).collect();
    let expected = [
        ("drwxr-xr-x", "dev"),
        ("dr-xr-xr-x", "proc"),
        ("drwxr-xr-x", "run"),
        ("dr-xr-xr-x", "sys"),
        ("drwxrwxrwt", "tmp"),
        ("crw-------", "dev/console"),
        ("-rwxr-xr-x", "init"),
    ];
    assert_eq!(modes_and_names, expected);
    for line in &lines {
        assert_eq!((line[2], line[3]), ("0", "0"), "owner of {line:?}");
        assert!(listing.contains("Jan  1  1970"));
    }
    assert!(listing.lines().any(|line| line.contains("5,   1") && line.ends_with("dev/console")));
    assert_eq!(cpio(&image, &["-i", "--to-stdout", "--quiet", "init"]), agent_bytes());
}

#[test]
fn a_missing_agent_is_named_with_the_remedy() {
    let dir = TempDir::new().unwrap();
    let error = failure(&dir.path().join("no-such-agent"), &dir.path().join("guest.img"));
    assert!(error.contains("no-such-agent") && error.contains("cargo xtask build"), "{error}");
    assert!(error.contains("No such file"), "{error}");
}

#[test]
fn a_dynamic_agent_is_refused_with_the_remedy() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("guest.img");
    // The test's own executable is linked dynamically unless the whole build is static.
    if cfg!(target_feature = "crt-static") {
        return;
    }
    let error = failure(&std::env::current_exe().unwrap(), &out);
    assert!(error.contains("linked dynamically") && error.contains("crt-static"), "{error}");
    assert!(!out.exists());
}

#[test]
fn a_script_is_refused_and_the_old_image_stays() {
    let dir = TempDir::new().unwrap();
    let (agent, out) = (dir.path().join("agent"), dir.path().join("guest.img"));
    fs::write(&agent, "#!/bin/sh\n").unwrap();
    fs::write(&out, "old").unwrap();
    let error = failure(&agent, &out);
    assert!(error.contains("not an ELF file"), "{error}");
    assert_eq!(fs::read(&out).unwrap(), b"old");
}

#[test]
fn an_unwritable_place_is_named() {
    let dir = TempDir::new().unwrap();
    let error = failure(&agent_in(dir.path()), &dir.path().join("missing/guest.img"));
    assert!(error.contains("missing/guest.img"), "{error}");
}
