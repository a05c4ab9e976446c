//! Disks that the host has attached to the machine for one container.
//!
//! The container's specification names disks by the host's numbers.

use crate::error::AgentError;
use crate::guest::{partitions, slots};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use oci_spec::runtime::{
    LinuxBlockIo, LinuxDeviceType, LinuxResources, LinuxThrottleDevice, LinuxThrottleDeviceBuilder,
    Spec,
};
use protocol::agent::Disk;
use protocol::ports::DISKS_DIR;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Major and minor number.
type Numbers = (u32, u32);

/// The disks of a container; given back by [`Disks::detach`].
#[derive(Debug, Default)]
pub struct Disks(Vec<Attached>);

#[derive(Debug)]
struct Attached {
    device: String,
    /// Its own, and its partitions'.
    nodes: Vec<PathBuf>,
    host: Numbers,
    guest: Numbers,
}

impl Disks {
    /// Has the driver take each, and makes their nodes for container `id`. Blocks.
    ///
    /// # Errors
    /// The first that can't be taken; those before are given back.
    pub fn attach(id: &str, disks: &[Disk]) -> Result<Self, AgentError> {
        let mut done = Self::default();
        for (index, disk) in disks.iter().enumerate() {
            let node = Path::new(DISKS_DIR).join(id).join(index.to_string());
            if let Err(error) = done.attach_one(disk, &node) {
                done.detach();
                let what = format!("taking the disk {}", slots::name(disk.device));
                return Err(AgentError::io(what, error));
            }
        }
        Ok(done)
    }

    fn attach_one(&mut self, disk: &Disk, node: &Path) -> io::Result<()> {
        let device = slots::name(disk.device);
        let place = slots::bind(&device)?;
        let host = (disk.host_major, disk.host_minor);
        self.0.push(Attached { device, nodes: vec![node.to_owned()], host, guest: (0, 0) });
        let shown = slots::found(&place, "block")?;
        let guest = numbers(&shown)?;
        if let Some(last) = self.0.last_mut() {
            last.guest = guest;
        }
        make_node(node, guest)?;
        for (number, partition) in (1..).zip(&disk.partitions) {
            partitions::add(node, number, partition.offset, partition.bytes)?;
            let name = |of: &Path, between: &str| {
                let name = of.file_name().unwrap_or_default().to_string_lossy();
                format!("{name}{between}{number}")
            };
            let node = node.with_file_name(name(node, "p"));
            let guest = numbers(&shown.join(name(&shown, "")))?;
            if let Some(last) = self.0.last_mut() {
                last.nodes.push(node.clone());
            }
            make_node(&node, guest)?;
        }
        Ok(())
    }

    /// Has the driver let go of all, with their partitions. Nothing may be mounted from them. Blocks.
    pub fn detach(&mut self) {
        for Attached { device, nodes, .. } in self.0.drain(..) {
            for node in &nodes {
                let _ = fs::remove_file(node);
            }
            // With the last of them.
            let _ = nodes.first().and_then(|node| node.parent()).map(fs::remove_dir);
            if let Err(error) = slots::unbind(&device) {
                tracing::warn!(%error, device, "letting go of a disk");
            }
        }
    }

    /// A specification with the guest's numbers in place of the host's, in devices, rules for them and limits.
    ///
    /// # Errors
    /// It is none, or see [`Disks::translate_limits`].
    pub fn translate(&self, spec_json: Vec<u8>) -> Result<Vec<u8>, AgentError> {
        if self.0.iter().all(|disk| disk.host == (0, 0)) {
            return Ok(spec_json);
        }
        let mut spec: Spec = serde_json::from_slice(&spec_json).map_err(invalid)?;
        self.translate_devices(&mut spec)?;
        serde_json::to_vec(&spec).map_err(invalid)
    }

    fn guests(&self, major: i64, minor: i64) -> Option<(i64, i64)> {
        let asked = (u32::try_from(major).ok()?, u32::try_from(minor).ok()?);
        let disk = self.0.iter().find(|disk| disk.host == asked && asked != (0, 0))?;
        Some((i64::from(disk.guest.0), i64::from(disk.guest.1)))
    }

    fn limit(&self, limit: &LinuxThrottleDevice) -> Result<LinuxThrottleDevice, AgentError> {
        let (major, minor) = (limit.major(), limit.minor());
        let Some((guests_major, guests_minor)) = self.guests(major, minor) else {
            let text = format!("blockIO: {major}:{minor} is no disk of the container's");
            return Err(AgentError::Invalid(format!("linux.resources.{text}")));
        };
        let limit = LinuxThrottleDeviceBuilder::default().rate(limit.rate());
        limit.major(guests_major).minor(guests_minor).build().map_err(invalid)
    }

    fn translate_devices(&self, spec: &mut Spec) -> Result<(), AgentError> {
        let guests = |major, minor| self.guests(major, minor);
        let Some(linux) = spec.linux_mut() else { return Ok(()) };
        for device in linux.devices_mut().iter_mut().flatten() {
            if device.typ() == LinuxDeviceType::B
                && let Some((major, minor)) = guests(device.major(), device.minor())
            {
                device.set_major(major).set_minor(minor);
            }
        }
        let Some(resources) = linux.resources_mut() else { return Ok(()) };
        for rule in resources.devices_mut().iter_mut().flatten() {
            if rule.typ() == Some(LinuxDeviceType::B)
                && let (Some(major), Some(minor)) = (rule.major(), rule.minor())
                && let Some((major, minor)) = guests(major, minor)
            {
                rule.set_major(Some(major)).set_minor(Some(minor));
            }
        }
        self.translate_limits(resources)
    }

    /// The same for limits of block I/O.
    ///
    /// # Errors
    /// One is for a device that is no disk of the container's.
    pub fn translate_limits(&self, resources: &mut LinuxResources) -> Result<(), AgentError> {
        let Some(limits) = resources.block_io().clone() else { return Ok(()) };
        let translated = |list: &Option<Vec<LinuxThrottleDevice>>| {
            let limits =
                list.as_ref().map(|list| list.iter().map(|limit| self.limit(limit)).collect());
            limits.transpose()
        };
        let mut own = LinuxBlockIo::default();
        own.set_throttle_read_bps_device(translated(limits.throttle_read_bps_device())?)
            .set_throttle_write_bps_device(translated(limits.throttle_write_bps_device())?)
            .set_throttle_read_iops_device(translated(limits.throttle_read_iops_device())?)
            .set_throttle_write_iops_device(translated(limits.throttle_write_iops_device())?)
            .set_weight(limits.weight());
        resources.set_block_io(Some(own));
        Ok(())
    }
}

fn invalid(error: impl std::fmt::Display) -> AgentError {
    AgentError::Invalid(format!("specification: {error}"))
}

/// Of a disk or partition, by where the kernel shows it.
fn numbers(shown: &Path) -> io::Result<Numbers> {
    parse_numbers(&fs::read_to_string(shown.join("dev"))?)
}

fn parse_numbers(text: &str) -> io::Result<Numbers> {
    let both = text.trim().split_once(':');
    let both = both.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    both.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn make_node(path: &Path, (major, minor): Numbers) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let device = makedev(major.into(), minor.into());
    Ok(mknod(path, SFlag::S_IFBLK, Mode::from_bits_retain(0o660), device)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn translated(disks: &Disks, linux: &Value) -> Value {
        let spec = json!({"ociVersion": "1.2.0", "linux": linux});
        let spec = disks.translate(spec.to_string().into_bytes()).unwrap();
        serde_json::from_slice::<Value>(&spec).unwrap()["linux"].take()
    }

    #[test]
    fn the_specification_gets_the_guests_numbers() {
        let disk = |host, guest| Attached { device: String::new(), nodes: Vec::new(), host, guest };
        let disks = Disks(vec![disk((0, 0), (254, 0)), disk((8, 16), (254, 16))]);
        let device = |kind: &str, major: u32, minor: u32| json!({"path": "/dev/x", "type": kind, "major": major, "minor": minor});
        let rule = |kind: &str, major: u32, minor: u32| json!({"allow": true, "type": kind, "major": major, "minor": minor, "access": "rw"});
        let linux = translated(
            &disks,
            &json!({
                "devices": [device("b", 8, 16), device("c", 8, 16)],
                "resources": {
                    "devices": [rule("b", 8, 16), rule("c", 8, 16), rule("b", 0, 0)],
                    "blockIO": {"weight": 750,
                        "throttleReadBpsDevice": [{"major": 8, "minor": 16, "rate": 7}]},
                },
            }),
        );
        let numbers = |list: &Value| -> Vec<(u64, u64)> {
            let of = |entry: &Value, name: &str| entry[name].as_u64().unwrap();
            let list = list.as_array().unwrap();
            list.iter().map(|entry| (of(entry, "major"), of(entry, "minor"))).collect()
        };
        assert_eq!(numbers(&linux["devices"]), [(254, 16), (8, 16)]);
        let resources = &linux["resources"];
        assert_eq!(numbers(&resources["devices"]), [(254, 16), (8, 16), (0, 0)]);
        assert_eq!(numbers(&resources["blockIO"]["throttleReadBpsDevice"]), [(254, 16)]);
        assert_eq!(resources["blockIO"]["weight"], 750);
        let limit = json!({"throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 7}]});
        let mut other = serde_json::from_value(json!({"blockIO": limit})).unwrap();
        let error = disks.translate_limits(&mut other).unwrap_err().to_string();
        assert!(error.contains("8:0"), "{error}");
    }

    #[test]
    fn a_disk_that_is_not_there_is_named() {
        let disk = Disk { device: 4711, ..Disk::default() };
        let error = Disks::attach("c1", &[disk]).unwrap_err().to_string();
        assert!(error.contains("virtio-mmio.4711"), "{error}");
    }

    #[test]
    fn numbers_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_numbers("254:16\n").unwrap(), (254, 16));
        for bad in ["", "254", "a:b", "1:99999999999"] {
            assert!(parse_numbers(bad).is_err(), "{bad}");
        }
    }
}
