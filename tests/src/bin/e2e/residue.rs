//! What execs leave in the guest, once they have ended: nothing.

use crate::context::{Container, Context};
use crate::crash;
use crate::task_api::shim;
use anyhow::{Context as _, Result, bail};
use containerd_shim_protos::TaskClient;
use containerd_shim_protos::api::{DeleteRequest, ExecProcessRequest, StartRequest, WaitRequest};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use protobuf::well_known_types::any::Any;
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;

crate::cases!(crate::Scope::AllOnce; three_hundred_execs_leave_no_file_in_the_guest);

const EXECS: u32 = 300;
/// How often what is more than before is looked at again.
const LOOKS: u32 = 5;
/// As long as one may take in a lab under load.
const LIMIT_NS: i64 = 30_000_000_000;

/// One of a hundred has a terminal, which is more to clean up.
fn three_hundred_execs_leave_no_file_in_the_guest(context: &Context) -> Result<()> {
    crash::with_the_agent_in_view(context, |container| {
        let shim = shim(context, container)?;
        // What is made once for all, the first two have made.
        run(&shim, container, "first", false)?;
        run(&shim, container, "second", true)?;
        let before = files(container)?;
        for number in 0..EXECS {
            let id = format!("exec-{number}");
            run(&shim, container, &id, number % 100 == 0).context(id)?;
        }
        let mut after = files(container)?;
        // The look itself may be there, of which what is left of its making goes while it looks: what execs leave stays.
        for _ in 0..LOOKS {
            if after.len() <= before.len() {
                return Ok(());
            }
            after = files(container)?;
        }
        let more: Vec<_> = after.difference(&before).take(5).collect();
        bail!("the guest had {} files and has {}, as {more:?}", before.len(), after.len());
    })
}

/// Every file of the guest's that the agent sees, but for the kernel's own.
fn files(container: &Container) -> Result<BTreeSet<String>> {
    let mut find = vec!["busybox", "find"];
    find.extend(["/proc/1/root/", "/proc/1/root/run/", "/proc/1/root/tmp/", "-xdev"]);
    let found = container.exec(&find)?.expect_code(0)?.text();
    if !found.contains(&format!("/proc/1/root/run/kata-like/containers/{}", container.id)) {
        bail!("the agent's files are not in view: {found:?}");
    }
    Ok(found.lines().map(str::to_owned).collect())
}

/// An exec's whole life, as containerd asks for it.
fn run(shim: &TaskClient, container: &Container, exec_id: &str, terminal: bool) -> Result<()> {
    let process = json!({"args": ["busybox", "true"], "cwd": "/", "env": ["PATH=/bin"],
        "user": {"uid": 0, "gid": 0}, "terminal": terminal});
    let process = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
        value: process.to_string().into_bytes(),
        ..Default::default()
    };
    let limit = || ttrpc::context::with_timeout(LIMIT_NS);
    let (id, exec_id) = (container.id.clone(), exec_id.to_owned());
    // A terminal's output has to go somewhere.
    let stdout = format!("/tmp/{id}-{exec_id}");
    if terminal {
        mkfifo(stdout.as_str(), Mode::S_IRWXU)?;
    }
    let reader = terminal.then(|| {
        let stdout = stdout.clone();
        std::thread::spawn(move || fs::read(stdout))
    });
    let exec = ExecProcessRequest {
        id: id.clone(),
        exec_id: exec_id.clone(),
        terminal,
        stdout: if terminal { stdout.clone() } else { String::new() },
        spec: Some(process).into(),
        ..Default::default()
    };
    shim.exec(limit(), &exec)?;
    let start = StartRequest { id: id.clone(), exec_id: exec_id.clone(), ..Default::default() };
    shim.start(limit(), &start)?;
    let wait = WaitRequest { id: id.clone(), exec_id: exec_id.clone(), ..Default::default() };
    let ended = shim.wait(limit(), &wait)?;
    shim.delete(limit(), &DeleteRequest { id, exec_id, ..Default::default() })?;
    if let Some(reader) = reader {
        reader.join().ok().context("the reader panicked")??;
        fs::remove_file(stdout)?;
    }
    if ended.exit_status != 0 {
        bail!("it ended with {}", ended.exit_status);
    }
    Ok(())
}
