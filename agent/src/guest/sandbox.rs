//! The guest as a whole: the identity that the host gives it, and its end.
//!
//! Nothing here is read at boot, so that a guest restored from a snapshot gets a new identity by the
//! same call.

use crate::error::AgentError;
use crate::guest::storage;
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::stat::{major, minor};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use protocol::agent::{SetupSandboxRequest, Storage};
use protocol::ports::SHARED_DIR;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Instant;

/// Most bytes of entropy taken.
const MAX_ENTROPY: usize = 512;

/// Applies everything that the host says. Blocks while the shared directory is mounted.
///
/// # Errors
/// The first step that the kernel refuses.
pub fn setup(request: &SetupSandboxRequest) -> Result<(), AgentError> {
    let begin = Instant::now();
    if request.clock_ns != 0 {
        let (seconds, nanoseconds) =
            (request.clock_ns / 1_000_000_000, request.clock_ns % 1_000_000_000);
        let time = TimeSpec::new(seconds as i64, nanoseconds as i64);
        clock_settime(ClockId::CLOCK_REALTIME, time)
            .map_err(|e| AgentError::io("setting the clock", e))?;
    }
    if !request.entropy.is_empty() {
        add_entropy(&request.entropy).map_err(|e| AgentError::io("adding entropy", e))?;
    }
    if !request.hostname.is_empty() {
        nix::unistd::sethostname(&request.hostname).map_err(|e| {
            AgentError::io(format!("setting the host name {:?}", request.hostname), e)
        })?;
    }
    // After a restore it is mounted already.
    if !request.shared_tag.is_empty() && !storage::is_mounted(SHARED_DIR) {
        storage::mount_one(&Storage {
            source: request.shared_tag.clone(),
            fstype: "virtiofs".to_owned(),
            mount_point: SHARED_DIR.to_owned(),
            ..Storage::default()
        })?;
        if let Err(error) = keep_as_much_dirty_as_for_a_disk(Path::new(SHARED_DIR)) {
            tracing::warn!(%error, "what is written to the host's files waits for them");
        }
    }
    tracing::info!(ms = begin.elapsed().as_millis(), "sandbox set up");
    Ok(())
}

/// The kernel lets FUSE file systems have a hundredth of what others may have in memory that is yet to be written, as their
/// servers are mere programs, which may hang. This one is the host's.
fn keep_as_much_dirty_as_for_a_disk(mounted: &Path) -> io::Result<()> {
    let device = fs::metadata(mounted)?.dev();
    let name = format!("{}:{}", major(device), minor(device));
    for entry in fs::read_dir("/sys/class/bdi")? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().split('-').next() == Some(&*name) {
            return fs::write(entry.path().join("max_ratio"), "100");
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// The head of `struct rand_pool_info` and the bytes after it (random(4)).
#[repr(C)]
struct RandomPool {
    entropy_bits: libc::c_int,
    size: libc::c_int,
    bytes: [u8; MAX_ENTROPY],
}

nix::ioctl_write_ptr_bad!(rnd_add_entropy, 0x4008_5203, RandomPool);
nix::ioctl_none_bad!(rnd_reseed, 0x5207);

/// Mixes the bytes in, counts them as random, and reseeds: two clones of one snapshot part here.
fn add_entropy(entropy: &[u8]) -> io::Result<()> {
    let entropy = &entropy[..entropy.len().min(MAX_ENTROPY)];
    let mut pool = RandomPool {
        entropy_bits: entropy.len() as i32 * 8,
        size: entropy.len() as i32,
        bytes: [0; MAX_ENTROPY],
    };
    pool.bytes[..entropy.len()].copy_from_slice(entropy);
    let device = OpenOptions::new().write(true).open("/dev/urandom")?;
    // SAFETY: `size` bytes of `pool.bytes` are initialised, and the kernel only reads them.
    unsafe { rnd_add_entropy(device.as_raw_fd(), &raw const pool) }?;
    // SAFETY: RNDRESEEDCRNG takes no argument.
    unsafe { rnd_reseed(device.as_raw_fd()) }?;
    Ok(())
}

/// Writes everything out. Blocks.
pub fn sync() {
    nix::unistd::sync();
}

/// Ends the machine.
pub fn power_off() {
    // There is no ACPI: the VMM takes the reset by the keyboard controller as the end.
    let Err(error) = reboot(RebootMode::RB_AUTOBOOT);
    tracing::error!(%error, "ending the machine");
}
