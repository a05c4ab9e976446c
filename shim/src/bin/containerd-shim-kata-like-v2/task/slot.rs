//! The sandbox of a shim: launched before containerd asks for it, and anew if it asks for another configuration.

use sandbox::config::Config;
use sandbox::event::SandboxEvent;
use sandbox::paths::SandboxPaths;
use sandbox::settings::Settings;
use sandbox::{Error, Launch, Result, Sandbox, SandboxSpec};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// Whose sandbox it is, and what it has of its own.
#[derive(Debug, Clone)]
pub struct Owner {
    /// containerd's namespace.
    pub namespace: String,
    /// The sandbox's id.
    pub id: String,
    /// What its first container's spec says of it; none: the sandbox API will.
    pub spec: Option<SandboxSpec>,
}

/// Holds the sandbox.
pub struct Slot {
    owner: Owner,
    state: Mutex<State>,
}

struct State {
    config: Option<PathBuf>,
    launched: Launched,
    events: Option<mpsc::UnboundedSender<SandboxEvent>>,
}

enum Launched {
    /// Until the sandbox API says what it is to be.
    Awaited,
    Yes(Sandbox),
    Failed(String),
    /// Being replaced.
    No,
}

/// What was in the slot.
enum Taken {
    /// The sandbox that is asked for; it still is.
    Right,
    /// Another one, to be ended.
    Other(Sandbox),
    /// None.
    Failed,
}

impl Slot {
    /// Launches a sandbox with `config`, or with the default configuration, unless it is to be told of first.
    pub fn launch(
        owner: Owner,
        config: Option<PathBuf>,
        events: mpsc::UnboundedSender<SandboxEvent>,
    ) -> Self {
        let launched = match &owner.spec {
            Some(spec) => launch(&owner, spec, prepare(&owner, config.as_ref()), &events),
            None => Launched::Awaited,
        };
        let state = Mutex::new(State { config, launched, events: Some(events) });
        Self { owner, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Launches the sandbox that was awaited.
    ///
    /// # Errors
    /// There is one already, or it can't be launched.
    pub async fn launch_told(&self, spec: &SandboxSpec) -> Result<Sandbox> {
        let config = self.state().config.clone();
        let prepared = prepare(&self.owner, config.as_ref());
        if let Ok((_, paths)) = &prepared
            && let Err(error) = Sandbox::vacate(paths).await
        {
            tracing::warn!("what the last sandbox of this id left: {}", error.chain());
        }
        let mut state = self.state();
        let Launched::Awaited = state.launched else {
            return Err(Error::AlreadyExists(format!("sandbox {}", self.owner.id)));
        };
        let Some(events) = &state.events else {
            return Err(Error::Ended("the shim is shutting down".into()));
        };
        state.launched = launch(&self.owner, spec, prepared, events);
        drop(state);
        self.get()
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.owner.id
    }

    /// containerd's namespace.
    pub fn namespace(&self) -> &str {
        &self.owner.namespace
    }

    /// The sandbox.
    ///
    /// # Errors
    /// It was not launched; the reason is given.
    pub fn get(&self) -> Result<Sandbox> {
        match &self.state().launched {
            Launched::Yes(sandbox) => Ok(sandbox.clone()),
            Launched::Failed(reason) => Err(Error::Machine(reason.clone())),
            Launched::Awaited => {
                Err(Error::FailedPrecondition("the sandbox has not been created".into()))
            }
            Launched::No => Err(Error::FailedPrecondition("the sandbox is being replaced".into())),
        }
    }

    /// The sandbox, with the configuration that a container's options name.
    ///
    /// # Errors
    /// As [`Slot::get`], or there are containers with another configuration in it.
    pub async fn get_with(&self, config: Option<PathBuf>) -> Result<Sandbox> {
        match self.take_for(config.as_ref())? {
            Taken::Right => return self.get(),
            Taken::Failed => {}
            Taken::Other(sandbox) => sandbox.stop().await,
        }
        let prepared = prepare(&self.owner, config.as_ref());
        let mut state = self.state();
        let (Some(events), Some(spec)) = (&state.events, &self.owner.spec) else {
            return Err(Error::Ended("the shim is shutting down".into()));
        };
        state.launched = launch(&self.owner, spec, prepared, events);
        state.config = config;
        drop(state);
        self.get()
    }

    /// Empties the slot if `config` is another one than its own. Options may name none: then any is right.
    fn take_for(&self, config: Option<&PathBuf>) -> Result<Taken> {
        let mut state = self.state();
        if config.is_none() || state.config.as_ref() == config {
            return Ok(Taken::Right);
        }
        match &state.launched {
            _ if self.owner.spec.is_none() => Err(Error::InvalidArgument(
                "the sandbox was created with another configuration than its container asks for"
                    .into(),
            )),
            Launched::Yes(sandbox) if !sandbox.is_empty() => Err(Error::InvalidArgument(
                "the sandbox has containers, its configuration can't change".into(),
            )),
            Launched::No => Err(Error::FailedPrecondition("the sandbox is being replaced".into())),
            _ => Ok(match std::mem::replace(&mut state.launched, Launched::No) {
                Launched::Yes(sandbox) => Taken::Other(sandbox),
                _ => Taken::Failed,
            }),
        }
    }

    /// Ends the sandbox for good.
    pub async fn stop(&self) {
        let sandbox = self.get().ok();
        if let Some(sandbox) = sandbox {
            sandbox.stop().await;
        }
        self.state().events = None;
    }
}

/// In the bundle of a sandbox's first container: where the sandbox's state is.
const STATE_DIRECTORY: &str = "kata-like-state";

/// What a server has noted in this bundle for the clean-up after it.
pub fn state_directory(bundle: &Path) -> Option<PathBuf> {
    let noted = std::fs::read(bundle.join(STATE_DIRECTORY)).ok()?;
    Some(PathBuf::from(std::ffi::OsString::from_vec(noted)))
}

/// Notes it in the working directory, which is the bundle.
fn note(state: &Path) -> Result<()> {
    let bytes = state.as_os_str().as_bytes();
    std::fs::write(STATE_DIRECTORY, bytes).map_err(Error::path("write", STATE_DIRECTORY))
}

/// What its configuration says, and its place.
fn prepare(
    Owner { namespace, id, .. }: &Owner,
    config: Option<&PathBuf>,
) -> Result<(Settings, SandboxPaths)> {
    let config = config.map_or_else(Config::load_default, |path| Config::load(path))?;
    let settings = Settings::resolve(config)?;
    let paths = SandboxPaths::new(&settings.state, namespace, id)?;
    Ok((settings, paths))
}

fn launch(
    Owner { id, .. }: &Owner,
    spec: &SandboxSpec,
    prepared: Result<(Settings, SandboxPaths)>,
    events: &mpsc::UnboundedSender<SandboxEvent>,
) -> Launched {
    let launched = prepared.and_then(|(settings, paths)| {
        note(&settings.state)?;
        let (id, spec, events) = (id.clone(), spec.clone(), events.clone());
        Sandbox::launch(Launch { id, paths, settings, spec, events })
    });
    match launched {
        Ok(sandbox) => Launched::Yes(sandbox),
        Err(error) => {
            tracing::error!("launch of sandbox {id}: {}", error.chain());
            Launched::Failed(error.chain())
        }
    }
}
