//! This process's terminal, for an interactive shell in the lab.

use anyhow::{Context, Result};
use nix::sys::termios::{self, SetArg, Termios};

/// Raw mode until dropped.
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// Puts standard input into raw mode.
    ///
    /// # Errors
    /// When it is no terminal.
    pub fn enter() -> Result<Self> {
        let before = termios::tcgetattr(std::io::stdin())
            .context("a shell wants a terminal as its input")?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.before);
    }
}

/// Rows and columns; 24 by 80 when unknown.
pub fn size() -> (u16, u16) {
    let mut size = libc::winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, which outlives the call.
    unsafe { libc::ioctl(0, libc::TIOCGWINSZ, &raw mut size) };
    (size.ws_row, size.ws_col)
}
