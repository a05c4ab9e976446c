//! The machine's slots: virtio-mmio devices that were there from the start, as placeholders that no driver wanted.
//!
//! Bound again, the driver finds what the host has put into one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where the kernel shows virtio-mmio devices, by name.
const DEVICES: &str = "/sys/bus/platform/devices";

/// Their driver.
const DRIVER: &str = "/sys/bus/platform/drivers/virtio-mmio";

/// What the kernel calls the device with this number.
pub fn name(number: u32) -> String {
    format!("virtio-mmio.{number}")
}

/// Has the driver take the device; gives where the kernel shows it.
///
/// # Errors
/// There is none, or there is nothing in it.
pub fn bind(device: &str) -> io::Result<PathBuf> {
    let place = Path::new(DEVICES).join(device);
    // What was in the slot when the kernel looked has its driver, and need not be what is there now.
    if place.join("driver").exists() {
        unbind(device)?;
    }
    fs::write(Path::new(DRIVER).join("bind"), device)?;
    Ok(place)
}

/// Has the driver let go of the device.
///
/// # Errors
/// It has not taken it.
pub fn unbind(device: &str) -> io::Result<()> {
    fs::write(Path::new(DRIVER).join("unbind"), device)
}

/// The only thing of a class, as `block` or `net`, that a bound device has become.
///
/// # Errors
/// It has become nothing of that class.
pub fn found(place: &Path, class: &str) -> io::Result<PathBuf> {
    let only = |path: PathBuf, prefix: &str| -> io::Result<PathBuf> {
        let mut entries = fs::read_dir(path)?.map_while(io::Result::ok);
        let found =
            entries.find(|e| e.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()));
        found.map(|entry| entry.path()).ok_or_else(|| io::ErrorKind::NotFound.into())
    };
    only(only(place.to_owned(), "virtio")?.join(class), "")
}
