//! Guests of a few instructions in 64-bit ring 0, on any /dev/kvm.

use super::*;
use crate::arch::x86_64::{cpuid, registers};
use crate::bus::BusDevice;
use crate::devices::i8042::I8042;
use crate::memory::GuestRam;
use kvm_bindings::{KVM_IRQCHIP_PIC_MASTER, kvm_irqchip};
use kvm_ioctls::{IoEventAddress, VmFd};
use std::path::Path;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const CODE: u64 = 0x10_0000;
const MEMORY: u64 = 0x20_0000;
/// Mapped by the page tables, but no memory: accesses are exits.
const DEVICE: u64 = 0x40_0000;

/// Notes writes; reads as the offset.
#[derive(Default)]
struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

impl Recorder {
    fn writes(&self) -> Vec<(u64, Vec<u8>)> {
        self.0.lock().unwrap().clone()
    }
}

impl BusDevice for Recorder {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }
    fn write(&self, offset: u64, data: &[u8]) {
        self.0.lock().unwrap().push((offset, data.to_vec()));
    }
}

/// A machine with one vCPU, a recorder at ports 0xe0 to 0xef and at [`DEVICE`].
struct Guest {
    vcpu: Vcpu,
    around: Surroundings,
    ports: Arc<Recorder>,
    mmio: Arc<Recorder>,
    vm: VmFd,
    _ram: GuestRam,
}

impl Guest {
    fn new(code: &[u8]) -> Self {
        let kvm = crate::kvm::open_at(Path::new(crate::kvm::DEVICE)).unwrap();
        let vm = crate::kvm::create_vm(&kvm).unwrap();
        let ram = GuestRam::new(MEMORY).unwrap();
        ram.register(&vm).unwrap();
        registers::write_tables(ram.memory()).unwrap();
        ram.memory().write_slice(code, GuestAddress(CODE)).unwrap();
        let fd = vm.create_vcpu(0).unwrap();
        let supported = cpuid::supported(&kvm).unwrap();
        let shape = cpuid::Shape { vcpus: 1, nested: false };
        fd.set_cpuid2(&cpuid::for_vcpu(&supported, 0, shape).unwrap()).unwrap();
        registers::set_long_mode(&fd, CODE, 0).unwrap();
        registers::set_local_interrupts(&fd).unwrap();

        let exit = Arc::new(ExitNotice::new().unwrap());
        let (recorded_ports, recorded_mmio) = (Arc::<Recorder>::default(), Arc::default());
        let (mut ports, mut mmio) = (Bus::default(), Bus::default());
        ports.insert(0xe0, 0x10, recorded_ports.clone()).unwrap();
        ports.insert(0x64, 1, Arc::new(I8042::new(exit.clone()))).unwrap();
        mmio.insert(DEVICE, 0x100, Arc::clone(&recorded_mmio) as Arc<dyn BusDevice>).unwrap();
        let (ports, mmio, gate) = (Arc::new(ports), Arc::new(mmio), Arc::new(Gate::new(1)));
        let around = Surroundings { ports, mmio, exit, gate };
        let vcpu = Vcpu::new(0, fd);
        Self { vcpu, around, ports: recorded_ports, mmio: recorded_mmio, vm, _ram: ram }
    }

    fn run(&mut self) {
        self.vcpu.spawn(self.around.clone(), || Ok(())).unwrap();
        self.around.gate.open();
    }

    fn run_to_end(&mut self) -> ExitReason {
        self.run();
        self.vcpu.thread.take().unwrap().join().unwrap();
        self.around.exit.reason().unwrap()
    }

    fn pause(&self) {
        self.around.gate.close();
        self.vcpu.kick();
        self.around.gate.wait_for_all(1).unwrap();
    }

    fn counter(&self, name: &str) -> u64 {
        let name = format!("vcpu0.{name}");
        self.vcpu.counters().into_iter().find(|(n, _)| *n == name).unwrap().1
    }
}

/// `mov al, 0xfe; out 0x64, al`
const RESET: [u8; 4] = [0xb0, 0xfe, 0xe6, 0x64];

fn with_reset(code: &[u8]) -> Vec<u8> {
    [code, &RESET].concat()
}

#[test]
fn ports_and_device_memory_reach_their_devices() {
    let code = with_reset(&[
        0xb0, b'A', // mov al, 'A'
        0xe6, 0xe9, // out 0xe9, al
        0xe4, 0xe7, // in al, 0xe7
        0xe6, 0xe9, // out 0xe9, al
        0xbb, 0x00, 0x00, 0x40, 0x00, // mov ebx, DEVICE
        0x89, 0x03, // mov [rbx], eax
        0x8b, 0x43, 0x18, // mov eax, [rbx + 0x18]
        0x66, 0x89, 0x43, 0x20, // mov [rbx + 0x20], ax
    ]);
    let mut guest = Guest::new(&code);
    assert_eq!(guest.run_to_end(), ExitReason::GuestShutdown);
    assert_eq!(guest.ports.writes(), [(9, vec![b'A']), (9, vec![7])]);
    let writes = guest.mmio.writes();
    assert_eq!((writes[0].0, writes[0].1[0], writes[0].1.len()), (0, 7, 4));
    assert_eq!(writes[1], (0x20, vec![0x18, 0x18]));
    assert_eq!((guest.counter("port_writes"), guest.counter("port_reads")), (3, 1));
    assert_eq!((guest.counter("mmio_writes"), guest.counter("mmio_reads")), (2, 1));
    assert_eq!(guest.counter("unanswered"), 0);
}

#[test]
fn where_no_device_answers_reads_are_ones_and_writes_are_lost() {
    let code = with_reset(&[
        0xe4, 0x10, // in al, 0x10
        0xe6, 0xe0, // out 0xe0, al
        0xe6, 0x10, // out 0x10, al
        0xbb, 0x00, 0x00, 0x50, 0x00, // mov ebx, beyond DEVICE
        0x8b, 0x03, // mov eax, [rbx]
        0x89, 0x03, // mov [rbx], eax
        0xc1, 0xe8, 0x18, // shr eax, 24
        0xe6, 0xe1, // out 0xe1, al
    ]);
    let mut guest = Guest::new(&code);
    assert_eq!(guest.run_to_end(), ExitReason::GuestShutdown);
    assert_eq!(guest.ports.writes(), [(0, vec![0xff]), (1, vec![0xff])]);
    assert_eq!(guest.counter("unanswered"), 4);
}

#[test]
fn a_vcpu_that_loops_or_halts_is_paused_and_goes_on() {
    // jmp self; and: sti; hlt; jmp to hlt
    for code in [&[0xeb, 0xfe][..], &[0xfb, 0xf4, 0xeb, 0xfd][..]] {
        let mut guest = Guest::new(code);
        guest.run();
        for round in 0..200 {
            // Every other time it is kicked on its way into the guest.
            while round % 2 == 0 && guest.around.gate.waiting() != 0 {
                std::thread::yield_now();
            }
            guest.pause();
            guest.around.gate.open();
        }
        guest.pause();
        // In the first round the thread may not have come to the gate yet.
        assert!(guest.counter("interrupted") >= 99);
        assert_eq!(guest.around.exit.reason(), None);
    }
}

#[test]
fn a_notification_is_an_eventfd_without_an_exit_to_us() {
    let code = with_reset(&[
        0xbb, 0x00, 0x00, 0x40, 0x00, // mov ebx, DEVICE
        0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax, 1
        0x89, 0x43, 0x50, // mov [rbx + 0x50], eax
        0xff, 0xc0, // inc eax
        0x89, 0x43, 0x50, // mov [rbx + 0x50], eax: no such queue
    ]);
    let mut guest = Guest::new(&code);
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    guest.vm.register_ioevent(&event, &IoEventAddress::Mmio(DEVICE + 0x50), 1u32).unwrap();
    assert_eq!(guest.run_to_end(), ExitReason::GuestShutdown);
    assert_eq!(event.read().unwrap(), 1);
    assert_eq!(guest.mmio.writes(), [(0x50, vec![2, 0, 0, 0])]);
}

#[test]
fn an_irqfd_reaches_the_interrupt_controller() {
    let guest = Guest::new(&RESET);
    let line = EventFd::new(EFD_NONBLOCK).unwrap();
    guest.vm.register_irqfd(&line, 5).unwrap();
    line.write(1).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_PIC_MASTER, ..Default::default() };
        guest.vm.get_irqchip(&mut chip).unwrap();
        // SAFETY: KVM has filled in the member that the id asks for.
        if unsafe { chip.chip.pic.irr } & (1 << 5) != 0 {
            break;
        }
        assert!(Instant::now() < deadline, "interrupt 5 does not arrive");
        std::thread::yield_now();
    }
}

#[test]
fn a_thread_that_cannot_be_confined_runs_no_guest() {
    let mut guest = Guest::new(&with_reset(&[0xe6, 0xe9]));
    guest.vcpu.spawn(guest.around.clone(), || Err(io::ErrorKind::Other.into())).unwrap();
    guest.around.gate.open();
    guest.vcpu.thread.take().unwrap().join().unwrap();
    let reason = guest.around.exit.reason().unwrap();
    assert!(matches!(&reason, ExitReason::Internal(why) if why.contains("confined")), "{reason}");
    assert!(guest.ports.writes().is_empty());
}

#[test]
fn what_kvm_cannot_run_ends_the_machine_with_a_reason() {
    let guest = Guest::new(&RESET);
    let counters = VcpuCounters::default();
    let next = |exit| handle_exit(exit, &guest.around, &counters);
    assert_eq!(next(Ok(VcpuExit::Shutdown)), Next::End(ExitReason::TripleFault));
    assert_eq!(next(Err(kvm_ioctls::Error::new(libc::EINTR))), Next::LookAtGate);
    assert_eq!(next(Err(kvm_ioctls::Error::new(libc::EAGAIN))), Next::LookAtGate);
    assert!(matches!(next(Ok(VcpuExit::InternalError)), Next::Fault(_)));
    assert!(matches!(next(Ok(VcpuExit::FailEntry(7, 0))), Next::Fault(_)));
    assert!(matches!(next(Err(kvm_ioctls::Error::new(libc::EFAULT))), Next::Fault(_)));
}

#[test]
fn a_vcpu_runs_only_while_it_is_admitted() {
    let code = with_reset(&[0xb0, b'A', 0xe6, 0xe9, 0xe4, 0xe7, 0xe6, 0xe9]);
    let mut guest = Guest::new(&code);
    guest.around.gate.admit(0);
    guest.run();
    guest.around.gate.wait_for_all(1).unwrap();
    assert!(guest.ports.writes().is_empty());
    guest.around.gate.admit(1);
    guest.vcpu.thread.take().unwrap().join().unwrap();
    assert_eq!(guest.ports.writes().len(), 2);
}

#[test]
fn a_vcpu_that_ends_while_it_is_to_stop_counts_as_stopped() {
    let mut guest = Guest::new(&RESET);
    guest.run();
    guest.vcpu.thread.take().unwrap().join().unwrap();
    guest.around.gate.close();
    guest.around.gate.wait_for_all(1).unwrap();
    assert_eq!(guest.around.exit.reason(), Some(ExitReason::GuestShutdown));
}
