//! What `--help` prints, in the form in which runc prints it, and what is said of a command that there is not.

use clap::Command;
use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

/// Exit status where there is no such command; runc's.
const NO_SUCH_COMMAND: u8 = 3;

/// Gives the command and its subcommands that form.
pub(crate) fn in_runcs_form(command: Command) -> Command {
    let name = command.get_name().to_owned();
    command.help_template(template(&name)).mut_subcommands(|command| {
        let named = format!("{name} {}", command.get_name());
        command.help_template(template(&named))
    })
}

fn template(name: &str) -> String {
    format!("NAME:\n   {name} - {{about}}\n\nUSAGE:\n   {{usage}}\n\n{{all-args}}{{after-help}}")
}

/// Prints why there is nothing to do, be it that help was asked for. Gives the exit status.
pub(crate) fn print(error: &Error) -> u8 {
    let unknown = no_such_command(error);
    if let Some(text) = &unknown {
        use std::io::Write as _;
        // Where nobody reads it there is nobody to tell.
        let _ = writeln!(std::io::stderr(), "{text}");
    }
    let _ = error.print();
    if unknown.is_some() { NO_SUCH_COMMAND } else { u8::from(error.use_stderr()) }
}

/// In runc's words, which callers look for.
fn no_such_command(error: &Error) -> Option<String> {
    match (error.kind(), error.get(ContextKind::InvalidSubcommand)) {
        (ErrorKind::InvalidSubcommand, Some(ContextValue::String(name))) => {
            Some(format!("No help topic for '{name}'"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn error(words: &[&str]) -> Error {
        let command = in_runcs_form(crate::CommandLine::command());
        let all = ["kata-like"].iter().chain(words);
        command.try_get_matches_from(all).unwrap_err()
    }

    #[test]
    fn every_commands_help_begins_as_runcs() {
        for name in "checkpoint create delete events exec kill list pause ps restore resume run spec start state update features"
            .split_whitespace()
        {
            for option in ["-h", "--help"] {
                let help = error(&[name, option]);
                assert_eq!(help.kind(), ErrorKind::DisplayHelp, "{name}");
                let text = help.to_string();
                let (first, second) = text.split_once('\n').unwrap();
                assert_eq!(first, "NAME:");
                assert!(second.starts_with(&format!("   kata-like {name} - ")), "{text}");
                assert!(text.contains(&format!("USAGE:\n   kata-like {name}")), "{text}");
            }
        }
        let text = error(&["-h"]).to_string();
        assert!(text.starts_with("NAME:\n   kata-like - Containers"), "{text}");
        assert!(text.contains("\n  create "), "{text}");
    }

    #[test]
    fn a_command_that_there_is_not_is_named_as_by_runc() {
        let said = no_such_command(&error(&["foo", "-h"]));
        assert_eq!(said.as_deref(), Some("No help topic for 'foo'"));
        for other in [&["list", "--foo"][..], &["list", "-h"], &[]] {
            assert_eq!(no_such_command(&error(other)), None, "{other:?}");
        }
    }
}
