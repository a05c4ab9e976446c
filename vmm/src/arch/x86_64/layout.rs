//! Where things lie in guest-physical memory, and which interrupt lines there are.

/// Global descriptor table.
pub const GDT: u64 = 0x500;
/// The "zero page", `struct boot_params` (`Documentation/arch/x86/boot.rst`).
pub const ZERO_PAGE: u64 = 0x7000;
/// Initial stack pointer, below the page tables.
pub const STACK: u64 = 0x8ff0;
/// Top page table, followed by one PDPT and four page directories: 4 GiB identity-mapped.
pub const PAGE_TABLES: u64 = 0x9000;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Most bytes of the command line with its NUL: what Linux takes on x86 (`COMMAND_LINE_SIZE`).
pub const CMDLINE_MAX: usize = 2048;
/// End of the conventional memory told to the guest.
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// The BIOS area, where Linux looks for the MP table.
pub const MP_TABLE: u64 = 0xf_0000;
/// Start of high memory; kernels are loaded at or above it.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// The IO-APIC's registers.
pub const IO_APIC: u32 = 0xfec0_0000;
/// The local APICs' registers.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Interrupt lines of KVM's IO-APIC.
pub const IO_APIC_PINS: u8 = 24;

/// Register windows of the virtio-mmio devices, one after another from here.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// Bytes of each, a page.
pub const VIRTIO_WINDOW: u64 = 0x1000;
/// Interrupt lines for them; lower ones belong to timer, serial port and other PC devices.
pub const VIRTIO_IRQS: std::ops::Range<u32> = 5..IO_APIC_PINS as u32;

/// I/O ports that take the devices' notifications, one after another from here.
pub const VIRTIO_NOTIFY_PORTS: u16 = 0xc000;
/// Ports of each: a queue's number is 16 bits wide.
pub const VIRTIO_NOTIFY_WIDTH: u16 = 2;

/// COM1.
pub const SERIAL_PORT: u64 = 0x3f8;
/// COM1's interrupt line.
pub const SERIAL_IRQ: u32 = 4;
/// The i8042 keyboard controller's command port, by which PCs are reset.
pub const I8042_COMMAND_PORT: u64 = 0x64;

/// Where a virtio-mmio device lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioWindow {
    /// Register window.
    pub address: u64,
    /// Its size, bytes.
    pub len: u64,
    /// Interrupt line.
    pub irq: u32,
    /// I/O port that takes notifications.
    pub notify_port: u16,
}

impl VirtioWindow {
    /// That of the device with this number; `None` beyond the last interrupt line.
    pub fn of(number: u32) -> Option<Self> {
        let irq = VIRTIO_IRQS.start.checked_add(number)?;
        let address = VIRTIO_MMIO + u64::from(number) * VIRTIO_WINDOW;
        let notify_port = VIRTIO_NOTIFY_PORTS + number as u16 * VIRTIO_NOTIFY_WIDTH;
        let there_is = VIRTIO_IRQS.contains(&irq);
        there_is.then_some(Self { address, len: VIRTIO_WINDOW, irq, notify_port })
    }
}
