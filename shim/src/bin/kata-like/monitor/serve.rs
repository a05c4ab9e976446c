//! Answers the calls of commands with the sandbox library.

use super::call::{self, Answer, Call, Exec, Listener, NOT_RUNNING, Status};
use super::stats;
use crate::command::memory_file;
use protocol::control::ControlError;
use sandbox::io::{Endpoint, Stdio};
use sandbox::vm::Control;
use sandbox::{Error, NewExec, Phase, Result, Sandbox, has_hung_up};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

/// How often it is looked whether a container has been resumed.
const RESUMED: Duration = Duration::from_millis(50);

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
    let Ok(peer) = socket.try_clone() else { return };
    let Ok(control) = Control::over(socket) else { return };
    while let Ok((call, fds)) = control.receive::<Call>().await {
        if has_hung_up(&peer) {
            // It was told that nobody answers, so nothing may come of it later.
            return tracing::debug!("not done, since nobody waits for it any more: {call:?}");
        }
        let answer = match call {
            Call::Exec(exec) => exec_in(&sandbox, exec, fds, (&control, &peer)).await,
            call => answer(&sandbox, call, fds).await,
        };
        let answer = answer.unwrap_or_else(|error| match error {
            // The container has just ended, and this process is about to.
            Error::NotFound(_) if sandbox.state(sandbox.id(), "").is_err() => {
                Answer::Failed(NOT_RUNNING.into())
            }
            error => Answer::Failed(error.chain()),
        });
        if let Err(error) = send(&control, &answer).await {
            return tracing::debug!("answering a command: {error:#}");
        }
    }
}

/// Sends an answer; in a file what is too long for a packet.
async fn send(control: &Control, answer: &Answer) -> anyhow::Result<()> {
    match control.send(answer, &[]).await {
        Err(ControlError::TooLong) => {
            let file = memory_file(&serde_json::to_vec(answer)?)?;
            Ok(control.send(&Answer::InFile, &[file.as_fd()]).await?)
        }
        sent => Ok(sent?),
    }
}

async fn answer(sandbox: &Sandbox, call: Call, fds: Vec<OwnedFd>) -> Result<Answer> {
    let id = sandbox.id();
    match call {
        Call::Status => Ok(Answer::Status(status(sandbox))),
        Call::Start => {
            refuse(match status(sandbox) {
                Status::Created => None,
                Status::Running => Some("cannot start an already running container"),
                Status::Paused => Some("cannot start a container in the paused state"),
                Status::Stopped => Some("cannot start a container that has stopped"),
            })?;
            sandbox.start(id).await.map(|_| Answer::Done)
        }
        // Only asks whether there is a process.
        Call::Kill { exec, signal: 0, .. } => match sandbox.state(id, &exec)?.phase {
            Phase::Stopped(_) => Ok(Answer::Failed(NOT_RUNNING.into())),
            _ => Ok(Answer::Done),
        },
        Call::Kill { exec, signal, all } => {
            if exec.is_empty() && status(sandbox) == Status::Stopped {
                return Ok(Answer::Failed(NOT_RUNNING.into()));
            }
            sandbox.kill(id, &exec, signal, all).await.map(|()| Answer::Done)
        }
        Call::Resize { exec, columns, rows } => {
            sandbox.resize(id, &exec, columns, rows).await.map(|()| Answer::Done)
        }
        Call::Pause(pause) => {
            refuse(match (pause, status(sandbox)) {
                (true, Status::Paused | Status::Stopped) => Some(NOT_RUNNING),
                (false, Status::Created | Status::Running | Status::Stopped) => {
                    Some("container not paused")
                }
                _ => None,
            })?;
            sandbox.set_paused(id, pause).await.map(|()| Answer::Done)
        }
        Call::Update => {
            let resources = read(fds.into_iter().next())?;
            sandbox.update(id, &resources).await.map(|()| Answer::Done)
        }
        Call::Processes => sandbox.processes(id).await.map(Answer::Processes),
        Call::Stats { sandbox: also } => {
            let used = sandbox.stats(id).await?;
            let mut stats = stats::as_runc(&used);
            if also {
                stats.sandbox = Some(stats::of_sandbox(&sandbox.overhead()?));
            }
            let oom_kills = used.memory_events.get("oom_kill").copied().unwrap_or_default();
            Ok(Answer::Stats { stats: Box::new(stats), oom_kills })
        }
        Call::Exec(_) => Err(Error::InvalidArgument("an exec is answered elsewhere".into())),
    }
}

/// Where the container is in its life; deleted, it has ended.
fn status(sandbox: &Sandbox) -> Status {
    match sandbox.state(sandbox.id(), "").map(|state| state.phase) {
        Ok(Phase::Reserved | Phase::Created | Phase::Starting) => Status::Created,
        Ok(Phase::Running) => Status::Running,
        Ok(Phase::Paused { .. }) => Status::Paused,
        Ok(Phase::Stopped(_)) | Err(_) => Status::Stopped,
    }
}

/// What runc says to what is not legal in a state.
fn refuse(why: Option<&str>) -> Result<()> {
    why.map_or(Ok(()), |why| Err(Error::FailedPrecondition(why.into())))
}

/// Starts a process, tells so, and waits for its end.
async fn exec_in(
    sandbox: &Sandbox,
    asked: Exec,
    fds: Vec<OwnedFd>,
    (control, peer): (&Control, &OwnedFd),
) -> Result<Answer> {
    let id = sandbox.id();
    let Exec { id: exec, ignore_paused, sub_cgroup, plain_newlines } = asked;
    refuse(match status(sandbox) {
        Status::Stopped => Some(call::EXEC_IN_STOPPED),
        Status::Paused if !ignore_paused => {
            Some("cannot exec in a paused container (use --ignore-paused to override)")
        }
        _ => None,
    })?;
    // Nothing of a paused container runs, what is added to it neither.
    wait_while(|| status(sandbox) == Status::Paused, peer).await?;
    let mut fds = fds.into_iter();
    let process = read(fds.next())?;
    let mut pipe = || fds.next().map_or(Endpoint::None, Endpoint::Pipe);
    let (stdin, stdout, stderr) = (pipe(), pipe(), pipe());
    let stdio = Stdio { stdin, stdout, stderr, plain_newlines, ..Stdio::default() };
    sandbox.add_exec(id, &exec, NewExec { process_json: &process, stdio, sub_cgroup })?;
    let exec = exec.as_str();
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

/// Waits while a container is paused.
///
/// # Errors
/// Who asked has gone meanwhile.
async fn wait_while(is_paused: impl Fn() -> bool, peer: &OwnedFd) -> Result<()> {
    while is_paused() {
        tokio::time::sleep(RESUMED).await;
        if has_hung_up(peer) {
            return Err(Error::FailedPrecondition("nobody waits for it any more".into()));
        }
    }
    Ok(())
}

fn read(file: Option<OwnedFd>) -> Result<Vec<u8>> {
    let file = file.ok_or_else(|| {
        Error::InvalidArgument("no file came with the command, or too many are open".into())
    })?;
    let mut text = Vec::new();
    let read = File::from(file).take(MAX_JSON).read_to_end(&mut text);
    read.map_err(Error::system("read what a command sent"))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    #[tokio::test]
    async fn who_has_gone_does_not_wait_for_a_resume() {
        let (ours, theirs) = pair();
        wait_while(|| false, &ours).await.unwrap();
        let turns = std::cell::Cell::new(3);
        let is_paused = || turns.replace(turns.get() - 1) > 0;
        wait_while(is_paused, &ours).await.unwrap();
        drop(theirs);
        let waited = tokio::time::timeout(Duration::from_secs(20), wait_while(|| true, &ours));
        waited.await.unwrap().unwrap_err();
    }

    #[test]
    fn who_has_gone_waits_for_nothing() {
        let (ours, theirs) = pair();
        protocol::control::send(&theirs, &Call::Start, &[]).unwrap();
        assert!(!has_hung_up(&ours));
        drop(theirs);
        assert!(has_hung_up(&ours));
    }
}
