//! `kata-like`: the command line. Each subcommand is a module.

mod announce;
mod background;
mod check;
mod command;
mod descriptors;
mod help;
mod image;
mod log;
mod mappings;
mod monitor;
mod net;
#[cfg(test)]
mod parsed;
mod record;
mod removal;
mod run;
mod users;

use clap::{ArgAction, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use command::{
    create, delete, events, exec, features, kill, list, logs, manual, ps, spec, state, update,
};
use monitor::call::{self, Call};
use record::Home;
use sandbox::config::{self, Config};
use sandbox::settings::Settings;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Containers in virtual machines of their own.
///
/// An OCI runtime, and a way to run an image without a daemon.
#[derive(Debug, Parser)]
#[command(name = "kata-like", version = VERSION, disable_version_flag = true)]
struct CommandLine {
    /// Show the version
    #[arg(short = 'v', long, short_alias = 'V', action = ArgAction::Version)]
    version: Option<bool>,
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, Parser)]
struct Globals {
    /// Configuration file
    #[arg(long, global = true, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    #[arg(long, global = true, value_name = "DIR")]
    #[arg(help = format!("Directory of the containers' state [default: {DEFAULT_ROOT}]"))]
    root: Option<PathBuf>,
    #[command(flatten)]
    log: log::Arguments,
    /// The cgroup of a container's processes on the host is a scope of systemd's: cgroupsPath is slice:prefix:name
    #[arg(long, global = true)]
    systemd_cgroup: bool,
    /// Accepted before the command, for runc's sake: only root can run machines
    #[arg(long, value_name = "BOOL")]
    rootless: Option<String>,
    /// Set for a process in the background: whom to tell that it is ready
    #[arg(long, global = true, hide = true)]
    report_fd: Option<RawFd>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Create(create::Arguments),
    /// Let the process of a created container run
    Start(Id),
    /// Show a container's state as JSON
    State(Id),
    Kill(kill::Arguments),
    Delete(delete::Arguments),
    Run(Box<run::Arguments>),
    Exec(Box<exec::Arguments>),
    List(list::Arguments),
    Ps(ps::Arguments),
    /// Stop every process of a container where it is
    Pause(Id),
    /// Let the processes of a paused container go on
    Resume(Id),
    Update(Box<update::Arguments>),
    Spec(spec::Arguments),
    /// Refused: a container in a virtual machine can't be checkpointed
    #[command(hide = true)]
    Checkpoint(Frozen),
    /// Refused, as checkpoint is
    #[command(hide = true)]
    Restore(Frozen),
    Events(events::Arguments),
    /// Show what the guest's console says
    Logs(Id),
    /// Show what this runtime can do, as the OCI runtime-spec's features document
    Features,
    Check(check::Arguments),
    /// Show the version
    Version,
    Completion(manual::Completion),
    Man(manual::Man),
}

#[derive(Debug, clap::Args)]
struct Id {
    /// Name of the container
    id: String,
}

/// Not offered: it is said so, whatever the options.
#[derive(Debug, clap::Args)]
struct Frozen {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    #[allow(dead_code)]
    words: Vec<String>,
}

/// Exit status of an exec that did not come to run its command, which could have any other.
const EXEC_FAILED: u8 = 255;

impl Command {
    /// What runc puts before the reason of a failure.
    fn failure(&self) -> Option<&'static str> {
        match self {
            Self::Create(_) => Some("kata-like create failed"),
            Self::Exec(_) => Some("exec failed"),
            _ => None,
        }
    }
}

/// As runc tells it: after the name, and the version of the specification in a line of its own.
const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.2.1");

/// Where the containers' state is unless it is told otherwise.
const DEFAULT_ROOT: &str = "/run/kata-like-cli";

impl Globals {
    /// Directory of the containers' state.
    fn root(&self) -> &Path {
        self.root.as_deref().unwrap_or(Path::new(DEFAULT_ROOT))
    }

    /// What the configuration file says.
    fn settings(&self) -> anyhow::Result<Settings> {
        Ok(Settings::resolve(load(&self.config)?)?)
    }
}

fn main() -> ExitCode {
    let mut form = help::in_runcs_form(CommandLine::command());
    let parsed = form.try_get_matches_from_mut(std::env::args_os());
    let parsed = parsed.and_then(|words| CommandLine::from_arg_matches(&words));
    let CommandLine { globals, command, .. } = match parsed.map_err(|e| e.format(&mut form)) {
        Ok(parsed) => parsed,
        Err(error) => return ExitCode::from(help::print(&error)),
    };
    if let Err(error) = descriptors::keep_from_children() {
        globals.log.fatal(&error);
        return ExitCode::FAILURE;
    }
    if std::path::absolute(globals.root()).is_ok_and(|root| root == Path::new("/")) {
        globals.log.fatal(&anyhow::anyhow!("Option --root argument should not be set to /"));
        return ExitCode::FAILURE;
    }
    let background = globals.report_fd.is_some();
    let failure = ExitCode::from(if matches!(command, Command::Exec(_)) { EXEC_FAILED } else { 1 });
    match command {
        Command::Check(arguments) => return check::main(&arguments, &globals.config),
        Command::Run(arguments) => return run::main(*arguments, &globals),
        _ => {}
    }
    // A process in the background has its standard error from its container, and a log of its own.
    let log = if background { Ok(()) } else { globals.log.begin(None) };
    let named = command.failure();
    let done = log.and_then(|()| dispatch(command, &globals));
    match done {
        Ok(status) => ExitCode::from(status),
        // Who waits for it is told, and says so.
        Err(_) if background => failure,
        Err(error) => {
            globals.log.fatal(&match named {
                Some(named) => error.context(named),
                None => error,
            });
            failure
        }
    }
}

fn dispatch(command: Command, globals: &Globals) -> anyhow::Result<u8> {
    let home = |id: &Id| Home::new(globals.root(), &id.id);
    let ask = |id: &Id, call: Call| call::ask(&home(id)?, &call, &[]).map(|_| 0);
    match command {
        Command::Create(arguments) => create::main(&arguments, globals),
        Command::Start(id) => match ask(&id, Call::Start) {
            Err(error) if call::is_not_running(&error) => {
                anyhow::bail!("cannot start a container that has stopped")
            }
            answer => answer,
        },
        Command::State(id) => state::main(&home(&id)?),
        Command::Kill(arguments) => kill::main(&arguments, globals),
        Command::Delete(arguments) => delete::main(&arguments, globals),
        Command::Exec(arguments) => exec::main(&arguments, globals),
        Command::List(arguments) => list::main(&arguments, globals),
        Command::Ps(arguments) => ps::main(&arguments, globals),
        Command::Pause(id) => ask(&id, Call::Pause(true)),
        Command::Resume(id) => match ask(&id, Call::Pause(false)) {
            Err(error) if call::is_not_running(&error) => anyhow::bail!("container not paused"),
            answer => answer,
        },
        Command::Update(arguments) => update::main(&arguments, globals),
        Command::Spec(arguments) => spec::main(&arguments),
        Command::Checkpoint(_) | Command::Restore(_) => {
            anyhow::bail!("a container in a virtual machine can't be checkpointed")
        }
        Command::Events(arguments) => events::main(&arguments, globals),
        Command::Logs(id) => logs::main(&id.id, globals),
        Command::Features => features::main(),
        Command::Version => {
            command::out::print(&format!("kata-like {VERSION}\n"))?;
            Ok(0)
        }
        Command::Completion(arguments) => manual::completion(&arguments),
        Command::Man(arguments) => manual::man(&arguments),
        Command::Check(_) | Command::Run(_) => Ok(0),
    }
}

/// What a configuration file says. Only the default one may be missing.
fn load(path: &Path) -> sandbox::Result<Config> {
    if path == Path::new(config::DEFAULT_PATH) {
        Config::load_default()
    } else {
        Config::load(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_commands_and_of_all_do_not_meet() {
        CommandLine::command().debug_assert();
        for line in [
            &["--rootless", "auto", "spec"][..],
            &["spec", "--rootless"],
            &["--rootless", "true", "list", "--quiet"],
            &["list", "--root", "/x"],
        ] {
            let words = ["kata-like"].iter().chain(line);
            assert!(CommandLine::try_parse_from(words).is_ok(), "{line:?}");
        }
    }
}
