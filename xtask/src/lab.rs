//! `cargo xtask lab …`: the machine in which KVM is real, for people.

use crate::build;
use ::lab::client::Client;
use ::lab::host::Ground;
use ::lab::machine::{Lab, Purpose};
use ::lab::wire::Exec;
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What to do with the lab.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring it up (about a second, once it has been built and frozen) and install target/install in it
    Up {
        /// Boot one of so many CPUs whose clock counts instructions, as the benchmark does
        #[arg(long, value_name = "CPUS", num_args = 0..=1, default_missing_value = "1")]
        counting: Option<u32>,
    },
    /// Install target/install in it, or copy one file or folder
    Put {
        /// File or folder of this machine
        from: Option<PathBuf>,
        /// Path in the lab
        to: Option<PathBuf>,
    },
    /// Copy a file or folder out of it
    Get {
        /// Path in the lab
        from: PathBuf,
        /// Where to on this machine
        to: PathBuf,
    },
    /// Run a command in it; streams and exit status are passed through
    Exec {
        /// Set a variable for the command: NAME=VALUE
        #[arg(short, long)]
        env: Vec<String>,
        /// The command
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// A shell in it, on this terminal
    Shell,
    /// What containerd, the shims, the VMMs and the guests' consoles have said
    Logs {
        /// Lines of each
        #[arg(short = 'n', long, default_value_t = 100)]
        lines: u32,
    },
    /// Take it down
    Down,
    /// Build and freeze it, without bringing one up
    Freeze,
}

/// Runs the command; answers the exit status.
///
/// # Errors
/// When it can't be done; the message says what to do.
pub fn run(command: Command) -> Result<i32> {
    let lab = Lab::named_by_environment()?;
    match command {
        Command::Up { counting: None } => install(&up(&lab, Purpose::Change)?)?,
        Command::Up { counting: Some(cpus) } => {
            install(&lab.up_counting(&build::lab_program("lab-agent")?, cpus)?)?;
        }
        Command::Put { from: None, .. } => install(&lab.client()?)?,
        Command::Put { from: Some(from), to } => put(&lab.client()?, &from, to.as_deref())?,
        Command::Get { from, to } => lab.client()?.get(&from, &to)?,
        Command::Exec { env, command } => return exec(&lab.client()?, &env, command),
        Command::Shell => {
            let argv = ["/bin/bash", "-l"].map(str::to_owned).to_vec();
            return lab.client()?.shell(Exec { argv, ..Exec::default() });
        }
        Command::Logs { lines } => return logs(&lab.client()?, lines),
        Command::Down => lab.down()?,
        Command::Freeze => {
            ::lab::machine::freeze_ahead(&build::lab_program("lab-agent")?, Purpose::Change)?;
        }
    }
    Ok(0)
}

/// Brings the lab up for a purpose; one that is up for another is taken down.
///
/// # Errors
/// When a step fails.
pub fn up(lab: &Lab, purpose: Purpose) -> Result<Client> {
    lab.up(&build::lab_program("lab-agent")?, ground()?, purpose)
}

/// On what the lab stands, as the VMM that was built last says.
///
/// # Errors
/// When the environment's wish is not understood.
pub fn ground() -> Result<Ground> {
    Ground::choose(&build::install_dir().join("usr/libexec/kata-like/kata-like-vmm"))
}

/// Installs the product in the lab, as a user would have it.
///
/// # Errors
/// When it isn't built or the lab is gone.
pub fn install(client: &Client) -> Result<()> {
    let tree = build::install_dir();
    if !tree.is_dir() {
        eprintln!("[lab] the product is not built yet (`cargo xtask build`): none is installed");
        return Ok(());
    }
    put(client, &tree.join("usr"), Some(&Path::new(RELEASE).join("usr")))?;
    let script = Path::new(RELEASE).join("install.sh");
    client.put(&[(&build::workspace().join("deploy/install.sh"), &*script)])?;
    // containerd knows the handler from the start here.
    let shell = format!("CONTAINERD_CONFIG= sh {} install", script.display());
    client.output(&["sh", "-c", &shell]).map(drop)
}

/// Where the lab has what its node is installed from.
const RELEASE: &str = "/opt/kata-like";

fn put(client: &Client, from: &Path, to: Option<&Path>) -> Result<()> {
    let to = to.context("say where to put it: cargo xtask lab put FROM TO")?;
    let start = Instant::now();
    let moved = client.put(&[(from, to)])?;
    let (mib, seconds) = (moved.bytes >> 20, start.elapsed().as_secs_f32());
    eprintln!("[lab] put {} changed files, {mib} MiB, in {seconds:.2} s", moved.files);
    Ok(())
}

fn exec(client: &Client, env: &[String], argv: Vec<String>) -> Result<i32> {
    let env = env
        .iter()
        .map(|pair| pair.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())))
        .collect::<Option<Vec<_>>>()
        .context("--env wants NAME=VALUE")?;
    let stdin = std::io::stdin();
    // A terminal is not read ahead: the next command typed belongs to the shell.
    let stdin = (!stdin.is_terminal()).then(|| Box::new(stdin) as Box<dyn Read + Send>);
    client.exec(Exec { argv, env, tty: None }, stdin)
}

fn logs(client: &Client, lines: u32) -> Result<i32> {
    let script = format!(
        "cd /; for f in var/log/containerd*.log $(find run/kata-like -type f -name '*log*' 2>/dev/null); do \
         echo \"==> /$f\"; tail -n {lines} \"$f\"; done; echo '==> kernel'; dmesg | tail -n {lines}"
    );
    let argv = ["/bin/sh", "-c", &script].map(str::to_owned).to_vec();
    let status = client.exec(Exec { argv, ..Exec::default() }, None)?;
    if status != 0 {
        bail!("the logs could not be read");
    }
    Ok(0)
}
