//! The guest's wall clock is the host's.

use crate::command;
use crate::context::Context;
use anyhow::{Result, bail};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

crate::cases!(crate::Scope::Once; a_clock_that_has_gone_wrong_comes_right);

/// The guest is told, or looks, once a minute.
const PATIENCE: Duration = Duration::from_secs(150);

/// How far two clocks may be apart that are read one after the other, seconds.
const TOLERANCE: u64 = 20;

fn a_clock_that_has_gone_wrong_comes_right(context: &Context) -> Result<()> {
    let run = context.container().flag("--privileged");
    let container = run.detached(&["sleep", "1000000"])?;
    let apart = || -> Result<u64> {
        let inside: u64 =
            container.exec(&["date", "+%s"])?.expect_code(0)?.text().trim().parse()?;
        Ok(inside.abs_diff(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs()))
    };
    if apart()? > TOLERANCE {
        bail!("the guest began with another time than the host's");
    }
    container.exec(&["date", "-s", "@1000000000"])?.expect_code(0)?;
    if apart()? < 1_000_000 {
        bail!("the guest's clock could not be put wrong");
    }
    command::eventually("the clock is right", PATIENCE, || Ok(apart()? <= TOLERANCE))?;
    container.remove()
}
