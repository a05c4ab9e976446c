//! The virtio-mmio transport, version 2 (virtio 1.3 §4.2): one window of registers per device.
//!
//! vCPU threads come here for set-up; the data path does not: what the driver reads is memory that it is shown
//! ([`super::registers`]), notifications are ioeventfds on [`register::QUEUE_NOTIFY`], interrupts are irqfds, and their
//! acknowledgement is an ioeventfd as well. Our guest kernel (`guest-kernel-config/patches`) notifies by an I/O port, whose
//! exit KVM need not decode, leaves the acknowledgement out, and has the interrupt be a message ([`super::messages`]).
//! Everything the driver writes is remembered as written and checked once, at DRIVER_OK, when it is
//! handed to the worker by value: registers written later change nothing.

use super::interrupt::IrqLine;
use super::messages::{Message, Routes};
use super::registers::RegisterPage;
pub use super::registers::{register, status};
use super::setup::QueueSetup;
use super::{
    ActivateError, Activation, ActiveQueue, F_EVENT_IDX, F_VERSION_1, Interrupt, VirtioDevice,
    WorkerError,
};
use crate::bus::BusDevice;
use crate::virtio::io_loop::{IoHandle, LoopStuck, WorkerId};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Most bytes of a device's configuration space.
const CONFIG_LEN: usize = 256;

/// How long a vCPU that resets a device waits for its worker to let go.
const RESET_PATIENCE: Duration = Duration::from_secs(5);

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const TRANSPORT_VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"kata");

/// A device behind its registers.
pub struct MmioTransport {
    irq: Arc<IrqLine>,
    notify: Vec<EventFd>,
    /// Of each queue, see [`VirtioDevice::is_quiet`].
    quiet: Vec<bool>,
    /// Where the interrupt can be made a message, and of which line.
    routes: OnceLock<(Arc<Routes>, u32)>,
    front: Mutex<Front>,
}

/// What the registers stand for; locked for set-up only, never while data flows.
struct Front {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemoryMmap,
    io: IoHandle,
    irq: Arc<IrqLine>,
    notify: Vec<EventFd>,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    message_address: u32,
    queue_sel: u32,
    queues: Vec<QueueSetup>,
    worker: Option<WorkerId>,
}

impl MmioTransport {
    /// Puts registers, which the guest reads in `page`, before a device, whose workers will run in the loop of `io`.
    ///
    /// # Errors
    /// When no more descriptors can be opened.
    pub fn new(
        page: RegisterPage,
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        io: IoHandle,
    ) -> io::Result<Self> {
        let irq = Arc::new(IrqLine::new(page)?);
        let notify: Vec<EventFd> = device
            .queue_max_sizes()
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK))
            .collect::<io::Result<_>>()?;
        let quiet = (0..notify.len()).map(|queue| device.is_quiet(queue)).collect();
        let front = Front {
            queues: empty_queues(device.as_ref()),
            device,
            memory,
            io,
            irq: irq.clone(),
            notify: notify.iter().map(EventFd::try_clone).collect::<io::Result<_>>()?,
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            message_address: 0,
            queue_sel: 0,
            worker: None,
        };
        front.show_device();
        Ok(Self { irq, notify, quiet, routes: OnceLock::new(), front: Mutex::new(front) })
    }

    /// The interrupt: to be made an irqfd on the device's edge-triggered line.
    pub fn irq(&self) -> &EventFd {
        self.irq.line()
    }

    /// Acknowledgements of interrupts for used buffers alone: to be made an ioeventfd at [`register::INTERRUPT_ACK`],
    /// 4 bytes wide, matching [`super::interrupt::USED`]. There is nothing to do about them.
    pub fn acknowledgements(&self) -> &EventFd {
        self.irq.acknowledged()
    }

    /// The notifications that somebody waits for: to be made ioeventfds at [`register::QUEUE_NOTIFY`], 4 bytes
    /// wide, and at the port of [`Self::set_notify_port`], 2 bytes wide, matching the queue's number. Others come as
    /// writes to the register or to [`NotifyPort`].
    pub fn notifications(&self) -> impl Iterator<Item = (u32, &EventFd)> {
        let awaited = (0u32..).zip(&self.notify).zip(&self.quiet).filter(|(_, quiet)| !**quiet);
        awaited.map(|(notification, _)| notification)
    }

    /// The driver may notify by this I/O port; call it before the guest runs.
    pub fn set_notify_port(&self, port: u16) {
        self.irq.page().set(register::NOTIFY_PORT, port.into());
    }

    /// The driver may have the interrupt, that of this line, be a message; call it before the guest runs.
    pub fn set_routes(&self, routes: Arc<Routes>, line: u32) {
        self.irq.page().set(register::MESSAGE_ADDRESS, 1);
        // It is called once.
        let _ = self.routes.set((routes, line));
    }

    /// Takes the queues back from the worker. The registers can't be used until [`Self::resume`];
    /// vCPUs have to be stopped.
    ///
    /// # Errors
    /// [`LoopStuck`] when the worker doesn't let go in time: the device goes on.
    pub fn pause(&self, patience: Duration) -> Result<(), LoopStuck> {
        self.front().stop_worker(patience)
    }

    /// Puts another device, with at most as many queues, behind the registers, which are as after power-on then; its
    /// workers will run in the loop of `io`.
    ///
    /// # Errors
    /// [`LoopStuck`] when the worker of the former device doesn't let go in time: the device stays.
    pub fn replace(&self, device: Box<dyn VirtioDevice>, io: IoHandle) -> Result<(), LoopStuck> {
        let mut front = self.front();
        front.reset()?;
        front.queues = empty_queues(device.as_ref());
        front.device = device;
        front.io = io;
        front.show_device();
        Ok(())
    }

    /// From now on guest memory is this; call it between [`Self::pause`] and [`Self::resume`].
    pub fn set_memory(&self, memory: &GuestMemoryMmap) {
        self.front().memory = memory.clone();
    }

    /// Gives the queues to a worker again, after [`Self::pause`].
    pub fn resume(&self) {
        let mut front = self.front();
        let stopped = front.worker.is_none() && !front.irq.needs_reset();
        if front.status & status::DRIVER_OK != 0 && stopped {
            front.activate();
        }
    }

    fn front(&self) -> MutexGuard<'_, Front> {
        // A panic of another vCPU thread ends the process; a poisoned lock is never seen in earnest.
        self.front.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.irq.page().read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset >= register::CONFIG {
            let mut front = self.front();
            front.device.write_config(offset - register::CONFIG, data);
            front.show_device();
        } else if let Ok(word) = <[u8; 4]>::try_from(data) {
            let value = u32::from_le_bytes(word);
            match offset {
                register::INTERRUPT_ACK => self.irq.acknowledge(value),
                register::QUEUE_NOTIFY => self.notify(value),
                register::MESSAGE_DATA => self.route(value),
                _ => self.front().write(offset, value),
            }
        }
    }
}

impl MmioTransport {
    /// The driver has said all of its message.
    fn route(&self, data: u32) {
        let front = self.front();
        let message = Message { address: front.message_address, data };
        if let Some((routes, line)) = self.routes.get()
            && let Err(error) = routes.set(*line, message)
        {
            front.fail(&error);
        }
    }

    /// A notification that no ioeventfd took. Before DRIVER_OK it waits in the eventfd, harmless.
    fn notify(&self, queue: u32) {
        if let Some(notify) = self.notify.get(queue as usize) {
            // Fails only when the counter is full: then the worker is notified already.
            let _ = notify.write(1);
        }
    }
}

/// A device's I/O port: what no ioeventfd took.
pub struct NotifyPort(pub Arc<MmioTransport>);

impl BusDevice for NotifyPort {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, Ok(queue)) = (offset, <[u8; 2]>::try_from(data)) {
            self.0.notify(u16::from_le_bytes(queue).into());
        }
    }
}

impl Front {
    /// Shows what the device is, and the rest.
    fn show_device(&self) {
        let page = self.irq.page();
        page.set(register::MAGIC, MAGIC);
        page.set(register::VERSION, TRANSPORT_VERSION);
        page.set(register::DEVICE_ID, self.device.device_type());
        page.set(register::VENDOR_ID, VENDOR);
        for register in [
            register::SHM_LEN_LOW,
            register::SHM_LEN_HIGH,
            register::SHM_BASE_LOW,
            register::SHM_BASE_HIGH,
        ] {
            // There is no shared memory region (§4.2.2): all ones.
            page.set(register, u32::MAX);
        }
        let mut config = [0; CONFIG_LEN];
        self.device.read_config(0, &mut config);
        page.set_bytes(register::CONFIG, &config);
        self.show_selected();
    }

    /// Shows what the driver has selected, and what it has brought about.
    fn show_selected(&self) {
        let page = self.irq.page();
        page.set(register::DEVICE_FEATURES, half(self.offered(), self.device_features_sel));
        let queue = self.queue_sel as usize;
        let most = self.device.queue_max_sizes().get(queue).copied().unwrap_or(0);
        page.set(register::QUEUE_SIZE_MAX, most.into());
        page.set(register::QUEUE_READY, self.queues.get(queue).is_some_and(|q| q.ready).into());
        self.irq.set_status(self.status);
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.take(offset, value);
        self.show_selected();
    }

    fn take(&mut self, offset: u64, value: u32) {
        match offset {
            register::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            register::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            register::DRIVER_FEATURES if self.status & status::FEATURES_OK == 0 => {
                match self.driver_features_sel {
                    0 => set_low(&mut self.driver_features, value),
                    1 => set_high(&mut self.driver_features, value),
                    _ => {}
                }
            }
            register::QUEUE_SEL => self.queue_sel = value,
            register::MESSAGE_ADDRESS => self.message_address = value,
            register::STATUS => self.write_status(value),
            _ => self.write_queue(offset, value),
        }
    }

    /// Registers of the selected queue: open between FEATURES_OK and DRIVER_OK only, and its
    /// addresses and size only while it is not ready.
    fn write_queue(&mut self, offset: u64, value: u32) {
        let open = self.status & (status::FEATURES_OK | status::DRIVER_OK) == status::FEATURES_OK;
        let Some(queue) = self.queues.get_mut(self.queue_sel as usize).filter(|_| open) else {
            return;
        };
        if offset == register::QUEUE_READY {
            queue.ready = value == 1;
        } else if !queue.ready {
            match offset {
                register::QUEUE_SIZE => queue.size = value,
                register::QUEUE_DESC_LOW => set_low(&mut queue.descriptors, value),
                register::QUEUE_DESC_HIGH => set_high(&mut queue.descriptors, value),
                register::QUEUE_DRIVER_LOW => set_low(&mut queue.available, value),
                register::QUEUE_DRIVER_HIGH => set_high(&mut queue.available, value),
                register::QUEUE_DEVICE_LOW => set_low(&mut queue.used, value),
                register::QUEUE_DEVICE_HIGH => set_high(&mut queue.used, value),
                _ => {}
            }
        }
    }

    /// One step of the device's initialisation (virtio 1.3 §3.1.1); steps out of order are ignored.
    fn write_status(&mut self, value: u32) {
        use status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET};
        const ACKNOWLEDGED: u32 = ACKNOWLEDGE;
        const DRIVEN: u32 = ACKNOWLEDGE | DRIVER;
        const NEGOTIATED: u32 = DRIVEN | FEATURES_OK;
        const RUNNING: u32 = NEGOTIATED | DRIVER_OK;

        if value == 0 {
            // The driver sees in the status that it has to try again.
            let _ = self.reset();
            return;
        }
        match (self.status, value & !NEEDS_RESET) {
            (0, ACKNOWLEDGED) | (ACKNOWLEDGED, DRIVEN) => self.status = value & !NEEDS_RESET,
            (DRIVEN, NEGOTIATED) => {
                let accepted = self.driver_features & !self.offered() == 0
                    && self.driver_features & F_VERSION_1 != 0;
                if accepted {
                    self.status = NEGOTIATED;
                }
            }
            (NEGOTIATED, RUNNING) => {
                self.status = RUNNING;
                self.activate();
            }
            (_, new) if new & FAILED != 0 => self.status |= FAILED,
            _ => {}
        }
    }

    fn offered(&self) -> u64 {
        self.device.features() | F_VERSION_1
    }

    fn activate(&mut self) {
        let activation = match self.activation() {
            Ok(activation) => activation,
            Err(error) => return self.fail(&error),
        };
        match self.device.activate(activation) {
            Ok(worker) => self.worker = Some(self.io.add(worker, self.irq.clone())),
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&self, error: &dyn std::error::Error) {
        self.irq.signal_needs_reset();
        self.io.report(WorkerError::new("virtio-mmio", error));
    }

    fn activation(&self) -> Result<Activation, ActivateError> {
        let queues =
            (0..self.queues.len()).map(|i| self.active_queue(i)).collect::<Result<_, _>>()?;
        Ok(Activation {
            memory: self.memory.clone(),
            queues,
            interrupt: self.irq.clone(),
            features: self.driver_features,
        })
    }

    /// Queue `index`, checked: size, alignment, and that each of its parts lies in guest memory.
    fn active_queue(&self, index: usize) -> Result<Option<ActiveQueue>, ActivateError> {
        let setup = &self.queues[index];
        if !setup.ready {
            return Ok(None);
        }
        let event_idx = self.driver_features & F_EVENT_IDX != 0;
        let queue = setup
            .to_queue(self.device.queue_max_sizes()[index], event_idx)
            .map_err(|reason| ActivateError::BadQueue { index, reason: reason.to_string() })?;
        let size = usize::from(queue.size());
        // Table, available ring and used ring, with the event fields at the rings' ends (§2.7).
        let parts = [
            (queue.desc_table(), 16 * size),
            (queue.avail_ring(), 6 + 2 * size),
            (queue.used_ring(), 6 + 8 * size),
        ];
        let inside = |&(at, len): &(u64, usize)| self.memory.check_range(GuestAddress(at), len);
        if !parts.iter().all(inside) {
            let reason = "it lies outside guest memory".to_owned();
            return Err(ActivateError::BadQueue { index, reason });
        }
        let notify =
            self.notify[index].try_clone().map_err(|e| ActivateError::Backend(e.into()))?;
        Ok(Some(ActiveQueue::new(queue, notify)))
    }

    fn stop_worker(&mut self, patience: Duration) -> Result<(), LoopStuck> {
        let Some(worker) = &self.worker else { return Ok(()) };
        let stopped = self.io.remove(worker, patience)?;
        self.worker = None;
        for (setup, active) in self.queues.iter_mut().zip(stopped) {
            if let Some(active) = active {
                setup.take_back(&active.queue);
            }
        }
        Ok(())
    }

    /// Back to the state after power-on. A worker that doesn't let go leaves the device as it was and in need
    /// of a reset: it may still write to memory that the driver thinks is its own again.
    fn reset(&mut self) -> Result<(), LoopStuck> {
        self.stop_worker(RESET_PATIENCE).inspect_err(|error| self.fail(error))?;
        self.device.reset();
        self.irq.clear();
        self.status = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.queue_sel = 0;
        self.queues = empty_queues(self.device.as_ref());
        for notify in &self.notify {
            // A notification of the driver's former life; there may be none.
            let _ = notify.read();
        }
        Ok(())
    }
}

fn empty_queues(device: &dyn VirtioDevice) -> Vec<QueueSetup> {
    let size = |&max: &u16| QueueSetup { size: max.into(), ..QueueSetup::default() };
    device.queue_max_sizes().iter().map(size).collect()
}

fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_low(target: &mut u64, value: u32) {
    *target = (*target & !0xffff_ffff) | u64::from(value);
}

fn set_high(target: &mut u64, value: u32) {
    *target = (*target & 0xffff_ffff) | u64::from(value) << 32;
}

#[cfg(test)]
#[path = "mmio_tests.rs"]
mod tests;
