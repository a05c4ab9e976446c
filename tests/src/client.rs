//! The host's side of the lab's agent.

use crate::wire::{self, Connection, Entry, EntryKind, Exec, Kind, Request};
use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// Where a lab's agent is reached.
#[derive(Debug, Clone)]
pub enum Client {
    /// A port of this host that QEMU forwards.
    Emulated(u16),
    /// The socket of an agent on this host's kernel.
    Host(PathBuf),
}

/// How much a [`Client::put`] moved.
#[derive(Debug, Default, Clone, Copy)]
pub struct Moved {
    /// Files that had changed.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

impl Client {
    fn connect(&self) -> std::io::Result<Connection> {
        match self {
            Self::Emulated(port) => {
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
                let stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
                stream.set_nodelay(true)?;
                Ok(OwnedFd::from(stream).into())
            }
            Self::Host(socket) => Connection::connect(socket),
        }
    }

    fn request(&self, request: &Request) -> Result<Connection> {
        let mut stream =
            self.connect().context("the lab does not answer; `cargo xtask lab up` starts it")?;
        wire::write_json(&mut stream, Kind::Request, request)?;
        Ok(stream)
    }

    /// Whether the agent answers within `limit`.
    pub fn is_alive(&self, limit: Duration) -> bool {
        let ping = || -> Result<()> {
            let mut stream = self.request(&Request::Ping)?;
            stream.set_read_timeout(Some(limit))?;
            wire::read_json(&mut stream, Kind::Answer)
        };
        ping().is_ok()
    }

    /// Waits for the agent, at most `limit`.
    ///
    /// # Errors
    /// When it doesn't answer in time.
    pub fn wait_alive(&self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        while !self.is_alive(Duration::from_millis(500)) {
            if Instant::now() > end {
                bail!("the lab's agent did not answer within {} s", limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Gives the lab this host's time.
    ///
    /// # Errors
    /// When the agent refuses or is gone.
    pub fn set_clock(&self) -> Result<()> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let mut stream = self.request(&Request::SetClock(now.as_nanos() as u64))?;
        wire::read_json(&mut stream, Kind::Answer)
    }

    /// Brings files and folders to the lab, moving only what changed.
    ///
    /// # Errors
    /// When a file can't be read or written, or the agent is gone.
    pub fn put(&self, pairs: &[(&Path, &Path)]) -> Result<Moved> {
        let mut found = Vec::new();
        for (local, remote) in pairs {
            found.extend(wire::list_entries(local, remote)?);
        }
        let entries = found.iter().map(|(_, entry)| entry.clone()).collect();
        let mut stream = self.request(&Request::Put(entries))?;
        let wanted: Vec<usize> = wire::read_json(&mut stream, Kind::Answer)?;
        let mut moved = Moved::default();
        for i in wanted {
            let (local, entry) =
                found.get(i).context("the agent asked for what was not offered")?;
            if let EntryKind::File { size, .. } = entry.kind {
                wire::send_file(&mut stream, local, size)?;
                moved.files += 1;
                moved.bytes += size;
            }
        }
        wire::read_json::<()>(&mut stream, Kind::Answer)?;
        Ok(moved)
    }

    /// Brings a file or folder from the lab.
    ///
    /// # Errors
    /// When it isn't there, can't be written here, or the agent is gone.
    pub fn get(&self, remote: &Path, local: &Path) -> Result<()> {
        let mut stream = self.request(&Request::Get(remote.to_owned()))?;
        while let Some(entry) = wire::read_json::<Option<Entry>>(&mut stream, Kind::Answer)? {
            let path = if entry.path.as_os_str().is_empty() {
                local.to_owned()
            } else {
                local.join(&entry.path)
            };
            wire::receive_entry(&mut stream, &Entry { path, ..entry })?;
        }
        Ok(())
    }

    /// Runs a command, its output to ours, its input from `stdin`; answers its exit status.
    ///
    /// # Errors
    /// When it can't be started or the connection breaks.
    pub fn exec(&self, exec: Exec, stdin: Option<Box<dyn Read + Send>>) -> Result<i32> {
        self.exec_to(exec, stdin, &mut std::io::stdout(), &mut std::io::stderr())
    }

    /// As [`Client::exec`], with the output to where the caller says.
    ///
    /// # Errors
    /// As [`Client::exec`].
    pub fn exec_to(
        &self,
        exec: Exec,
        stdin: Option<Box<dyn Read + Send>>,
        out: &mut dyn Write,
        err: &mut dyn Write,
    ) -> Result<i32> {
        run(self.request(&Request::Exec(exec))?, stdin, out, err)
    }

    /// Runs a command whose output never pauses for longer than `silence`.
    ///
    /// # Errors
    /// As [`Client::exec`], and when it falls silent for longer.
    pub fn exec_watched(
        &self,
        exec: Exec,
        silence: Duration,
        stdin: Option<Box<dyn Read + Send>>,
        out: &mut dyn Write,
    ) -> Result<i32> {
        let stream = self.request(&Request::Exec(exec))?;
        stream.set_read_timeout(Some(silence))?;
        run(stream, stdin, out, &mut std::io::stderr())
    }

    /// Runs a command without input and answers its exit status, output and errors.
    ///
    /// # Errors
    /// As [`Client::exec`].
    pub fn output(&self, argv: &[&str]) -> Result<(i32, String, String)> {
        let argv = argv.iter().map(|&s| s.to_owned()).collect();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let status = self.exec_to(Exec { argv, ..Exec::default() }, None, &mut out, &mut err)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((status, text(out), text(err)))
    }

    /// Runs a command on a terminal like ours, which is put into raw mode meanwhile.
    ///
    /// # Errors
    /// As [`Client::exec`].
    pub fn shell(&self, exec: Exec) -> Result<i32> {
        let _raw = crate::terminal::Raw::enter()?;
        let tty = Some(crate::terminal::size());
        self.exec(Exec { tty, ..exec }, Some(Box::new(std::io::stdin())))
    }
}

/// Feeds the command of this connection, and copies its output until it exits.
fn run(
    mut stream: Connection,
    stdin: Option<Box<dyn Read + Send>>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<i32> {
    let mut input = stream.try_clone()?;
    std::thread::spawn(move || {
        if let Some(mut stdin) = stdin {
            let mut chunk = vec![0u8; wire::CHUNK];
            while let Ok(n) = stdin.read(&mut chunk) {
                if n == 0 || wire::write_frame(&mut input, Kind::Stdin, &chunk[..n]).is_err() {
                    break;
                }
            }
        }
        wire::write_frame(&mut input, Kind::StdinEnd, &[])
    });
    let status = carry(&mut stream, out, err);
    let _ = stream.shutdown(Shutdown::Both); // wakes the thread above, if it still writes
    status
}

/// Copies the command's output until it exits.
fn carry(stream: &mut Connection, out: &mut dyn Write, err: &mut dyn Write) -> Result<i32> {
    while let Some((kind, body)) = wire::read_frame(stream)? {
        match kind {
            Kind::Stdout => out.write_all(&body).and_then(|()| out.flush())?,
            Kind::Stderr => err.write_all(&body).and_then(|()| err.flush())?,
            Kind::Exit => {
                let code = body.try_into().map_err(|_| anyhow::anyhow!("malformed exit status"))?;
                return Ok(i32::from_le_bytes(code));
            }
            Kind::Error => bail!("{}", String::from_utf8_lossy(&body)),
            other => bail!("unexpected frame {other:?}"),
        }
    }
    bail!("the lab went away while the command ran")
}
