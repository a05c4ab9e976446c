//! The one recipe from a [`MachineConfig`] to a machine.
//!
//! What can be wrong with the configuration and its files is found first, without KVM.

use super::{Machine, Prepared, wiring};
use crate::arch::x86_64::boot::{self, Range};
use crate::arch::x86_64::cpuid::{self, Shape};
use crate::arch::x86_64::layout::VirtioWindow;
use crate::arch::x86_64::{layout, mptable, registers};
use crate::bus::Bus;
use crate::cmdline;
use crate::devices;
use crate::devices::build::{Built, Devices};
use crate::devices::console::{self, ConsoleInput, ConsoleLog};
use crate::devices::i8042::I8042;
use crate::devices::serial::SerialPort;
use crate::error::StartError;
use crate::exit::ExitNotice;
use crate::kvm::{self, KvmError};
use crate::loader::{Initrd, KernelImage};
use crate::memory::{GuestRam, HOLE_START, HUGE_PAGE, NEXT_SLOT};
use crate::vcpu::{Gate, Surroundings, Vcpu};
use crate::virtio::messages::Routes;
use crate::virtio::mmio::NotifyPort;
use kvm_ioctls::{Kvm, VmFd};
use protocol::machine::MachineConfig;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What a kernel needs besides its image and the initial RAM disk to get to its first process.
const WORKING_MEMORY: u64 = 24 << 20;
/// Where Linux's page allocator begins, as seen in guests of any size.
const FIRST_ALLOCATIONS: std::ops::Range<u64> = 8 << 20..12 << 20;
/// Linux describes a page of 4 KiB in 64 bytes.
const PAGE_MAP_SHARE: u64 = 64;
/// What else it puts at the top: hash tables, page tables, per-CPU data.
const TOP_TABLES: u64 = 4 << 20;

/// Opens what the configuration names and builds the machine, up to the state before its start.
///
/// `descriptors` came with the configuration; see `FsConfig::socket_fd`.
///
/// # Errors
/// See [`StartError`].
pub fn build(config: &MachineConfig, descriptors: Vec<OwnedFd>) -> Result<Prepared, StartError> {
    let mut kernel = KernelImage::open(&config.kernel)?;
    let mut initrd = config.initrd.as_deref().map(Initrd::open).transpose()?;
    let size = config.memory_mib.saturating_mul(1 << 20);
    let initrd_at = place_initrd(size, kernel.end(), initrd.as_ref().map_or(0, Initrd::len))?;

    let kvm = open_kvm(config.vcpus)?;
    let most_vcpus = config.max.vcpus.min(kvm::max_vcpus(&kvm) as u32).max(config.vcpus) as u8;
    let vm = Arc::new(kvm::create_vm(&kvm)?);
    let ram = GuestRam::with_room(size, config.max.added_mib.saturating_mul(1 << 20))?;
    ram.register(&vm)?;

    let exit = Arc::new(ExitNotice::new().map_err(StartError::host("an eventfd"))?);
    let (console_input, console) = open_console(config, exit.clone())?;
    let mut ports = build_ports(&vm, console_input, &exit)?;
    let Built { devices, loops, starter } =
        devices::build::build(config, descriptors, ram.memory())?;
    let Placed { mmio, announced } = place_devices(&vm, &devices, &mut ports)?;

    populate_start(&ram, &kernel, initrd_at + initrd.as_ref().map_or(0, Initrd::len));
    kernel.load(&ram)?;
    if let Some(initrd) = &mut initrd {
        initrd.load(&ram, initrd_at)?;
    }
    let cmdline = cmdline::build(config.vcpus, &announced, &config.cmdline)?;
    let initrd = initrd.map(|i| Range { start: initrd_at, len: i.len() });
    write_boot_data(&ram, &kernel, &cmdline, initrd, most_vcpus)?;
    let vcpus = create_vcpus(
        &kvm,
        &vm,
        Shape { vcpus: most_vcpus, nested: config.nested },
        kernel.entry(),
    )?;

    let gate = Arc::new(Gate::new(config.vcpus as usize));
    let around = Surroundings { ports: Arc::new(ports), mmio: Arc::new(mmio), exit, gate };
    let least_vcpus = config.vcpus as usize;
    let machine = Machine { vm, ram, vcpus, least_vcpus, around, console, devices };
    Ok(Prepared { machine, loops, starter })
}

/// Where the image goes: right after the kernel. Refuses a memory that is too small for both.
fn place_initrd(size: u64, kernel_end: u64, initrd_len: u64) -> Result<u64, StartError> {
    let start = kernel_end.next_multiple_of(HUGE_PAGE);
    // Unpacked, the image takes at least as much again.
    let needs = start.saturating_add(initrd_len.saturating_mul(2)).saturating_add(WORKING_MEMORY);
    if size < needs || start.saturating_add(initrd_len) > HOLE_START {
        return Err(StartError::TooLittleMemory {
            has_mib: size >> 20,
            needs_mib: needs.div_ceil(1 << 20),
            kernel_mib: kernel_end.div_ceil(1 << 20),
            initrd_mib: initrd_len.div_ceil(1 << 20),
        });
    }
    Ok(start)
}

/// Populates what every start touches: boot data, kernel and image, the guest's first allocations,
/// and the top of memory, where Linux puts its map of pages and its tables.
fn populate_start(ram: &GuestRam, kernel: &KernelImage, image_end: u64) {
    ram.populate(0, HUGE_PAGE);
    ram.populate(FIRST_ALLOCATIONS.start, FIRST_ALLOCATIONS.end - FIRST_ALLOCATIONS.start);
    ram.populate(kernel.start(), image_end.saturating_sub(kernel.start()));
    if let Some((start, len)) = ram.regions().into_iter().next_back() {
        let top = (ram.size() / PAGE_MAP_SHARE + TOP_TABLES).min(len);
        ram.populate(start + len - top, top);
    }
}

fn open_kvm(vcpus: u32) -> Result<Kvm, StartError> {
    if vcpus == 0 {
        return Err(StartError::Vcpus { asked: 0, max: kvm::MAX_VCPUS });
    }
    let kvm = kvm::open()?;
    let max = kvm::max_vcpus(&kvm);
    if vcpus as usize > max {
        return Err(StartError::Vcpus { asked: vcpus, max });
    }
    Ok(kvm)
}

fn open_console(
    config: &MachineConfig,
    exit: Arc<ExitNotice>,
) -> Result<(ConsoleInput, ConsoleLog), StartError> {
    let path = config.console_log.as_deref();
    console::open(path, exit).map_err(|source| match path {
        Some(path) => StartError::ConsoleLog { path: path.to_owned(), source },
        None => StartError::Host { what: "an eventfd", source },
    })
}

/// The I/O ports: serial port and reset.
fn build_ports(vm: &VmFd, output: ConsoleInput, exit: &Arc<ExitNotice>) -> Result<Bus, StartError> {
    let serial = SerialPort::new(output).map_err(StartError::host("an eventfd"))?;
    let serial = Arc::new(serial);
    vm.register_irqfd(serial.irq(), layout::SERIAL_IRQ)
        .map_err(KvmError::call("connect the serial port's interrupt"))?;
    let mut ports = Bus::default();
    let reset = Arc::new(I8042::new(exit.clone()));
    ports.insert(layout::SERIAL_PORT, 8, serial)?;
    ports.insert(layout::I8042_COMMAND_PORT, 1, reset)?;
    Ok(ports)
}

fn write_boot_data(
    ram: &GuestRam,
    kernel: &KernelImage,
    cmdline: &str,
    initrd: Option<Range>,
    vcpus: u8,
) -> Result<(), StartError> {
    let write = || {
        registers::write_tables(ram.memory())?;
        mptable::write(ram.memory(), vcpus)?;
        boot::write(ram, kernel.header(), cmdline, initrd)
    };
    // All of it lies below the kernel, in memory that is there.
    write().map_err(|e| crate::memory::MemoryError::Map(e.into()).into())
}

fn create_vcpus(kvm: &Kvm, vm: &VmFd, shape: Shape, entry: u64) -> Result<Vec<Vcpu>, StartError> {
    let supported = cpuid::supported(kvm).map_err(KvmError::call("tell its CPUID"))?;
    let intel = cpuid::is_intel(&supported);
    let mut vcpus = Vec::new();
    for id in 0..shape.vcpus {
        let fd = vm.create_vcpu(id.into()).map_err(KvmError::call("create a vCPU"))?;
        cpuid::for_vcpu(&supported, id, shape)
            .and_then(|cpuid| fd.set_cpuid2(&cpuid))
            .map_err(KvmError::call("set a vCPU's CPUID"))?;
        if intel {
            registers::enable_fast_strings(&fd)
                .map_err(KvmError::call("set a vCPU's model-specific registers"))?;
        }
        registers::set_local_interrupts(&fd).map_err(KvmError::call("set up a local APIC"))?;
        if id == 0 {
            // The others wait for the kernel's INIT and SIPI.
            registers::set_long_mode(&fd, entry, layout::ZERO_PAGE)
                .map_err(KvmError::call("set a vCPU's registers"))?;
        }
        vcpus.push(Vcpu::new(id.into(), fd));
    }
    Ok(vcpus)
}

/// Where the virtio devices lie.
struct Placed {
    mmio: Bus,
    announced: Vec<VirtioWindow>,
}

/// Gives each device the next window, interrupt line and port. Slots are connected when there is a device in them.
fn place_devices(vm: &Arc<VmFd>, devices: &Devices, ports: &mut Bus) -> Result<Placed, StartError> {
    devices.registers.show(vm, NEXT_SLOT, layout::VIRTIO_MMIO)?;
    let (mut mmio, mut announced) = (Bus::default(), Vec::new());
    let asked = devices.transports.len();
    let routes = Arc::new(Routes::new(vm.clone()));
    for (transport, number) in devices.transports.iter().zip(0..) {
        let max = layout::VIRTIO_IRQS.len();
        let place = VirtioWindow::of(number).ok_or(StartError::TooManyDevices { asked, max })?;
        if number < devices.slots.first() {
            wiring::connect(vm, transport, place)?;
        }
        mmio.insert(place.address, place.len, transport.clone())?;
        let port = Arc::new(NotifyPort(transport.clone()));
        ports.insert(place.notify_port.into(), layout::VIRTIO_NOTIFY_WIDTH.into(), port)?;
        transport.set_notify_port(place.notify_port);
        transport.set_routes(routes.clone(), place.irq);
        announced.push(place);
    }
    Ok(Placed { mmio, announced })
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
