//! The containers and processes of a sandbox and what is legal for them when: a value, no I/O.
//!
//! ```text
//!              create            start                exit
//!  (reserved) ───────▶ Created ───────▶ Starting ─▶ Running ───▶ Stopped ──▶ (deleted)
//!                         │  ▲ failed      │                       ▲
//!                         │  └─────────────┘                       │
//!                         └──────────────── exit ──────────────────┘
//! ```
//!
//! A created or running container may be Paused, and then be again what it was; it may end in any of these.
//!
//! A change and its event are one step, so the events' order is the changes' order. An exit that is seen
//! while a start is under way is told after it.

use crate::error::{Error, Result};
use crate::host::undo::Undo;
use crate::io::ProcessIo;
use crate::oci::hooks::ContainerHooks;
use crate::sandbox::event::{Exit, SandboxEvent};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{Notify, mpsc, watch};

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The id is taken; the process does not exist yet.
    Reserved,
    /// It exists and waits (init), or is registered (exec).
    Created,
    /// A start is under way.
    Starting,
    /// It runs.
    Running,
    /// It stands still, with all of its container (init).
    Paused {
        /// Whether it runs when it is resumed; if not, it then waits for its start again.
        started: bool,
    },
    /// It has ended.
    Stopped(Exit),
}

/// One process.
pub struct Process {
    /// Where in its life.
    pub phase: Phase,
    /// That of the host's process which stands for its container; 0 before there is one, or before it runs.
    pub pid: u32,
    /// Its streams once they flow.
    pub io: Option<Arc<ProcessIo>>,
    stdin_closed: bool,
    deleting: bool,
    exit: watch::Sender<Option<Exit>>,
    early_exit: Option<Exit>,
}

impl Process {
    fn new(phase: Phase) -> Self {
        let exit = watch::Sender::new(None);
        Self {
            phase,
            pid: 0,
            io: None,
            stdin_closed: false,
            deleting: false,
            exit,
            early_exit: None,
        }
    }

    /// Gives the process its streams.
    pub fn set_io(&mut self, io: Arc<ProcessIo>) {
        if self.stdin_closed {
            io.close_stdin();
        }
        self.io = Some(io);
    }

    /// Lets standard input end with its last writer, also if it is still to flow.
    pub fn close_stdin(&mut self) {
        self.stdin_closed = true;
        if let Some(io) = &self.io {
            io.close_stdin();
        }
    }

    /// Becomes the exit once there is one.
    pub fn exit(&self) -> watch::Receiver<Option<Exit>> {
        self.exit.subscribe()
    }

    fn is_alive(&self) -> bool {
        matches!(self.phase, Phase::Starting | Phase::Running | Phase::Paused { .. })
    }
}

struct Container {
    number: Number,
    /// Told when nobody wants it any more while it is being made.
    called_off: Arc<Notify>,
    init: Process,
    execs: BTreeMap<String, Process>,
    undo: Option<Undo>,
    hooks: Arc<ContainerHooks>,
    /// How many of its processes are told to have been killed for lack of memory.
    oom_kills: u64,
    /// Its init has ended, though that is not told before its execs have.
    ending: bool,
    /// A pause or a resume is under way.
    pausing: bool,
}

/// Which of all containers that a sandbox has ever had one is; its id may be another's afterwards.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number(pub(super) u64);

/// All of a sandbox's containers.
pub struct Table {
    next: Number,
    containers: BTreeMap<String, Container>,
    events: Option<mpsc::UnboundedSender<SandboxEvent>>,
    ended: Option<String>,
}

/// What a failed look-up calls the thing.
fn name(id: &str, exec: &str) -> String {
    if exec.is_empty() {
        format!("container {id}")
    } else {
        format!("exec {exec} of container {id}")
    }
}

fn precondition(id: &str, exec: &str, what: &str) -> Error {
    Error::FailedPrecondition(format!("{} {what}", name(id, exec)))
}

impl Table {
    /// No containers; events go to `events`.
    pub fn new(events: mpsc::UnboundedSender<SandboxEvent>) -> Self {
        let (next, containers) = (Number::default(), BTreeMap::new());
        Self { next, containers, events: Some(events), ended: None }
    }

    /// Whether there is no container.
    pub fn is_empty(&self) -> bool {
        self.containers.is_empty()
    }

    /// Whether `id` is the only container.
    pub fn is_last(&self, id: &str) -> bool {
        self.containers.keys().all(|other| other == id)
    }

    /// Whether any container but these has not ended.
    pub fn has_alive_but(&self, ids: [&str; 2]) -> bool {
        let ended = |c: &Container| matches!(c.init.phase, Phase::Stopped(_));
        let mut others = self.containers.iter().filter(|(id, _)| !ids.contains(&id.as_str()));
        others.any(|(_, container)| !ended(container))
    }

    /// Nothing is told after this.
    pub fn close(&mut self) {
        self.events = None;
    }

    fn tell(&self, event: SandboxEvent) {
        if let Some(events) = &self.events {
            // Whether the owner still listens is its own affair.
            let _ = events.send(event);
        }
    }

    fn container(&mut self, id: &str) -> Result<&mut Container> {
        let found = self.containers.get_mut(id).filter(|c| c.init.phase != Phase::Reserved);
        found.ok_or_else(|| Error::NotFound(name(id, "")))
    }

    /// A process that exists.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn process(&mut self, id: &str, exec: &str) -> Result<&mut Process> {
        let container = self.container(id)?;
        if exec.is_empty() {
            return Ok(&mut container.init);
        }
        let found = container.execs.get_mut(exec);
        found.ok_or_else(|| Error::NotFound(name(id, exec)))
    }

    /// Takes the id of a new container; gives what is told if it is called off while it is being made.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], or [`Error::Ended`] with the sandbox.
    pub fn reserve(&mut self, id: &str) -> Result<Arc<Notify>> {
        if let Some(reason) = &self.ended {
            return Err(Error::Ended(reason.clone()));
        }
        if self.containers.contains_key(id) {
            return Err(Error::AlreadyExists(name(id, "")));
        }
        let init = Process::new(Phase::Reserved);
        let execs = BTreeMap::new();
        let called_off = Arc::new(Notify::new());
        let number = self.next;
        self.next.0 += 1;
        let container = Container {
            number,
            called_off: called_off.clone(),
            init,
            execs,
            undo: None,
            hooks: Arc::default(),
            oom_kills: 0,
            ending: false,
            pausing: false,
        };
        self.containers.insert(id.into(), container);
        Ok(called_off)
    }

    /// The number of a container that exists, or is being made.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn number(&self, id: &str) -> Result<Number> {
        let found = self.containers.get(id).map(|container| container.number);
        found.ok_or_else(|| Error::NotFound(name(id, "")))
    }

    /// Whether the container of that number exists, or is being made.
    pub fn has(&self, number: Number) -> bool {
        self.containers.values().any(|container| container.number == number)
    }

    /// Tells whoever makes the container that it is no longer wanted; one that is made already stays.
    pub fn call_off(&self, id: &str) {
        if let Some(container) = self.containers.get(id)
            && container.init.phase == Phase::Reserved
        {
            container.called_off.notify_one();
        }
    }

    /// Gives up an id that [`Table::reserve`] took.
    pub fn release(&mut self, id: &str) {
        self.containers.remove(id);
    }

    /// The container exists; from here on the table owns its streams, its hooks and its undo list.
    pub fn created(
        &mut self,
        id: &str,
        pid: u32,
        io: ProcessIo,
        undo: Undo,
        hooks: ContainerHooks,
    ) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.init.phase = Phase::Created;
        container.init.pid = pid;
        container.init.set_io(Arc::new(io));
        container.undo = Some(undo);
        container.hooks = Arc::new(hooks);
        self.tell(SandboxEvent::Created { id: id.into(), pid });
        if self.ended.is_some() {
            self.exited(id, "", Exit::now(Exit::LOST));
        }
    }

    /// Registers an exec.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::AlreadyExists`], or the container has ended.
    pub fn add_exec(&mut self, id: &str, exec: &str) -> Result<()> {
        let container = self.container(id)?;
        if matches!(container.init.phase, Phase::Stopped(_)) || container.ending {
            return Err(precondition(id, "", "is not running"));
        }
        if container.execs.contains_key(exec) {
            return Err(Error::AlreadyExists(name(id, exec)));
        }
        container.execs.insert(exec.into(), Process::new(Phase::Created));
        self.tell(SandboxEvent::ExecAdded { id: id.into(), exec: exec.into() });
        Ok(())
    }

    /// A start begins.
    ///
    /// # Errors
    /// [`Error::NotFound`], or the process is not waiting to be started.
    pub fn starting(&mut self, id: &str, exec: &str) -> Result<()> {
        let container = self.container(id)?;
        if container.ending && !exec.is_empty() {
            return Err(precondition(id, "", "is not running"));
        }
        if matches!(container.init.phase, Phase::Paused { .. }) {
            return Err(precondition(id, "", "is paused"));
        }
        if container.pausing && exec.is_empty() {
            return Err(precondition(id, "", "is being paused or resumed"));
        }
        let process = self.process(id, exec)?;
        let what = match process.phase {
            Phase::Created => {
                process.phase = Phase::Starting;
                return Ok(());
            }
            Phase::Reserved | Phase::Starting => "is being started",
            Phase::Running | Phase::Paused { .. } => "runs already",
            Phase::Stopped(_) => "has ended",
        };
        Err(precondition(id, exec, what))
    }

    /// The start that [`Table::starting`] began has worked. Gives the pid of the host's process that stands for it: its
    /// container's, since another number would be that of somebody else's process there.
    pub fn started(&mut self, id: &str, exec: &str) -> u32 {
        let pid = self.process(id, "").map_or(0, |init| init.pid);
        let Ok(process) = self.process(id, exec) else { return 0 };
        if process.phase == Phase::Starting {
            process.phase = Phase::Running;
        }
        process.pid = pid;
        let early = process.early_exit.take();
        let (id, exec) = (id.to_owned(), exec.to_owned());
        self.tell(if exec.is_empty() {
            SandboxEvent::Started { id: id.clone(), pid }
        } else {
            SandboxEvent::ExecStarted { id: id.clone(), exec: exec.clone(), pid }
        });
        if let Some(exit) = early {
            self.exited(&id, &exec, exit);
        }
        pid
    }

    /// The start that [`Table::starting`] began has failed. An init may be tried again; an exec is over,
    /// without an event, as nothing ever ran.
    pub fn start_failed(&mut self, id: &str, exec: &str, status: u32) {
        let Ok(process) = self.process(id, exec) else { return };
        if process.phase != Phase::Starting {
            return;
        }
        process.phase = Phase::Created;
        if let Some(exit) = process.early_exit.take() {
            self.exited(id, exec, exit);
        } else if !exec.is_empty() {
            let exit = Exit::now(status);
            process.phase = Phase::Stopped(exit);
            process.io = None;
            process.exit.send_replace(Some(exit));
        }
    }

    /// A container is to be paused, or to be resumed; until that is [`Table::paused`] or [`Table::not_paused`] it can
    /// not be started.
    ///
    /// # Errors
    /// [`Error::NotFound`], or it is neither created nor running, or not paused.
    pub fn pausing(&mut self, id: &str, pause: bool) -> Result<()> {
        let container = self.container(id)?;
        let wrong = match container.init.phase {
            _ if container.pausing => "is being paused or resumed",
            Phase::Created | Phase::Running if pause => "",
            Phase::Paused { .. } if !pause => "",
            Phase::Paused { .. } => "is paused already",
            Phase::Created | Phase::Running => "is not paused",
            _ => "is not running",
        };
        if !wrong.is_empty() {
            return Err(precondition(id, "", wrong));
        }
        container.pausing = true;
        Ok(())
    }

    /// What [`Table::pausing`] began has failed.
    pub fn not_paused(&mut self, id: &str) {
        if let Ok(container) = self.container(id) {
            container.pausing = false;
        }
    }

    /// What [`Table::pausing`] began is done.
    pub fn paused(&mut self, id: &str, pause: bool) {
        self.not_paused(id);
        let Ok(init) = self.process(id, "") else { return };
        let to = match init.phase {
            Phase::Running if pause => Some(Phase::Paused { started: true }),
            Phase::Created if pause => Some(Phase::Paused { started: false }),
            Phase::Paused { started: true } if !pause => Some(Phase::Running),
            Phase::Paused { started: false } if !pause => Some(Phase::Created),
            // It has ended meanwhile.
            _ => None,
        };
        if let Some(to) = to {
            init.phase = to;
            let id = id.to_owned();
            self.tell(if pause {
                SandboxEvent::Paused { id }
            } else {
                SandboxEvent::Resumed { id }
            });
        }
    }

    /// So many processes of a container were killed for lack of memory: told if they are more than before.
    pub fn out_of_memory(&mut self, id: &str, kills: u64) {
        let Ok(container) = self.container(id) else { return };
        let more = kills > container.oom_kills;
        container.oom_kills = kills.max(container.oom_kills);
        if more && !matches!(container.init.phase, Phase::Stopped(_)) {
            self.tell(SandboxEvent::OutOfMemory { id: id.into() });
        }
    }

    /// An init has ended: its container takes no more execs. Gives the exits to wait for before it is told.
    pub fn ending(&mut self, id: &str) -> Vec<watch::Receiver<Option<Exit>>> {
        let Ok(container) = self.container(id) else { return Vec::new() };
        container.ending = true;
        container.execs.values().filter(|p| p.is_alive()).map(Process::exit).collect()
    }

    /// A process has ended. Only the first report counts. With an init, execs that were not reported are lost.
    pub fn exited(&mut self, id: &str, exec: &str, exit: Exit) {
        if exec.is_empty() {
            self.lose_execs(id);
        }
        let Ok(process) = self.process(id, exec) else { return };
        match process.phase {
            Phase::Stopped(_) | Phase::Reserved => return,
            Phase::Starting => {
                process.early_exit.get_or_insert(exit);
                return;
            }
            Phase::Created | Phase::Running | Phase::Paused { .. } => {
                process.phase = Phase::Stopped(exit);
            }
        }
        process.exit.send_replace(Some(exit));
        let pid = process.pid;
        self.tell(SandboxEvent::Exited { id: id.into(), exec: exec.into(), pid, exit });
    }

    fn lose_execs(&mut self, id: &str) {
        let Ok(container) = self.container(id) else { return };
        container.ending = true;
        let alive = container.execs.iter().filter(|(_, p)| p.is_alive());
        for exec in alive.map(|(exec, _)| exec.clone()).collect::<Vec<_>>() {
            self.exited(id, &exec, Exit::now(Exit::LOST));
        }
    }

    /// The sandbox has ended: every process in it is lost, and nothing new can be made.
    pub fn sandbox_ended(&mut self, reason: &str) {
        self.ended.get_or_insert_with(|| reason.to_owned());
        for id in self.containers.keys().cloned().collect::<Vec<_>>() {
            self.exited(&id, "", Exit::now(Exit::LOST));
        }
    }

    /// A delete begins.
    ///
    /// # Errors
    /// [`Error::NotFound`], or the process runs.
    pub fn deleting(&mut self, id: &str, exec: &str) -> Result<Phase> {
        let phase = self.process(id, exec)?.phase;
        if !matches!(phase, Phase::Created | Phase::Stopped(_)) {
            return Err(precondition(id, exec, "runs: it must have ended before it is deleted"));
        }
        if std::mem::replace(&mut self.process(id, exec)?.deleting, true) {
            return Err(precondition(id, exec, "is being deleted"));
        }
        Ok(phase)
    }

    /// The hooks of a container that exists.
    pub fn hooks(&mut self, id: &str) -> Arc<ContainerHooks> {
        self.container(id).map(|container| container.hooks.clone()).unwrap_or_default()
    }

    /// The container's undo list, to be run.
    pub fn take_undo(&mut self, id: &str) -> Option<Undo> {
        self.container(id).ok()?.undo.take()
    }

    /// The delete that [`Table::deleting`] began is done. Gives the process's pid and exit.
    pub fn deleted(&mut self, id: &str, exec: &str) -> (u32, Exit) {
        let process = if exec.is_empty() {
            self.containers.remove(id).map(|c| c.init)
        } else {
            self.container(id).ok().and_then(|c| c.execs.remove(exec))
        };
        let (pid, exit) = match process {
            Some(Process { pid, phase: Phase::Stopped(exit), .. }) => (pid, exit),
            Some(Process { pid, .. }) => (pid, Exit::now(0)),
            None => (0, Exit::now(0)),
        };
        if exec.is_empty() {
            self.tell(SandboxEvent::Deleted { id: id.into(), pid, exit });
        }
        (pid, exit)
    }
}

#[cfg(test)]
mod tests;
