//! The wall clock follows the host's.
//!
//! Where KVM gives the guest the host's clock (a PTP device, which is read by one hypercall) the agent looks at it
//! once a minute; elsewhere the host tells the time as often. A small difference is made up little by little, so
//! that no second is seen twice; a large one, as after a suspension of the host, at once.

#[cfg(test)]
mod tests;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const DEVICE: &str = "/dev/ptp0";

/// Where the device's name is, and what KVM's is called.
const NAME: (&str, &str) = ("/sys/class/ptp/ptp0/clock_name", "KVM virtual PTP");

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(60);

/// A smaller difference is left, ns: the host's message takes about as long.
const TOLERANCE: i64 = 2_000_000;

/// A larger one is made up at once, ns. The kernel slews by half a millisecond a second.
const LARGE: i64 = 500_000_000;

/// This guest's.
static HOSTS: LazyLock<HostsClock> =
    LazyLock::new(|| HostsClock::find(Path::new(NAME.0), Path::new(DEVICE)));

/// What is done about a difference.
#[derive(Debug, PartialEq, Eq)]
enum Correction {
    Nothing,
    /// By so many microseconds, little by little.
    Slew(i64),
    /// By so many nanoseconds, at once.
    Step(i64),
}

/// The host's clock, as far as this guest is given it.
struct HostsClock {
    device: Option<File>,
    /// Whether the last look failed, as each does once the host's own time source has changed.
    failed: AtomicBool,
}

impl HostsClock {
    fn find(name: &Path, device: &Path) -> Self {
        let is_kvms = fs::read_to_string(name).is_ok_and(|name| name.trim() == NAME.1);
        Self {
            device: is_kvms.then(|| File::open(device).ok()).flatten(),
            failed: AtomicBool::new(false),
        }
    }

    fn is_followed(&self) -> bool {
        self.device.is_some() && !self.failed.load(Ordering::Relaxed)
    }

    /// What is to be done by what `read` finds on the device; nothing where there is none.
    fn look(&self, read: impl Fn(&File) -> io::Result<i64>) -> Correction {
        let Some(device) = &self.device else { return Correction::Nothing };
        let looked = difference_by(|| read(device));
        let failed_before = self.failed.swap(looked.is_err(), Ordering::Relaxed);
        match looked {
            Ok(difference) => correction(difference),
            Err(error) => {
                if !failed_before {
                    tracing::warn!(%error, "following the host's clock; the host tells the time instead");
                }
                Correction::Nothing
            }
        }
    }

    /// What is to be done by the host's word, ns since the epoch.
    fn told(&self, host_ns: u64) -> io::Result<Correction> {
        if self.is_followed() {
            return Ok(Correction::Nothing);
        }
        let hosts = i64::try_from(host_ns).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(correction(hosts - now()?))
    }
}

/// Whether the agent looks at the host's clock itself, and can.
pub fn is_followed() -> bool {
    HOSTS.is_followed()
}

/// Follows the host's clock for ever, where the guest is given it.
pub async fn follow() {
    while HOSTS.device.is_some() {
        if let Err(error) = apply(&HOSTS.look(read)) {
            tracing::warn!(%error, "correcting the clock");
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Sets the clock to what the host says, ns since the epoch, unless the agent looks for itself.
///
/// # Errors
/// What the kernel says.
pub fn told(host_ns: u64) -> io::Result<()> {
    apply(&HOSTS.told(host_ns)?)
}

/// The time of a clock's device.
fn read(device: &File) -> io::Result<i64> {
    // The clock of a descriptor (clock_getres(2)).
    Ok(nanoseconds(clock_gettime(ClockId::from_raw((!device.as_raw_fd() << 3) | 3))?))
}

/// How far another clock is ahead, ns, compared with the middle of what reading it took.
fn difference_by(read: impl FnOnce() -> io::Result<i64>) -> io::Result<i64> {
    let before = now()?;
    let others = read()?;
    let after = now()?;
    Ok(others - (before + (after - before) / 2))
}

fn correction(difference: i64) -> Correction {
    match difference.abs() {
        0..TOLERANCE => Correction::Nothing,
        TOLERANCE..LARGE => Correction::Slew(difference / 1000),
        _ => Correction::Step(difference),
    }
}

fn apply(correction: &Correction) -> io::Result<()> {
    match *correction {
        Correction::Nothing => Ok(()),
        Correction::Slew(microseconds) => slew(microseconds),
        Correction::Step(difference) => {
            tracing::info!(ms = difference / 1_000_000, "setting the clock");
            let time = now()? + difference;
            let time =
                TimeSpec::new(time.div_euclid(1_000_000_000), time.rem_euclid(1_000_000_000));
            Ok(clock_settime(ClockId::CLOCK_REALTIME, time)?)
        }
    }
}

/// As adjtime(3): takes the place of what is left of an earlier one.
fn slew(microseconds: i64) -> io::Result<()> {
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut change: libc::timex = unsafe { std::mem::zeroed() };
    change.modes = libc::ADJ_OFFSET_SINGLESHOT;
    change.offset = microseconds;
    // SAFETY: the kernel reads and writes one structure.
    if unsafe { libc::adjtimex(&raw mut change) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn now() -> io::Result<i64> {
    Ok(nanoseconds(clock_gettime(ClockId::CLOCK_REALTIME)?))
}

fn nanoseconds(time: TimeSpec) -> i64 {
    time.tv_sec().saturating_mul(1_000_000_000).saturating_add(time.tv_nsec())
}
