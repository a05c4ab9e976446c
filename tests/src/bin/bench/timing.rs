//! How long commands take, on `CLOCK_MONOTONIC`.

use crate::CONTAINERD;
use crate::phases::{self, Marks};
use anyhow::{Context, Result, bail};
use lab::containerd::IMAGE;
use nix::time::{ClockId, clock_gettime};
use std::process::{Command, Stdio};

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// runc, with containerd's own shim.
    Runc,
    /// Ours.
    KataLike,
}

impl Runtime {
    /// As the report calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::KataLike => "kata-like",
        }
    }

    fn id(self) -> &'static str {
        match self {
            Self::Runc => "io.containerd.runc.v2",
            Self::KataLike => "io.containerd.kata-like.v2",
        }
    }
}

/// Samples of whole runs, ms, and the marks of ours.
#[derive(Default)]
pub struct Starts {
    /// runc's.
    pub runc: Vec<f64>,
    /// Ours.
    pub ours: Vec<f64>,
    /// Ours, in phases.
    pub marks: Vec<Marks>,
}

/// Now, `CLOCK_MONOTONIC`, ns.
pub fn now() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

/// Start and end of a command that must succeed, ns.
pub fn timed(command: &mut Command) -> Result<(u64, u64)> {
    let start = now()?;
    let output = command.stdin(Stdio::null()).output().context("start the command")?;
    let end = now()?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok((start, end))
}

pub fn milliseconds((start, end): (u64, u64)) -> f64 {
    end.saturating_sub(start) as f64 / 1e6
}

/// Runs `true` in fresh containers of both, in turn.
pub fn starts(runs: usize) -> Result<Starts> {
    let mut starts = Starts::default();
    for run in 0..=runs {
        for runtime in [Runtime::Runc, Runtime::KataLike] {
            let id = format!("bench-{}-{run}", runtime.name());
            let took = timed(CONTAINERD.ctr().args([
                "run",
                "--rm",
                "--runtime",
                runtime.id(),
                IMAGE,
                &id,
                "true",
            ]))?;
            eprintln!("[bench] {id}: {:.1} ms", milliseconds(took));
            if run == 0 {
                continue; // caches fill
            }
            match runtime {
                Runtime::Runc => starts.runc.push(milliseconds(took)),
                Runtime::KataLike => {
                    starts.ours.push(milliseconds(took));
                    starts.marks.push(phases::read(&id, took)?);
                }
            }
        }
    }
    Ok(starts)
}

/// A container that sleeps, until it is dropped.
pub struct Container {
    /// What runs it.
    pub runtime: Runtime,
    /// Its id.
    pub id: String,
}

impl Container {
    /// Starts one.
    pub fn start(runtime: Runtime) -> Result<Self> {
        let id = format!("bench-{}-idle", runtime.name());
        timed(CONTAINERD.ctr().args([
            "run",
            "--detach",
            "--runtime",
            runtime.id(),
            IMAGE,
            &id,
            "sleep",
            "1000000",
        ]))?;
        Ok(Self { runtime, id })
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        for arguments in
            [["task", "delete", "--force", &self.id], ["container", "delete", &self.id, ""]]
        {
            let arguments = arguments.iter().filter(|a| !a.is_empty());
            let _ = CONTAINERD.ctr().args(arguments).output(); // best effort at the end of a run
        }
    }
}

/// Runs `true` in each container, in turn; ms.
pub fn execs(containers: &[Container], runs: usize) -> Result<Vec<Vec<f64>>> {
    let mut samples = vec![Vec::new(); containers.len()];
    for run in 0..=runs {
        for (container, samples) in containers.iter().zip(&mut samples) {
            let exec_id = format!("exec-{run}");
            let took = timed(CONTAINERD.ctr().args([
                "task",
                "exec",
                "--exec-id",
                &exec_id,
                &container.id,
                "true",
            ]))?;
            if run > 0 {
                samples.push(milliseconds(took));
            }
        }
    }
    Ok(samples)
}
