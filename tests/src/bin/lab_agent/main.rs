//! The lab's agent: runs what the host asks for, inside the lab.
//!
//! `lab-agent serve [SOCKET]` answers requests on TCP port [`wire::PORT`], or on a unix socket; `lab-agent reap` is the lab's
//! process 1 once it has booted, and collects orphans; `lab-agent services` starts the containerds; `lab-agent
//! keep-vms` see [`kept_vms`].

mod exec;
mod kept_vms;

use anyhow::{Context, Result, bail};
use lab::containerd::Version;
use lab::pods;
use lab::wire::{self, Connection, Entry, EntryKind, Kind, Request};
use std::collections::HashMap;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Files as last put: their stamp then, and the hash of their contents.
type Known = Arc<Mutex<HashMap<PathBuf, (Stamp, String)>>>;
type Stamp = (u64, u64, u64, i64, i64);

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("serve") => match std::env::args_os().nth(2) {
            Some(socket) => serve_host(Path::new(&socket)),
            None => serve_emulated(),
        },
        Some("reap") => reap(),
        Some("services") => services(),
        Some("keep-vms") => kept_vms::keep(),
        _ => bail!("usage: lab-agent serve [SOCKET]|reap|services|keep-vms"),
    }
}

fn serve_emulated() -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", wire::PORT)).context("listen")?;
    serve(listener.incoming().map(|stream| {
        let stream = stream?;
        stream.set_nodelay(true)?;
        Ok(OwnedFd::from(stream).into())
    }));
    Ok(())
}

fn serve_host(socket: &Path) -> Result<()> {
    serve(UnixListener::bind(socket).context("listen")?.incoming());
    Ok(())
}

fn serve(connections: impl Iterator<Item = std::io::Result<Connection>>) {
    let known = Known::default();
    for stream in connections.flatten() {
        let known = Arc::clone(&known);
        std::thread::spawn(move || {
            let Ok(mut answer) = stream.try_clone() else { return };
            if let Err(error) = handle(stream, &known) {
                // The peer may be gone; then nobody wants the message either.
                let _ =
                    wire::write_frame(&mut answer, Kind::Error, format!("{error:#}").as_bytes());
            }
        });
    }
}

fn reap() -> ! {
    loop {
        if nix::sys::wait::wait().is_err() {
            std::thread::sleep(Duration::from_millis(100)); // no child at all: only while shutting down
        }
    }
}

fn services() -> Result<()> {
    pods::configure_network()?;
    for version in Version::installed() {
        version.start()?;
        version.import_images()?;
    }
    Ok(())
}

fn handle(mut stream: Connection, known: &Known) -> Result<()> {
    match wire::read_json(&mut stream, Kind::Request)? {
        Request::Ping => wire::write_json(&mut stream, Kind::Answer, &()),
        Request::SetClock(ns) => {
            set_clock(Duration::from_nanos(ns))?;
            wire::write_json(&mut stream, Kind::Answer, &())
        }
        Request::Exec(request) => exec::run(&stream, &request),
        Request::Put(entries) => put(&mut stream, &entries, known),
        Request::Get(path) => get(&mut stream, &path),
    }
}

fn set_clock(since_epoch: Duration) -> Result<()> {
    let time = nix::sys::time::TimeSpec::from_duration(since_epoch);
    nix::time::clock_settime(nix::time::ClockId::CLOCK_REALTIME, time).context("set the clock")
}

fn put(stream: &mut Connection, entries: &[Entry], known: &Known) -> Result<()> {
    let wanted: Vec<usize> = (0..entries.len()).filter(|i| !is_here(&entries[*i], known)).collect();
    wire::write_json(stream, Kind::Answer, &wanted)?;
    for i in &wanted {
        let entry = &entries[*i];
        wire::receive_entry(stream, entry)?;
        if let EntryKind::File { hash, .. } = &entry.kind {
            let mut known = known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            known.insert(entry.path.clone(), (wire::stamp(&entry.path)?, hash.clone()));
        }
    }
    wire::write_json(stream, Kind::Answer, &())
}

/// Whether a file with these contents is there, as far as is known without reading it.
fn is_here(entry: &Entry, known: &Known) -> bool {
    let EntryKind::File { hash, .. } = &entry.kind else { return false };
    let known = known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    known.get(&entry.path).is_some_and(|(stamp, had)| {
        had == hash && wire::stamp(&entry.path).is_ok_and(|now| now == *stamp)
    })
}

fn get(stream: &mut Connection, path: &Path) -> Result<()> {
    for (local, entry) in wire::list_entries(path, Path::new(""))? {
        wire::write_json(stream, Kind::Answer, &Some(&entry))?;
        if let EntryKind::File { size, .. } = entry.kind {
            wire::send_file(stream, &local, size)?;
        }
    }
    wire::write_json(stream, Kind::Answer, &None::<Entry>)
}
