//! From a guest address to the device that answers there.

use std::sync::Arc;

/// A device as the vCPU threads see it: a window of addresses.
///
/// Called from any vCPU thread; must not block and must not panic, whatever the guest sends.
pub trait BusDevice: Send + Sync {
    /// The guest reads `data.len()` bytes (1 to 8) at `offset` in the window.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// The guest writes `data` (1 to 8 bytes) at `offset` in the window.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Two windows overlap, or one is empty or wraps.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("bus window {base:#x}+{len:#x} is empty, wraps, or overlaps another")]
pub struct BadWindow {
    base: u64,
    len: u64,
}

/// An address space (port or memory-mapped I/O): disjoint windows, fixed once the guest runs.
#[derive(Default)]
pub struct Bus {
    windows: Vec<(u64, u64, Arc<dyn BusDevice>)>,
}

impl Bus {
    /// Adds a window of `len` bytes at `base`.
    ///
    /// # Errors
    /// [`BadWindow`] when it is empty, wraps, or overlaps another.
    pub fn insert(
        &mut self,
        base: u64,
        len: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), BadWindow> {
        let end = base.checked_add(len).filter(|_| len > 0).ok_or(BadWindow { base, len })?;
        if self.windows.iter().any(|(b, l, _)| base < b + l && *b < end) {
            return Err(BadWindow { base, len });
        }
        self.windows.push((base, len, device));
        Ok(())
    }

    /// Reads from the device at `address`; `false` when nothing answers (the caller fills in ones).
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        self.find(address).map(|(offset, device)| device.read(offset, data)).is_some()
    }

    /// Writes to the device at `address`; `false` when nothing answers.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        self.find(address).map(|(offset, device)| device.write(offset, data)).is_some()
    }

    fn find(&self, address: u64) -> Option<(u64, &dyn BusDevice)> {
        self.windows
            .iter()
            .find(|(base, len, _)| address >= *base && address - base < *len)
            .map(|(base, _, device)| (address - base, device.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn an_access_reaches_the_window_it_lies_in() {
        let device = Arc::new(Recorder::default());
        let mut bus = Bus::default();
        bus.insert(0x1000, 0x10, device.clone()).unwrap();
        let mut data = [0u8; 2];
        assert!(bus.read(0x100f, &mut data));
        assert_eq!(data, [0xf, 0xf]);
        assert!(!bus.read(0x1010, &mut data));
        assert!(!bus.write(0xfff, &data));
        assert!(bus.write(0x1004, &[9]));
        assert_eq!(*device.0.lock().unwrap(), [(4, vec![9])]);
    }

    #[test]
    fn windows_that_overlap_are_refused() {
        let device = Arc::new(Recorder::default());
        let mut bus = Bus::default();
        bus.insert(0x1000, 0x10, device.clone()).unwrap();
        for (base, len) in [(0x1000, 1), (0xff8, 0x10), (0x100f, 1), (5, 0), (u64::MAX, 2)] {
            assert!(bus.insert(base, len, device.clone()).is_err(), "{base:#x}+{len:#x}");
        }
        bus.insert(0x1010, 1, device).unwrap();
    }
}
