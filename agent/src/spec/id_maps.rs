//! The programs `newuidmap` and `newgidmap`, by which libcontainer writes several mappings of a user
//! namespace: the agent itself, called by these names.

use std::io;
use std::path::Path;
use std::process::ExitCode;

/// Where they are.
pub const DIRECTORY: &str = "/run/kata-like/bin";

/// Name, and the file in `/proc/PID` that it writes.
const PROGRAMS: [(&str, &str); 2] = [("newuidmap", "uid_map"), ("newgidmap", "gid_map")];

/// Makes the names.
///
/// # Errors
/// The system's answer.
pub fn install() -> io::Result<()> {
    std::fs::create_dir_all(DIRECTORY)?;
    for (name, _) in PROGRAMS {
        std::os::unix::fs::symlink("/proc/1/exe", Path::new(DIRECTORY).join(name))?;
    }
    Ok(())
}

/// Does the work of the program by whose name this process was started; `None`: it is the agent.
pub fn run() -> Option<ExitCode> {
    let mut arguments = std::env::args();
    let name = arguments.next()?;
    let name = Path::new(&name).file_name()?.to_str()?.to_owned();
    let (_, file) = PROGRAMS.iter().find(|(program, _)| *program == name)?;
    let pid: u32 = arguments.next()?.parse().ok()?;
    let numbers: Vec<String> = arguments.collect();
    let text: String = numbers.chunks(3).map(|line| line.join(" ") + "\n").collect();
    let written = std::fs::write(format!("/proc/{pid}/{file}"), text);
    Some(if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
