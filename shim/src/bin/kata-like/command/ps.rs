//! `ps`: a container's processes, as its guest numbers them, in the columns of ps(1).

mod columns;
mod options;

use super::list::Format;
use crate::Globals;
use crate::command::{json, out};
use crate::monitor::call::{self, Answer, Call};
use crate::record::Home;
use anyhow::{Result, bail};
use clap::Args;
use columns::{Column, Users};
use sandbox::Process;

/// List a container's processes, by the pids of its guest
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Shape of the list
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// Name of the container
    id: String,
    /// Which columns, as ps has it: -ef (the default), aux, ax, -e, -l, -o LIST
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "PS OPTIONS")]
    options: Vec<String>,
}

pub(crate) fn main(arguments: &Arguments, globals: &Globals) -> Result<u8> {
    let home = Home::new(globals.root(), &arguments.id)?;
    let columns = options::columns(&arguments.options)?;
    let processes = match call::ask(&home, &Call::Processes, &[]) {
        Ok(Answer::Processes(processes)) => processes,
        Ok(_) => bail!("the container's monitor answered something else"),
        Err(error) if call::is_not_running(&error) => Vec::new(),
        Err(error) => return Err(error),
    };
    match arguments.format {
        // As runc.
        Format::Json if processes.is_empty() => out::print("null\n")?,
        Format::Json => {
            let pids: Vec<_> = processes.iter().map(|process| process.pid).collect();
            out::print(&format!("{}\n", json::line(&pids)?))?;
        }
        Format::Table => {
            let lines = table(&columns, &processes, &Users::of_the_host());
            out::print(&(lines.join("\n") + "\n"))?;
        }
    }
    Ok(0)
}

/// The lines: each column is as wide as its widest field or wider, numbers at its right.
fn table(columns: &[Column], processes: &[Process], users: &Users) -> Vec<String> {
    let mut rows = vec![columns.iter().map(|column| column.title.clone()).collect::<Vec<_>>()];
    rows.extend(
        processes.iter().map(|process| {
            columns.iter().map(|column| column.kind.field(process, users)).collect()
        }),
    );
    let widest = |at: usize| rows.iter().map(|row| row[at].chars().count()).max();
    let widths = columns.iter().enumerate();
    let widths = widths.map(|(at, column)| widest(at).unwrap_or_default().max(column.kind.width()));
    let widths: Vec<_> = widths.collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(columns).zip(&widths).map(|((cell, column), &width)| {
            if column.kind.is_number() {
                format!("{cell:>width$}")
            } else {
                format!("{cell:width$}")
            }
        });
        cells.collect::<Vec<_>>().join(" ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(words: &[&str]) -> Vec<String> {
        let words: Vec<_> = words.iter().map(ToString::to_string).collect();
        let process = Process {
            pid: 7,
            parent: 1,
            uid: 0,
            command: "sleep 9".into(),
            name: "sleep".into(),
            state: "Ss".into(),
            terminal: "pts/0".into(),
            started_s: 1_000_000_000,
            elapsed_ms: 100_000,
            cpu_ms: 61_500,
            virtual_bytes: 4096 * 1024,
            resident_bytes: 1024 * 1024,
            memory_permille: 15,
            ..Process::default()
        };
        let users = Users::parse("root:x:0:0::/root:/bin/sh\n");
        table(&options::columns(&words).unwrap(), &[process], &users)
    }

    #[test]
    fn the_usual_options_have_their_columns() {
        let full = [
            "UID      PID    PPID  C STIME TTY       TIME CMD",
            "root       7       1 61 Sep09 pts/0 00:01:01 sleep 9",
        ];
        assert_eq!(shown(&[]), full);
        assert_eq!(shown(&["-ef"]), full);
        assert_eq!(shown(&["-e", "-f"]), full);
        assert_eq!(
            shown(&["aux"]),
            [
                "USER     PID %CPU %MEM  VSZ  RSS TTY   STAT START TIME COMMAND",
                "root       7 61.5  1.5 4096 1024 pts/0 Ss   Sep09 1:01 sleep 9",
            ]
        );
        let short = ["    PID TTY   STAT TIME COMMAND", "      7 pts/0 Ss   1:01 sleep 9"];
        assert_eq!(shown(&["-e", "-x"]), short);
        assert_eq!(shown(&["ax"]), short);
        assert_eq!(shown(&["-A"]), ["    PID TTY       TIME CMD", "      7 pts/0 00:01:01 sleep"]);
        assert_eq!(shown(&["-o", "pid,comm"]), ["    PID COMMAND", "      7 sleep"]);
        assert_eq!(shown(&["-opid=P,args"]), ["      P COMMAND", "      7 sleep 9"]);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (words, name) in [(&["-Z"][..], "-Z"), (&["-o", "nosuch"], "nosuch"), (&["-o"], "-o")] {
            let words: Vec<_> = words.iter().map(ToString::to_string).collect();
            let error = options::columns(&words).err().unwrap().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
