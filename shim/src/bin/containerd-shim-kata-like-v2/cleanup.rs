//! `delete`: containerd calls it when the connection to a server has ended, however it did.

use crate::flags::Flags;
use crate::given_up;
use crate::socket;
use crate::task::slot;
use anyhow::Context;
use containerd_shim_protos::api::DeleteResponse;
use protobuf::Message;
use sandbox::config::{self, Config};
use sandbox::event::Exit;
use sandbox::hooks;
use sandbox::paths::SandboxPaths;
use sandbox::persist::{self, SandboxState};
use sandbox::settings::Settings;
use std::io::Write;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server that is on its way out, and then each of its helpers, may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a server that lives may take to hear what containerd gives up, before that is left to another process.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);

/// The action by which `delete` leaves to another process what it has no time for: containerd waits for seconds only,
/// and on a busy host a killed machine may take longer to end.
pub const LATER: &str = "clean-up";

/// How long that one tries.
const LAST_PATIENCE: Duration = Duration::from_secs(600);

/// Between two tries.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs `delete`.
pub fn run(flags: &Flags) -> anyhow::Result<()> {
    let bundle = Path::new(if flags.bundle.is_empty() { "." } else { &flags.bundle });
    let pid = clean_up(flags, bundle)?;
    if let Err(error) = run_hooks(flags, bundle) {
        // containerd logs it.
        eprintln!("the poststop hooks of container {}: {error:#}", flags.id);
    }
    let exit = Exit::now(Exit::LOST);
    let response = DeleteResponse {
        pid,
        exit_status: exit.status,
        exited_at: Some(crate::task::timestamp(exit.at)).into(),
        ..Default::default()
    };
    std::io::stdout().write_all(&response.write_to_bytes()?).context("write the answer")
}

/// Removes what is left of the sandbox, unless its owner lives: then it is that one's, as when only one container of a pod
/// was deleted, and is told in case that it still has the task. Gives the pid that stood for its containers.
fn clean_up(flags: &Flags, bundle: &Path) -> anyhow::Result<u32> {
    let states = slot::state_directory(bundle).unwrap_or_else(state_dir);
    let paths = SandboxPaths::new(&states, &flags.namespace, &flags.id)?;
    let state = SandboxState::read(&paths)?;
    let pid = state.as_ref().and_then(|s| s.helpers.first()).map_or(0, |vmm| vmm.pid as u32);
    match state {
        Some(state) if !state.owner.wait(PATIENCE) => tell_who_lives(flags, bundle, &states)?,
        // Of a pod's containers there is no state.
        _ if !paths.root().exists() => tell_who_lives(flags, bundle, &states)?,
        _ => {
            remove_socket(bundle);
            if let Err(error) = persist::clean_up(&paths, PATIENCE) {
                let error = error.chain();
                go_on(flags, &states, None).with_context(|| error.clone())?;
                // containerd logs it, and forgets the container.
                eprintln!("{error}: it is tried again in the background");
            }
        }
    }
    Ok(pid)
}

/// See [`given_up`]; in the background, if the server does not answer at once.
fn tell_who_lives(flags: &Flags, bundle: &Path, states: &Path) -> anyhow::Result<()> {
    let Some(socket) = socket_of(bundle) else { return Ok(()) };
    if let Err(error) = given_up::tell(&socket, &flags.id, ANSWER_PATIENCE) {
        go_on(flags, states, Some(&socket))?;
        eprintln!("{} may still be there, and is seen to in the background: {error:#}", flags.id);
    }
    Ok(())
}

/// Starts a process that goes on with the clean-up, once it has told the server at this socket.
fn go_on(flags: &Flags, states: &Path, socket: Option<&Path>) -> anyhow::Result<()> {
    let mut program = Command::new(std::env::current_exe()?);
    program.args(["-namespace", &flags.namespace, "-id", &flags.id, "-states"]).arg(states);
    if let Some(socket) = socket {
        program.arg("-socket").arg(socket);
    }
    program.arg(LATER).current_dir("/").process_group(0);
    program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    program.spawn().map(drop).map_err(Into::into)
}

/// Runs `clean-up`: until nothing is left, or the id is another sandbox's.
pub fn run_later(flags: &Flags) -> anyhow::Result<()> {
    let paths = SandboxPaths::new(Path::new(&flags.states), &flags.namespace, &flags.id)?;
    let end = Instant::now() + LAST_PATIENCE;
    if !flags.socket.is_empty() {
        // If it hangs for ever, so may what is left of it.
        let _ = given_up::tell(Path::new(&flags.socket), &flags.id, LAST_PATIENCE);
    }
    loop {
        match SandboxState::read(&paths)? {
            Some(state) if !state.owner.wait(Duration::ZERO) => return Ok(()),
            Some(_) => {}
            // Or another's, which is being made.
            None => return Ok(()),
        }
        match persist::clean_up(&paths, PATIENCE) {
            Err(_) if Instant::now() < end => std::thread::sleep(PAUSE),
            outcome => return Ok(outcome?),
        }
    }
}

/// Runs the hooks that a server which was killed had yet to run, as runc's shim does.
fn run_hooks(flags: &Flags, bundle: &Path) -> anyhow::Result<()> {
    let bundle = std::path::absolute(bundle)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ran = runtime.block_on(hooks::run_left(&bundle, &flags.id, PATIENCE));
    // A thread may be in a system call on a file that hangs.
    runtime.shutdown_background();
    Ok(ran?)
}

/// Where states are unless the server has said: `delete` isn't told which configuration it had.
fn state_dir() -> PathBuf {
    let config = Config::load(Path::new(config::DEFAULT_PATH)).unwrap_or_default();
    let settings = Settings::resolve(config).or_else(|_| Settings::resolve(Config::default()));
    settings.map_or_else(|_| "/run/kata-like".into(), |settings| settings.state)
}

/// Removes the socket that the bundle's file names, if nobody serves it.
fn remove_socket(bundle: &Path) {
    if let Some(socket) = socket_of(bundle) {
        socket::remove_dead(&socket);
    }
}

/// The one that the bundle's file names.
fn socket_of(bundle: &Path) -> Option<PathBuf> {
    let address = std::fs::read_to_string(bundle.join("address")).ok()?;
    Some(address.strip_prefix("unix://")?.into())
}
