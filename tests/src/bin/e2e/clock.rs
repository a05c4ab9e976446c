//! The guest's wall clock is the host's: KVM's clock, which the agent reads, or, where the host's own time source is
//! none that KVM can show a guest, what the shim says.

use crate::command;
use crate::context::{Container, Context};
use anyhow::{Context as _, Result, ensure};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

crate::cases!(crate::Scope::AllOnce; a_clock_that_has_gone_wrong_comes_right);

/// The guest is told, or looks, once a minute.
const PATIENCE: Duration = Duration::from_secs(150);

/// How far two clocks may be apart that are read one after the other, seconds.
const TOLERANCE: u64 = 20;

const HOUR: Duration = Duration::from_secs(3600);

fn a_clock_that_has_gone_wrong_comes_right(context: &Context) -> Result<()> {
    let hosts = HostsClock::of_lab()?;
    // The host's clock goes back an hour for a guest that is told, and on an hour for one that looks itself, which
    // loses its time besides.
    let told = hosts.as_ref().map(|hosts| hosts.hidden_in(context)).transpose()?;
    let looks = start(context)?;
    ensure!(has_kvms(&looks)?, "KVM shows the guest no clock");
    if let Some(hosts) = &hosts {
        hosts.step(HOUR)?;
        ensure!(apart(&looks)? > TOLERANCE, "the host's clock could not be set");
    }
    looks.exec(&["date", "-s", "@1000000000"])?.expect_code(0)?;
    ensure!(apart(&looks)? > 1_000_000, "the guest's clock could not be put wrong");
    for container in told.into_iter().chain([looks]) {
        command::eventually(
            "the clock is right",
            PATIENCE,
            || Ok(apart(&container)? <= TOLERANCE),
        )?;
        container.remove()?;
    }
    Ok(())
}

/// A container whose guest begins with the host's time, and may set it.
fn start(context: &Context) -> Result<Container<'_>> {
    let container = context.container().flag("--privileged").detached(&["sleep", "1000000"])?;
    ensure!(apart(&container)? <= TOLERANCE, "the guest began with another time than the host's");
    Ok(container)
}

/// Whether its guest has a clock of KVM's.
fn has_kvms(container: &Container) -> Result<bool> {
    let names = container.exec(&["sh", "-c", "cat /sys/class/ptp/*/clock_name; true"])?;
    Ok(names.expect_code(0)?.text().contains("KVM virtual PTP"))
}

/// Seconds between its clock and the host's.
fn apart(container: &Container) -> Result<u64> {
    let inside: u64 = container.exec(&["date", "+%s"])?.expect_code(0)?.text().trim().parse()?;
    Ok(inside.abs_diff(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs()))
}

/// The lab's own clock, which is right again at the end.
struct HostsClock {
    right: (SystemTime, Instant),
    source: String,
}

const SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";

impl HostsClock {
    /// None where the lab stands on the kernel of whoever runs the tests.
    fn of_lab() -> Result<Option<Self>> {
        if Path::new("/run/lab/host").exists() {
            return Ok(None);
        }
        let source = fs::read_to_string(SOURCE).context(SOURCE)?.trim().to_owned();
        ensure!(source == "tsc", "the lab's time source is {source}");
        Ok(Some(Self { right: (SystemTime::now(), Instant::now()), source }))
    }

    /// A container whose guest can't see it, and begins two hours ahead.
    fn hidden_in<'a>(&self, context: &'a Context) -> Result<Container<'a>> {
        self.step(2 * HOUR)?;
        fs::write(SOURCE, "hpet").context(SOURCE)?;
        let container = start(context)?;
        ensure!(!has_kvms(&container)?, "KVM shows the guest a clock");
        fs::write(SOURCE, &self.source).context(SOURCE)?;
        self.step(Duration::ZERO)?;
        Ok(container)
    }

    /// Sets it so far ahead of the right time.
    fn step(&self, ahead: Duration) -> Result<()> {
        let (then, since) = self.right;
        let now = then.duration_since(UNIX_EPOCH)? + since.elapsed() + ahead;
        Ok(clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(now))?)
    }
}

impl Drop for HostsClock {
    fn drop(&mut self) {
        if let Err(error) = fs::write(SOURCE, &self.source) {
            eprintln!("{SOURCE}: {error}");
        }
        if let Err(error) = self.step(Duration::ZERO) {
            eprintln!("the lab's clock stays wrong: {error:#}");
        }
    }
}
