//! How many processors and how much memory the guest has: what the host has added is brought online, and
//! let go again before the host takes it away.

use crate::error::AgentError;
use crate::guest::boot;
use protocol::agent::SandboxCapacity;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

const CPUS: &str = "/sys/devices/system/cpu";
const MEMORY: &str = "/sys/devices/system/memory";

/// With this policy three quarters of the memory can be taken away again: it holds nothing of the kernel's.
const POLICY: (&str, &str) =
    ("/sys/module/memory_hotplug/parameters/online_policy", "auto-movable");

/// What must be available besides a block for it to be let go: its contents move elsewhere, KiB.
const MARGIN_KIB: u64 = 32 << 10;

/// Has as much as is wanted, as far as that is possible; gives what there is then. Blocks.
///
/// # Errors
/// When the kernel does not take what is added. It may keep what it should let go.
pub fn resize(wanted: &SandboxCapacity) -> Result<SandboxCapacity, AgentError> {
    let begin = Instant::now();
    let vcpus = set_cpus(wanted.vcpus)?;
    let added_bytes = if wanted.added_at == 0 { 0 } else { set_memory(wanted)? };
    boot::limit_containers();
    let ms = begin.elapsed().as_millis();
    tracing::info!(vcpus, added_mib = added_bytes >> 20, ms, "resized");
    Ok(SandboxCapacity { vcpus, added_bytes, added_at: wanted.added_at, ..Default::default() })
}

/// The first processor is always there, and has no such file.
fn set_cpus(wanted: u32) -> Result<u32, AgentError> {
    let files = (1u32..).map(|n| (n, Path::new(CPUS).join(format!("cpu{n}/online"))));
    let mut online = 1;
    for (number, file) in files.take_while(|(_, file)| file.exists()) {
        let wanted = number < wanted;
        match fs::write(&file, if wanted { "1" } else { "0" }) {
            Err(e) if wanted => return Err(AgentError::io(format!("starting CPU {number}"), e)),
            Err(e) => tracing::warn!(number, error = %e, "a CPU stays"),
            Ok(()) => {}
        }
        online += u32::from(read(&file).is_ok_and(|text| text == "1"));
    }
    Ok(online)
}

/// Gives how many bytes of the added memory, from its start, the kernel has.
fn set_memory(wanted: &SandboxCapacity) -> Result<u64, AgentError> {
    let failed = |e| AgentError::io("adding memory", e);
    let size = read(&Path::new(MEMORY).join("block_size_bytes")).map_err(failed)?;
    let size = u64::from_str_radix(&size, 16).ok().filter(|&size| size > 0);
    let size = size.ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))?;
    let _ = fs::write(POLICY.0, POLICY.1);
    let (first, count) = (wanted.added_at / size, wanted.added_bytes / size);
    let block = |index: u64| Block(first + index);
    for index in 0..count {
        block(index).bring_online(size).map_err(failed)?;
    }
    let mut has = count;
    while block(has).is_online() {
        has += 1;
    }
    while has > count && block(has - 1).let_go(size) {
        has -= 1;
    }
    Ok(has * size)
}

/// A block of the kernel's memory, by its number (`memory-hotplug.rst`).
struct Block(u64);

impl Block {
    fn state(&self) -> PathBuf {
        Path::new(MEMORY).join(format!("memory{}/state", self.0))
    }

    fn is_online(&self) -> bool {
        read(&self.state()).is_ok_and(|state| state == "online")
    }

    fn bring_online(&self, size: u64) -> io::Result<()> {
        if !self.state().exists() {
            fs::write(Path::new(MEMORY).join("probe"), format!("{:#x}", self.0 * size))?;
        }
        if self.is_online() { Ok(()) } else { fs::write(self.state(), "online") }
    }

    /// Whether it has gone. The kernel tries without end where there is no room for the contents, so that is
    /// asked first.
    fn let_go(&self, size: u64) -> bool {
        let available = boot::read_number("/proc/meminfo", "MemAvailable:").unwrap_or(0);
        available > size / 1024 + MARGIN_KIB && fs::write(self.state(), "offline").is_ok()
    }
}

fn read(path: &Path) -> io::Result<String> {
    fs::read_to_string(path).map(|text| text.trim().to_owned())
}
