//! `kata-like check`: is this host fit, and what to do where it is not.

mod containerd;
mod host;
mod kvm;
mod network;
mod parts;
mod report;

use clap::Args;
use report::Finding;
use sandbox::settings::Settings;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Tell whether this host can run kata-like, and what to do where it can't.
///
/// Exit status: 0 if it can, 1 if something has to be done first.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Print JSON: a list of objects with `what`, `verdict` (ok, warning, failed), `detail`, `remedy`
    #[arg(long)]
    json: bool,
}

/// How long a program that is asked for something may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs every check.
pub(crate) fn main(arguments: &Arguments, config: &Path) -> ExitCode {
    let findings = findings(config);
    let printed =
        if arguments.json { report::print_json(&findings) } else { report::print_text(&findings) };
    if printed.is_ok() && report::is_fit(&findings) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn findings(config: &Path) -> Vec<Finding> {
    let mut vhost_net = false;
    let mut findings = vec![host::user(), host::kernel(), host::cgroups(), host::huge_pages()];
    match crate::load(config).and_then(Settings::resolve) {
        Ok(settings) => {
            findings.push(parts::configuration(config, &settings));
            findings.push(host::memory(settings.memory_mib));
            findings.push(host::core_scheduling(settings.core_scheduling));
            findings.push(kvm::kvm(&settings.vmm));
            findings.extend(parts::installed(&settings));
            vhost_net = settings.vhost_net;
        }
        Err(error) => findings.push(parts::bad_configuration(&error)),
    }
    findings.extend(network::network(vhost_net));
    findings.extend(containerd::containerd());
    findings
}

/// Standard output of a program that should end soon.
fn output_of(command: &mut Command) -> std::io::Result<String> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let deadline = Instant::now() + PATIENCE;
    // What is asked for fits into a pipe's buffer, so the program can end before it is read.
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(std::io::Error::other(format!("it ended with {}", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Where a program is that would be found by name.
pub(crate) fn program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Services have a path of their own; these are in all of them.
    let usual = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    std::env::split_paths(&path)
        .chain(usual.into_iter().map(Into::into))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}
