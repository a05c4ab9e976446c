//! Answers the calls of commands with the sandbox library.

use super::call::{Answer, Call, Listener, NOT_RUNNING, Process, Status};
use super::stats;
use sandbox::io::{Endpoint, Stdio};
use sandbox::vm::Control;
use sandbox::{Error, Phase, Result, Sandbox};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Longest `process` or `resources` that a command may send, bytes.
const MAX_JSON: u64 = 16 << 20;

/// Answers until the runtime ends.
pub(super) async fn serve(listener: Listener, sandbox: Sandbox) {
    loop {
        match listener.accept().await {
            Ok(socket) => {
                tokio::spawn(converse(sandbox.clone(), socket));
            }
            Err(error) => {
                // Out of descriptors: connections that are open go on, and may be closed meanwhile.
                tracing::warn!("accepting a command: {error:#}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(sandbox: Sandbox, socket: OwnedFd) {
    let Ok(control) = Control::over(socket) else { return };
    while let Ok((call, fds)) = control.receive::<Call>().await {
        let answer = match call {
            Call::Exec { exec } => exec_in(&sandbox, &exec, fds, &control).await,
            call => answer(&sandbox, call, fds).await,
        };
        let answer = answer.unwrap_or_else(|error| match error {
            // The container has just ended, and this process is about to.
            Error::NotFound(_) if sandbox.state(sandbox.id(), "").is_err() => {
                Answer::Failed(NOT_RUNNING.into())
            }
            error => Answer::Failed(error.chain()),
        });
        if let Err(error) = control.send(&answer, &[]).await {
            return tracing::debug!("answering a command: {error}");
        }
    }
}

async fn answer(sandbox: &Sandbox, call: Call, fds: Vec<OwnedFd>) -> Result<Answer> {
    let id = sandbox.id();
    match call {
        Call::Status => Ok(Answer::Status(match sandbox.state(id, "")?.phase {
            Phase::Reserved | Phase::Created | Phase::Starting => Status::Created,
            Phase::Running => Status::Running,
            Phase::Paused => Status::Paused,
            Phase::Stopped(_) => Status::Stopped,
        })),
        Call::Start => sandbox.start(id).await.map(|_| Answer::Done),
        Call::Kill { exec, signal, all } => {
            sandbox.kill(id, &exec, signal, all).await.map(|()| Answer::Done)
        }
        Call::Resize { exec, columns, rows } => {
            sandbox.resize(id, &exec, columns, rows).await.map(|()| Answer::Done)
        }
        Call::Pause(pause) => sandbox.set_paused(id, pause).await.map(|()| Answer::Done),
        Call::Update => {
            let resources = read(fds.into_iter().next())?;
            sandbox.update(id, &resources).await.map(|()| Answer::Done)
        }
        Call::Processes => {
            let processes = sandbox.processes(id).await?.into_iter();
            let process = |p: sandbox::Process| Process {
                pid: p.pid,
                parent: p.parent,
                uid: p.uid,
                command: p.command,
            };
            Ok(Answer::Processes(processes.map(process).collect()))
        }
        Call::Stats { sandbox: also } => {
            let used = sandbox.stats(id).await?;
            let mut told = stats::as_runc(&used);
            if also {
                told["sandbox"] = stats::of_sandbox(&sandbox.overhead()?);
            }
            Ok(Answer::Stats(Box::new(told)))
        }
        Call::Exec { .. } => Err(Error::InvalidArgument("an exec is answered elsewhere".into())),
    }
}

/// Starts a process, tells so, and waits for its end.
async fn exec_in(
    sandbox: &Sandbox,
    exec: &str,
    fds: Vec<OwnedFd>,
    control: &Control,
) -> Result<Answer> {
    let id = sandbox.id();
    let mut fds = fds.into_iter();
    let process = read(fds.next())?;
    let mut pipe = || fds.next().map_or(Endpoint::None, Endpoint::Pipe);
    let stdio = Stdio { stdin: pipe(), stdout: pipe(), stderr: pipe(), logger: None };
    sandbox.add_exec(id, exec, &process, stdio)?;
    let ended = async {
        sandbox.start_exec(id, exec).await?;
        // Who asked may be gone; the process is waited for all the same.
        let _ = control.send(&Answer::Started, &[]).await;
        sandbox.wait(id, exec).await
    };
    let ended = ended.await;
    // Hands over what output there is still.
    if let Err(error) = sandbox.delete(id, exec).await {
        tracing::debug!("forgetting exec {exec}: {}", error.chain());
    }
    ended.map(|exit| Answer::Exited(exit.status))
}

fn read(file: Option<OwnedFd>) -> Result<Vec<u8>> {
    let file = file.ok_or_else(|| Error::InvalidArgument("a command sent no file".into()))?;
    let mut text = Vec::new();
    let read = File::from(file).take(MAX_JSON).read_to_end(&mut text);
    read.map_err(Error::system("read what a command sent"))?;
    Ok(text)
}
