//! A pasta process: a child that ends with this process.

use super::publish::Published;
use super::resolver;
use crate::record::Home;
use anyhow::{Context as _, Result, bail};
use sandbox::persist::{ProcessId, SandboxState};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

/// How long it may take to make the network.
const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes of a line that it says which are logged.
const MOST_SAID: usize = 1024;

/// One that has filled a network namespace. Dropped, it ends.
pub(crate) struct Pasta(Child);

impl Pasta {
    /// Fills the network namespace of the process `pid`, and returns when it is filled. To be called on a thread that
    /// lives as long as the network.
    pub(super) async fn start(
        program: &Path,
        published: &[Published],
        pid: u32,
        home: &Home,
    ) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments(published)).stdin(namespace(pid)?);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).current_dir("/");
        // The user's Ctrl-C is for the container.
        command.process_group(0);
        let parent = nix::unistd::getpid();
        // SAFETY: between fork and exec it makes two system calls and touches no memory that is shared.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
                if nix::unistd::getppid() == parent {
                    Ok(())
                } else {
                    Err(nix::Error::ESRCH.into())
                }
            });
        }
        let named = || program.display().to_string();
        let mut pasta = Self(command.spawn().with_context(named)?);
        pasta.note(home)?;
        let said = pasta.0.stderr.take().context("standard error")?;
        let number = pasta.0.stdout.take().context("standard output")?;
        let first_line = move || {
            let mut line = String::new();
            BufReader::new(number.take(64)).read_line(&mut line).map(|_| line)
        };
        // It says its pid when all is made.
        let ready = tokio::task::spawn_blocking(first_line);
        let Ok(ready) = tokio::time::timeout(PATIENCE, ready).await else {
            bail!("pasta did not make the network within {} s", PATIENCE.as_secs());
        };
        if ready??.trim().is_empty() {
            bail!("the network could not be made: pasta: {}", last_words(said));
        }
        std::thread::Builder::new().name("pasta".into()).spawn(move || log(said))?;
        Ok(pasta)
    }

    /// For who cleans up if this process is killed.
    fn note(&self, home: &Home) -> Result<()> {
        let paths = home.sandbox()?;
        if let Some(mut state) = SandboxState::read(&paths)? {
            state.helpers.push(ProcessId::of(self.0.id() as i32)?);
            state.write(&paths)?;
        }
        Ok(())
    }
}

impl Drop for Pasta {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// That of the process, which must not be this one's.
fn namespace(pid: u32) -> Result<File> {
    let path = format!("/proc/{pid}/ns/net");
    let file = File::open(&path).with_context(|| path.clone())?;
    let of = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    if of(file.metadata()?) == of(std::fs::metadata("/proc/self/ns/net")?) {
        bail!(
            "the machine has no network namespace of its own, which pasta could fill: --net none"
        );
    }
    Ok(file)
}

/// pasta finds the namespace as its standard input, since it may not look into /proc of the VMM, and tells its pid on
/// its standard output. It stays root, with the right to enter the namespace, in an empty root and behind a filter: as
/// another user it could not enter.
fn arguments(published: &[Published]) -> Vec<String> {
    let mut arguments: Vec<String> = [
        "--foreground",
        "--quiet",
        "--runas=0:0",
        "--config-net",
        "--netns=/proc/self/fd/0",
        "--pid=/proc/self/fd/1",
        "--ns-ifname=eth0",
        // What listens at the host's localhost is not the container's, nor the other way round.
        "--no-map-gw",
        "--tcp-ns=none",
        "--udp-ns=none",
        // What the host connects to its own localhost goes to the guest, not to the namespace's localhost.
        "--no-splice",
    ]
    .map(ToOwned::to_owned)
    .to_vec();
    arguments.push(format!("--dns-forward={}", resolver::FORWARDER));
    for (udp, option) in [(false, "--tcp-ports"), (true, "--udp-ports")] {
        let before = arguments.len();
        let these = published.iter().filter(|one| one.udp == udp);
        arguments.extend(these.map(|one| format!("{option}={}", one.for_pasta())));
        if arguments.len() == before {
            arguments.push(format!("{option}=none"));
        }
    }
    arguments
}

/// Why it ended.
fn last_words(said: ChildStderr) -> String {
    let mut text = Vec::new();
    let _ = said.take(MOST_SAID as u64).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

/// Logs what it says, as far as that is not too much, to its end: the guest makes the packets that it complains of.
fn log(mut said: ChildStderr) {
    let mut part = [0; MOST_SAID];
    let mut logged = 0;
    while let Ok(length @ 1..) = said.read(&mut part) {
        for line in String::from_utf8_lossy(&part[..length]).lines() {
            logged += 1;
            match logged {
                ..=MOST_LINES => tracing::warn!("pasta: {}", line.escape_debug()),
                TOO_MANY => tracing::warn!("pasta: the rest of what it says is not logged"),
                _ => {}
            }
        }
    }
    tracing::info!("pasta has ended, and with it the container's network");
}

const MOST_LINES: u32 = 1000;
const TOO_MANY: u32 = MOST_LINES + 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_named_or_none() {
        let of = |published: &[&str]| {
            let all: Vec<_> = published.iter().map(|text| text.parse().unwrap()).collect();
            let all = arguments(&all).into_iter().filter(|word| word.contains("-ports="));
            all.collect::<Vec<_>>()
        };
        assert_eq!(of(&[]), ["--tcp-ports=none", "--udp-ports=none"]);
        let some = of(&["8080:80", "127.0.0.1:81:81"]);
        assert_eq!(
            some,
            ["--tcp-ports=8080:80", "--tcp-ports=127.0.0.1/81:81", "--udp-ports=none"]
        );
    }

    #[test]
    fn the_hosts_own_namespace_is_refused() {
        let error = namespace(std::process::id()).unwrap_err().to_string();
        assert!(error.contains("--net none"), "{error}");
    }
}
