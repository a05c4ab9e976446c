//! A sandbox's events as containerd's.

use super::timestamp;
use crate::publisher::Notice;
use containerd_shim_protos::api::Mount;
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use sandbox::event::SandboxEvent;
use sandbox::{Error, within};
use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;

/// What containerd said of a process and wants to hear again.
#[derive(Debug, Clone, Default)]
pub struct Said {
    /// The bundle.
    pub bundle: String,
    /// The root file system's mounts.
    pub rootfs: Vec<Mount>,
    /// The standard streams.
    pub io: TaskIO,
}

/// [`Said`] by container and exec id; an init's exec id is empty.
#[derive(Debug, Clone, Default)]
pub struct Containers(Arc<Mutex<HashMap<(String, String), Said>>>);

impl Containers {
    fn lock(&self) -> MutexGuard<'_, HashMap<(String, String), Said>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was said of a process.
    pub fn get(&self, id: &str, exec: &str) -> Said {
        self.lock().get(&(id.to_owned(), exec.to_owned())).cloned().unwrap_or_default()
    }

    /// Keeps what is said, unless something is kept already.
    pub fn keep(&self, id: &str, exec: &str, said: Said) {
        self.lock().entry((id.to_owned(), exec.to_owned())).or_insert(said);
    }

    /// Forgets a process, with a container's init its execs too.
    pub fn forget(&self, id: &str, exec: &str) {
        self.lock().retain(|(i, e), _| i != id || !(exec.is_empty() || e == exec));
    }
}

/// An empty file in a container's bundle by which CRI-O, which takes no events, knows of a kill for lack of memory once
/// the container has ended.
const OUT_OF_MEMORY: &str = "oom";

/// How long events wait for that file.
const NOTE_PATIENCE: Duration = Duration::from_secs(1);

/// Passes on all that the sandbox tells, until it tells nothing more; with `noted` it also leaves what CRI-O looks for.
pub async fn forward(
    mut told: mpsc::UnboundedReceiver<SandboxEvent>,
    containers: Containers,
    notices: mpsc::UnboundedSender<Notice>,
    noted: bool,
) {
    while let Some(event) = told.recv().await {
        if let SandboxEvent::OutOfMemory { id } = &event
            && noted
        {
            note_out_of_memory(id, Path::new(&containers.get(id, "").bundle)).await;
        }
        let _ = notices.send(notice(event, &containers));
    }
}

/// Leaves the file, on a thread that may wait: the bundle's file system may hang.
async fn note_out_of_memory(id: &str, bundle: &Path) {
    let file = bundle.join(OUT_OF_MEMORY);
    let named = file.clone();
    let create = move || File::create(&file).map(drop).map_err(Error::path("make", file));
    if let Err(error) = within(NOTE_PATIENCE, "make", &named, create).await {
        tracing::warn!("container {id}: note that memory ran out: {}", error.chain());
    }
}

fn notice(event: SandboxEvent, containers: &Containers) -> Notice {
    match event {
        SandboxEvent::Created { id, pid } => {
            let Said { bundle, rootfs, io } = containers.get(&id, "");
            let io = Some(io).into();
            let container_id = id;
            let event = TaskCreate { container_id, bundle, rootfs, io, pid, ..Default::default() };
            Notice::new("/tasks/create", &event)
        }
        SandboxEvent::Started { id, pid } => {
            Notice::new("/tasks/start", &TaskStart { container_id: id, pid, ..Default::default() })
        }
        SandboxEvent::OutOfMemory { id } => {
            Notice::new("/tasks/oom", &TaskOOM { container_id: id, ..Default::default() })
        }
        SandboxEvent::Paused { id } => {
            Notice::new("/tasks/paused", &TaskPaused { container_id: id, ..Default::default() })
        }
        SandboxEvent::Resumed { id } => {
            Notice::new("/tasks/resumed", &TaskResumed { container_id: id, ..Default::default() })
        }
        SandboxEvent::ExecAdded { id, exec } => Notice::new(
            "/tasks/exec-added",
            &TaskExecAdded { container_id: id, exec_id: exec, ..Default::default() },
        ),
        SandboxEvent::ExecStarted { id, exec, pid } => Notice::new(
            "/tasks/exec-started",
            &TaskExecStarted { container_id: id, exec_id: exec, pid, ..Default::default() },
        ),
        SandboxEvent::Exited { id, exec, pid, exit } => Notice::new(
            "/tasks/exit",
            &TaskExit {
                // containerd calls an init by its container's id.
                id: if exec.is_empty() { id.clone() } else { exec },
                container_id: id,
                pid,
                exit_status: exit.status,
                exited_at: Some(timestamp(exit.at)).into(),
                ..Default::default()
            },
        ),
        SandboxEvent::Deleted { id, pid, exit } => Notice::new(
            "/tasks/delete",
            &TaskDelete {
                container_id: id,
                pid,
                exit_status: exit.status,
                exited_at: Some(timestamp(exit.at)).into(),
                ..Default::default()
            },
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_kill_for_lack_of_memory_is_noted_for_who_takes_no_events() {
        for noted in [false, true] {
            let bundle = tempfile::tempdir().unwrap();
            let containers = Containers::default();
            let said = Said { bundle: bundle.path().display().to_string(), ..Said::default() };
            containers.keep("c", "", said);
            let (sandbox, told) = mpsc::unbounded_channel();
            sandbox.send(SandboxEvent::OutOfMemory { id: "c".into() }).unwrap();
            drop(sandbox);
            let (notices, mut queue) = mpsc::unbounded_channel();
            forward(told, containers, notices, noted).await;
            assert_eq!(bundle.path().join("oom").exists(), noted);
            assert!(queue.recv().await.is_some());
        }
    }
}
