//! What the command line does whatever machine it is on.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

/// As of a program that Go makes, and without a core.
#[test]
fn who_reads_no_further_ends_a_command_quietly() {
    for words in [&["features"][..], &["version"], &["completion", "bash"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_kata-like"));
        command.args(words).stdout(writer).stderr(Stdio::piped());
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(libc::SIGPIPE), "{words:?}: {said}");
        assert_eq!(said, "", "{words:?}");
    }
}

/// Nor does who does not read why it failed change how.
#[test]
fn who_reads_no_error_gets_the_status() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_kata-like"));
    let root = tempfile::tempdir().unwrap();
    command.arg("--root").arg(root.path()).args(["state", "none"]).stderr(writer);
    assert_eq!(command.status().unwrap().code(), Some(1));
}
