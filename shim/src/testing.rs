//! What several modules' tests need.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A script of the shell's that can be executed. Another process writes it: a descriptor for that, inherited by a process
/// that a test beside this one is about to start, would keep it from being executed.
pub fn script(path: PathBuf, text: &str) -> PathBuf {
    let mut shell = Command::new("/bin/sh");
    let shell = shell.args(["-c", "cat > \"$0\" && chmod 755 \"$0\""]).arg(&path);
    let mut shell = shell.stdin(Stdio::piped()).spawn().unwrap();
    write!(shell.stdin.take().unwrap(), "#!/bin/sh\n{text}\n").unwrap();
    assert!(shell.wait().unwrap().success());
    path
}

/// A process that lives until its standard input is closed.
pub fn living() -> Child {
    Command::new("cat").stdin(Stdio::piped()).spawn().unwrap()
}
