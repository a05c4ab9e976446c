//! The guest kernel's command line: ours first, then the devices, then the caller's words.
//!
//! Not `linux_loader`'s `Cmdline`, whose errors name neither the character nor the length that is wrong.

use crate::arch::x86_64::layout::{CMDLINE_MAX, VirtioWindow};

/// What every guest gets, each for a reason.
const WORDS: [(&str, &str); 12] = [
    ("console=ttyS0", "a panic must reach the host even when nothing else in the guest works"),
    ("quiet", "a line on the serial port costs an exit a byte; the log goes by vsock"),
    ("panic=-1", "after a panic reboot at once: that is how the host learns of the end"),
    (
        "reboot=k,f",
        "reset by the keyboard controller, which we emulate: the guest's only way out; by force: an IO-APIC that \
         ends with the machine is not masked first, which takes hundreds of exits",
    ),
    ("8250.nr_uarts=1", "there is one serial port: look for no others"),
    ("tsc=reliable", "KVM keeps the TSC steady: no watchdog, no calibration against other clocks"),
    (
        "noreplace-smp",
        "with one vCPU 8,000 LOCK prefixes would be patched out, each by a temporary mapping: it costs more than they do",
    ),
    ("no_timer_check", "the timer's interrupt works under KVM: don't spend 10 ticks to see it"),
    ("random.trust_cpu=on", "seed from RDRAND: nobody waits for entropy"),
    ("cryptomgr.notests", "no self-tests of ciphers at each start"),
    ("dummy.numdummies=0", "interfaces are those that a sandbox is given"),
    ("rcupdate.rcu_expedited=1", "grace periods of a start with few CPUs need not be batched"),
];

/// Why there is no command line.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CmdlineError {
    /// Longer than Linux takes.
    #[error("the kernel command line has {0} bytes; Linux takes {max}", max = CMDLINE_MAX - 1)]
    TooLong(usize),
    /// A control character or a byte that is not ASCII.
    #[error("the kernel command line contains {0:?}")]
    BadCharacter(char),
}

/// Builds the line for a guest that starts so many of its vCPUs by itself.
///
/// # Errors
/// See [`CmdlineError`].
pub fn build(vcpus: u32, devices: &[VirtioWindow], added: &str) -> Result<String, CmdlineError> {
    if let Some(bad) = added.chars().find(|c| !(' '..='~').contains(c)) {
        return Err(CmdlineError::BadCharacter(bad));
    }
    let mut words: Vec<String> = WORDS.iter().map(|(word, _)| (*word).to_owned()).collect();
    words.push(format!("maxcpus={vcpus}"));
    for VirtioWindow { address, len, irq, .. } in devices {
        words.push(format!("virtio_mmio.device={}K@{address:#x}:{irq}", len >> 10));
    }
    if !added.is_empty() {
        words.push(added.to_owned());
    }
    let line = words.join(" ");
    if line.len() >= CMDLINE_MAX {
        return Err(CmdlineError::TooLong(line.len()));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_come_after_our_words_and_the_callers_words_last() {
        let device = VirtioWindow { address: 0xd000_1000, len: 4096, irq: 6, notify_port: 0xc002 };
        let line = build(2, &[device], "a b=c").unwrap();
        assert!(line.starts_with("console=ttyS0 quiet panic=-1 reboot=k,f "));
        assert!(line.ends_with(" maxcpus=2 virtio_mmio.device=4K@0xd0001000:6 a b=c"), "{line}");
    }

    #[test]
    fn what_linux_would_cut_or_misread_is_refused() {
        assert_eq!(build(1, &[], "a\nb"), Err(CmdlineError::BadCharacter('\n')));
        assert_eq!(build(1, &[], "é"), Err(CmdlineError::BadCharacter('é')));
        assert!(matches!(build(1, &[], &"x".repeat(2048)), Err(CmdlineError::TooLong(_))));
    }
}
