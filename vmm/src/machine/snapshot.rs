//! A paused machine as plain, versioned data; guest memory is the memfd and not part of it.

use super::Machine;
use crate::devices::serial;
use crate::vcpu::VcpuState;
use crate::virtio::snapshot::DeviceState;
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

/// Version of [`MachineState`].
const VERSION: u32 = 1;

/// What KVM holds for the whole VM.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmState {
    /// Both 8259 and the IO-APIC.
    irqchips: Vec<kvm_irqchip>,
    pit: kvm_pit_state2,
    clock: kvm_clock_data,
}

/// Everything but memory.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineState {
    version: u32,
    /// Guest memory, as (address, length), in the order in which it lies in the file.
    memory: Vec<(u64, u64)>,
    vcpus: Vec<VcpuState>,
    vm: VmState,
    serial: serial::State,
    /// The virtio devices, in the order of their windows.
    devices: Vec<DeviceState>,
}

impl VmState {
    /// Reads a VM whose vCPUs don't run.
    ///
    /// # Errors
    /// KVM's.
    pub fn save(vm: &VmFd) -> Result<Self, kvm_ioctls::Error> {
        let mut irqchips = Vec::new();
        for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC] {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.get_irqchip(&mut chip)?;
            irqchips.push(chip);
        }
        Ok(Self { irqchips, pit: vm.get_pit2()?, clock: vm.get_clock()? })
    }
}

impl Machine {
    /// Reads the state of a machine that is paused.
    ///
    /// # Errors
    /// KVM's.
    pub fn save(&self) -> Result<MachineState, kvm_ioctls::Error> {
        let vcpus = self.vcpus.iter().map(crate::vcpu::Vcpu::save).collect::<Result<_, _>>()?;
        let devices = self.devices.transports.iter().map(|t| t.save()).collect();
        Ok(MachineState {
            version: VERSION,
            memory: self.ram.regions(),
            vcpus,
            vm: VmState::save(&self.vm)?,
            serial: self.serial.save(),
            devices,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_state_of_the_vm_survives_serialisation() {
        let kvm = crate::kvm::open_at(Path::new(crate::kvm::DEVICE)).unwrap();
        let vm = crate::kvm::create_vm(&kvm).unwrap();
        let state = VmState::save(&vm).unwrap();
        let json = serde_json::to_value(&state).unwrap();
        let again: VmState = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(&again).unwrap(), json);
    }
}
