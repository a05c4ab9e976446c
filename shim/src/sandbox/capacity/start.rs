//! How large a machine is when it starts.

use super::GUEST_MIB;
use super::ceiling::guests_part;
use crate::sandbox::PodSize;
use crate::settings::Settings;
use protocol::machine::memory_block_mib;

/// The settings for a machine that is to have room for this, where those above its cgroup leave it so many bytes, if that
/// is known. As much as is not a whole block it has from the start, so that no block is there for a part of it, which a
/// pod's limit would not cover. It starts with less than usual where that would be more than is left, but for what was
/// promised: if the guest's page cache took more, the VMM would be killed.
pub(in crate::sandbox) fn fitted(
    mut settings: Settings,
    size: PodSize,
    ceiling: Option<u64>,
) -> Settings {
    let wanted = size.memory.div_ceil(1 << 20).saturating_add(GUEST_MIB);
    let lacking = wanted.saturating_sub(settings.memory_mib);
    let more = lacking % memory_block_mib(settings.memory_mib);
    if size.memory > 0 && settings.memory_mib + more <= settings.max_memory_mib {
        settings.memory_mib += more;
    }
    if let Some(left) = ceiling.map(guests_part) {
        settings.memory_mib = settings.memory_mib.min(left.max(wanted));
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::super::ceiling::COST_MIB;
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_machine_starts_with_what_is_no_whole_block_of_a_promise() {
        let start = |memory_mib: u64, promised_mib: u64| {
            let settings = Settings::resolve(Config::default()).unwrap();
            let settings = Settings { memory_mib, max_memory_mib: 1000, ..settings };
            let size = PodSize { memory: promised_mib << 20, ..PodSize::default() };
            fitted(settings, size, None).memory_mib
        };
        assert_eq!(start(128, 0), 128);
        assert_eq!(start(128, 64), 128, "it has room");
        assert_eq!(start(128, 65), 129);
        assert_eq!(start(128, 256), 128 + 64);
        assert_eq!(start(128, 64 + 256), 128);
        assert_eq!(start(990, 990), 990, "there is no more");
    }

    #[test]
    fn a_machine_starts_with_less_where_less_is_left_to_it() {
        let start = |memory_mib: u64, promised_mib: u64, ceiling_mib: u64| {
            let settings = Settings::resolve(Config::default()).unwrap();
            let settings = Settings { memory_mib, max_memory_mib: 1000, ..settings };
            let size = PodSize { memory: promised_mib << 20, ..PodSize::default() };
            fitted(settings, size, Some(ceiling_mib << 20)).memory_mib
        };
        // With the RuntimeClass's overhead: none takes more than is left.
        for limit in [1, 10, 26, 27, 40, 130] {
            let taken = start(128, limit, limit + 128) + COST_MIB;
            assert!(taken <= limit + 128, "{limit} MiB: {taken}");
        }
        assert_eq!((start(128, 10, 138), start(128, 26, 154)), (114, 128));
        assert_eq!(start(128, 130, 258), 194);
        assert_eq!(start(128, 0, 138), 114, "nobody said how large it is");
        // What the guest itself needs it has, and what was promised.
        assert_eq!((start(128, 0, 20), start(128, 10, 20), start(128, 60, 60)), (64, 74, 124));
        assert_eq!(start(128, 100, 60), 164, "as without");
        assert_eq!((start(128, 0, 4096), start(48, 0, 80), start(256, 0, 0)), (128, 48, 64));
    }
}
