//! Standard input of a container that is created and not yet started: nothing is lost, nor is its end.

use crate::bundle::{Bundle, config};
use crate::context::Context;
use crate::task_api::{name_network, shim};
use anyhow::{Context as _, Result, bail};
use containerd_shim_protos::TaskClient;
use containerd_shim_protos::api::{
    CloseIORequest, CreateTaskRequest, DeleteRequest, StartRequest, WaitRequest,
};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use std::fs::{self, File};
use std::io::Write as _;
use std::thread;

crate::cases!(
    crate::Scope::OneOrEach;
    what_comes_before_the_start_is_read_and_so_is_its_end,
);

/// Whether `CloseIO` is called before the start.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Close {
    Before,
    After,
}

fn what_comes_before_the_start_is_read_and_so_is_its_end(context: &Context) -> Result<()> {
    let sleeper = context.sleeper()?;
    let shim = shim(context, &sleeper)?;
    // Nearly what a pipe holds.
    let data = vec![b'x'; 60_000];
    for (round, (data, close)) in [
        (&data[..], Close::Before),
        (&data, Close::After),
        (b"", Close::Before),
        (b"", Close::After),
    ]
    .into_iter()
    .enumerate()
    {
        let id = format!("{}-{round}", sleeper.id);
        let said = count(context, &shim, &id, data, close).with_context(|| format!("{round}"))?;
        if said != format!("{}\nended\n", data.len()) {
            bail!("round {round}: {} bytes, then its end: {said:?}", data.len());
        }
    }
    sleeper.remove()
}

/// What a container that counts its input says.
fn count(
    context: &Context,
    shim: &TaskClient,
    id: &str,
    data: &[u8],
    close: Close,
) -> Result<String> {
    let bundle = Bundle::new(context, &[])?;
    let mut spec = config(&["sh", "-c", "wc -c; echo ended"]);
    let dev = serde_json::json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs"});
    spec["mounts"].as_array_mut().context("mounts")?.push(dev);
    bundle.write_config(&spec)?;
    name_network(&bundle)?;
    let [stdin, stdout] = ["stdin", "stdout"].map(|name| bundle.0.join(name));
    for fifo in [&stdin, &stdout] {
        mkfifo(fifo, Mode::S_IRWXU)?;
    }
    let limit = || ttrpc::context::with_timeout(150_000_000_000);
    let close_stdin = || {
        let request = CloseIORequest { id: id.into(), stdin: true, ..Default::default() };
        shim.close_io(limit(), &request)
    };
    let create = CreateTaskRequest {
        id: id.into(),
        bundle: bundle.0.display().to_string(),
        stdin: stdin.display().to_string(),
        stdout: stdout.display().to_string(),
        ..Default::default()
    };
    let said = thread::spawn(move || fs::read_to_string(stdout));
    shim.create(limit(), &create)?;
    // The other end may be opened at the start only; so that this one need not wait, it is both.
    let mut input = File::options().read(true).write(true).open(stdin)?;
    input.write_all(data)?;
    if close == Close::Before {
        close_stdin()?;
    }
    shim.start(limit(), &StartRequest { id: id.into(), ..Default::default() })?;
    drop(input);
    if close == Close::After {
        close_stdin()?;
    }
    let ended = shim.wait(limit(), &WaitRequest { id: id.into(), ..Default::default() })?;
    shim.delete(limit(), &DeleteRequest { id: id.into(), ..Default::default() })?;
    let said = said.join().ok().context("the reader panicked")??;
    if ended.exit_status != 0 {
        bail!("it ended with {}: {said:?}", ended.exit_status);
    }
    Ok(said)
}
