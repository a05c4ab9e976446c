//! The wall clock follows the host's.
//!
//! Where KVM gives the guest the host's clock (a PTP device, which is read by one hypercall) the agent looks at it
//! once a minute; elsewhere the host tells the time as often. A small difference is made up little by little, so
//! that no second is seen twice; a large one, as after a suspension of the host, at once.

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::OnceLock;
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

/// What is done about a difference.
#[derive(Debug, PartialEq, Eq)]
enum Correction {
    Nothing,
    /// By so many microseconds, little by little.
    Slew(i64),
    Step,
}

/// The host's clock, if this guest is given it.
fn device() -> Option<&'static File> {
    static CLOCK: OnceLock<Option<File>> = OnceLock::new();
    let open = || {
        let name = fs::read_to_string(NAME.0).ok()?;
        (name.trim() == NAME.1).then(|| File::open(DEVICE).ok())?
    };
    CLOCK.get_or_init(open).as_ref()
}

/// Whether the last look at the host's clock failed, as each does once the host's own time source has changed.
static FAILED: AtomicBool = AtomicBool::new(false);

/// Whether the agent looks at the host's clock itself, and can.
pub fn is_followed() -> bool {
    device().is_some() && !FAILED.load(Ordering::Relaxed)
}

/// Follows the host's clock for ever, where the guest is given it.
pub async fn follow() {
    let Some(device) = device() else { return };
    loop {
        let looked = look_at(device);
        let failed_before = FAILED.swap(looked.is_err(), Ordering::Relaxed);
        if let Err(error) = looked
            && !failed_before
        {
            tracing::warn!(%error, "following the host's clock; the host tells the time instead");
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

fn look_at(device: &File) -> io::Result<()> {
    // The clock of a descriptor (clock_getres(2)).
    let clock = ClockId::from_raw((!device.as_raw_fd() << 3) | 3);
    let before = nanoseconds(clock_gettime(ClockId::CLOCK_REALTIME)?);
    let hosts = nanoseconds(clock_gettime(clock)?);
    let after = nanoseconds(clock_gettime(ClockId::CLOCK_REALTIME)?);
    correct(hosts - (before + (after - before) / 2))
}

/// Sets the clock to what the host says, ns since the epoch, unless the agent looks for itself.
///
/// # Errors
/// What the kernel says.
pub fn told(host_ns: u64) -> io::Result<()> {
    if is_followed() {
        return Ok(());
    }
    let hosts = i64::try_from(host_ns).map_err(|_| io::ErrorKind::InvalidInput)?;
    correct(hosts - nanoseconds(clock_gettime(ClockId::CLOCK_REALTIME)?))
}

fn correct(difference: i64) -> io::Result<()> {
    match correction(difference) {
        Correction::Nothing => Ok(()),
        Correction::Slew(microseconds) => slew(microseconds),
        Correction::Step => {
            let now = nanoseconds(clock_gettime(ClockId::CLOCK_REALTIME)?) + difference;
            tracing::info!(ms = difference / 1_000_000, "setting the clock");
            let time = TimeSpec::new(now.div_euclid(1_000_000_000), now.rem_euclid(1_000_000_000));
            Ok(clock_settime(ClockId::CLOCK_REALTIME, time)?)
        }
    }
}

fn correction(difference: i64) -> Correction {
    match difference.abs() {
        0..TOLERANCE => Correction::Nothing,
        TOLERANCE..LARGE => Correction::Slew(difference / 1000),
        _ => Correction::Step,
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

fn nanoseconds(time: TimeSpec) -> i64 {
    time.tv_sec().saturating_mul(1_000_000_000).saturating_add(time.tv_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_differences_are_left_middling_ones_slewed_large_ones_stepped() {
        for (milliseconds, wanted) in [
            (0, Correction::Nothing),
            (-1, Correction::Nothing),
            (20, Correction::Slew(20_000)),
            (-499, Correction::Slew(-499_000)),
            (500, Correction::Step),
            (-86_400_000, Correction::Step),
        ] {
            assert_eq!(correction(milliseconds * 1_000_000), wanted);
        }
    }
}
