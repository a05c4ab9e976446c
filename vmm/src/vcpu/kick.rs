//! Getting a thread out of `KVM_RUN`.

use kvm_ioctls::VcpuFd;
use std::cell::Cell;
use std::os::unix::thread::JoinHandleExt;
use std::sync::OnceLock;
use std::thread::JoinHandle;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs; null in any other thread.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
}

/// Only touches the thread-local cell and the byte it points to: async-signal-safe.
extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let byte = IMMEDIATE_EXIT.get();
    if !byte.is_null() {
        // SAFETY: `Registration` sets the pointer while the vCPU's mapping exists, and takes it
        // back on the same thread; the kernel reads the byte, so the write must not be elided.
        unsafe { byte.write_volatile(1) };
    }
}

/// Installs the handler, once per process; before any filter of system calls.
pub(super) fn install_handler() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        // Fails only for numbers that are no signal.
        let _ = register_signal_handler(SIGRTMIN(), on_kick);
    });
}

/// Kicks the vCPU that `thread` runs. Nothing happens if the thread has ended.
pub(super) fn send(thread: &JoinHandle<()>) {
    // SAFETY: the handle has not been joined, so the thread's id is still its own.
    let _ = unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGRTMIN()) };
}

/// While it lives, kicks of the current thread reach the vCPU.
pub(super) struct Registration(());

impl Registration {
    /// Registers the vCPU, which outlives the registration.
    pub(super) fn new(vcpu: &mut VcpuFd) -> Self {
        IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
        Self(())
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(std::ptr::null_mut());
    }
}
