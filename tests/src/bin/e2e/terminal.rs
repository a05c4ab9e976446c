//! Terminals: `ctr run -t`, `ctr task exec -t`, resize.

use crate::command::{self, DEADLINE};
use crate::context::Context;
use anyhow::{Context as _, Result, bail};
use nix::libc;
use nix::pty::{OpenptyResult, Winsize, openpty};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

crate::cases!(
    crate::Scope::OneOrEach;
    run_has_a_terminal,
    a_resize_is_seen_by_stty;
    crate::Scope::Once;
    exec_has_a_terminal,
    control_c_interrupts,
);

/// A command on a terminal of its own, as a person has it.
struct OnTerminal {
    child: Child,
    master: File,
    seen: Arc<Mutex<String>>,
}

impl OnTerminal {
    fn start(command: &mut Command, rows: u16, columns: u16) -> Result<Self> {
        let OpenptyResult { master, slave } = openpty(Some(&size(rows, columns)), None)?;
        let slave = File::from(slave);
        command
            .stdin(Stdio::from(slave.try_clone()?))
            .stdout(Stdio::from(slave.try_clone()?))
            .stderr(Stdio::from(slave));
        // SAFETY: setsid and ioctl are async-signal-safe; the closure touches nothing of the parent's.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                nix::errno::Errno::result(libc::ioctl(0, libc::TIOCSCTTY, 0)).map(drop)?;
                Ok(())
            });
        }
        let child = command.spawn().context("start ctr on a terminal")?;
        // Drops the command's copies of the terminal, so that its end is seen.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let master = File::from(master);
        let seen = Arc::new(Mutex::new(String::new()));
        let (mut reader, text) = (master.try_clone()?, seen.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut bytes) {
                if let Ok(mut text) = text.lock() {
                    text.push_str(&String::from_utf8_lossy(&bytes[..n]));
                }
            }
        });
        Ok(Self { child, master, seen })
    }

    fn screen(&self) -> String {
        self.seen.lock().map(|text| text.clone()).unwrap_or_default()
    }

    fn expect(&self, text: &str) -> Result<()> {
        self.expect_within(text, DEADLINE)
    }

    fn expect_within(&self, text: &str, deadline: Duration) -> Result<()> {
        command::eventually(&format!("{text:?} on the terminal"), deadline, || {
            Ok(self.screen().contains(text))
        })
        .with_context(|| format!("the terminal shows {:?}", self.screen()))
    }

    fn type_in(&mut self, keys: &str) -> Result<()> {
        Ok(self.master.write_all(keys.as_bytes())?)
    }

    fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let size = size(rows, columns);
        // SAFETY: the descriptor is open and the argument is a winsize, which the kernel only reads.
        let done =
            unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        nix::errno::Errno::result(done)?;
        Ok(())
    }

    fn finish(mut self, code: i32) -> Result<()> {
        let end = std::time::Instant::now() + DEADLINE;
        let Some(status) = command::wait_until(&mut self.child, end)? else {
            self.child.kill()?;
            self.child.wait()?;
            bail!("ctr did not end; the terminal shows {:?}", self.screen());
        };
        if command::code(status) != code {
            bail!("exit {} instead of {code}: {:?}", command::code(status), self.screen());
        }
        Ok(())
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn run_has_a_terminal(context: &Context) -> Result<()> {
    let run = context.container().flag("--rm").flag("--tty");
    let script = "test -t 0 && test -t 1 && test -t 2 && echo all-ttys; exit 7";
    let terminal = OnTerminal::start(&mut run.command(&["sh", "-c", script]), 24, 80)?;
    terminal.expect("all-ttys")?;
    terminal.finish(7)
}

fn exec_has_a_terminal(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    let mut terminal = OnTerminal::start(&mut container.exec_command(&["--tty"], &["sh"]), 24, 80)?;
    terminal.type_in("test -t 0 && echo yes-it-is-a-$((1))-tty\n")?;
    terminal.expect("yes-it-is-a-1-tty")?;
    terminal.type_in("exit 9\n")?;
    terminal.finish(9)?;
    container.remove()
}

fn a_resize_is_seen_by_stty(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    let mut terminal = OnTerminal::start(&mut container.exec_command(&["--tty"], &["sh"]), 31, 87)?;
    terminal.type_in("echo ready-$((2))\n")?;
    terminal.expect("ready-2")?;
    // The resize travels beside the keys: ask until it has come.
    terminal
        .type_in("until [ \"$(stty size)\" = '33 99' ]; do sleep 0.1; done; echo seen-$((3))\n")?;
    // ctr starts the process before it listens for changes of its terminal's size: one of them may be lost.
    command::eventually("the new size", DEADLINE, || {
        terminal.resize(33, 98)?;
        terminal.resize(33, 99)?;
        Ok(terminal.expect_within("seen-3", Duration::from_secs(2)).is_ok())
    })
    .with_context(|| format!("the terminal shows {:?}", terminal.screen()))?;
    terminal.type_in("exit\n")?;
    terminal.finish(0)?;
    container.remove()
}

fn control_c_interrupts(context: &Context) -> Result<()> {
    let run = context.container().flag("--rm").flag("--tty");
    let script = "trap 'echo interrupted; exit 4' INT; echo waiting; while :; do sleep 0.1; done";
    let mut terminal = OnTerminal::start(&mut run.command(&["sh", "-c", script]), 24, 80)?;
    terminal.expect("waiting")?;
    terminal.type_in("\u{3}")?;
    terminal.expect("interrupted")?;
    terminal.finish(4)
}
