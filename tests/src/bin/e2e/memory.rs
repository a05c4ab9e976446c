//! What a guest uses of its host's memory: it gives back what it frees.

use crate::command::eventually;
use crate::confinement::{field, pid_of};
use crate::context::Context;
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::time::Duration;

crate::cases!(
    crate::Scope::Once;
    what_the_guest_frees_goes_back_to_the_host,
);

/// The guest's kernel reports every two seconds, a part of what is free each time.
const PATIENCE: Duration = Duration::from_secs(120);

/// MiB of guest memory that the host holds for the one sandbox there is.
pub fn held() -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid_of("kata-like-vmm")?))?;
    let kib = field(&status, "RssShmem")?.split(' ').next().and_then(|n| n.parse::<u64>().ok());
    Ok(kib.context("no number")? / 1024)
}

fn what_the_guest_frees_goes_back_to_the_host(context: &Context) -> Result<()> {
    let path = format!("/tmp/{}.toml", context.fresh_id());
    fs::write(&path, "[machine]\nmemory_mib = 512\n")?;
    let run = context.container().flag("--runtime-config-path").flag(&path);
    let mount = "--mount=type=tmpfs,src=tmpfs,dst=/filled,options=size=300m";
    let container = run.flag(mount).detached(&["sleep", "1000000"]);
    fs::remove_file(&path)?;
    let container = container?;
    let idle = held()?;
    let fill = ["dd", "if=/dev/zero", "of=/filled/file", "bs=1M", "count=256"];
    container.exec(&fill)?.expect_code(0)?;
    let filled = held()?;
    if filled < idle + 240 {
        bail!("the host holds {idle} MiB before and {filled} MiB after 256 MiB were filled");
    }
    container.exec(&["rm", "/filled/file"])?.expect_code(0)?;
    eventually("the host's figure falls", PATIENCE, || Ok(held()? < idle + 32))?;
    container.remove()
}
