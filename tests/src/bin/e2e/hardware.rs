//! The machine as its guest sees it, and how it ends while it changes.

use crate::bundle::{self, Bundle};
use crate::command;
use crate::context::Context;
use crate::machine::{self, Machine};
use anyhow::{Context as _, Result, bail};
use protocol::control::{Command, Event, ExitReason};
use protocol::machine::{MEMORY_BLOCK_MIB, Size};
use std::fs;
use std::time::Instant;

crate::cases!(
    crate::Scope::Once;
    six_vcpus_are_one_package_of_six_cores,
    a_guest_that_ends_while_its_machine_changes_is_told_as_such,
    interrupts_of_devices_are_messages_and_follow_their_processor;
    crate::Scope::AllOnce;
    memory_goes_on_above_the_hole_below_4_gib,
    an_idle_guest_is_not_woken_to_see_whether_it_is_busy,
    virtual_machines_in_a_guest_are_offered_where_that_is_configured,
    requests_are_exits_that_say_by_themselves_what_they_are,
);

/// What `script` says in a container whose machine has this configuration.
fn told(context: &Context, config: &str, script: &str) -> Result<String> {
    let path = format!("/tmp/{}.toml", context.fresh_id());
    fs::write(&path, config)?;
    let run = context.container().flag("--runtime-config-path").flag(&path);
    let outcome = run.output(&["sh", "-c", script]).and_then(|output| output.expect_code(0));
    fs::remove_file(&path)?;
    Ok(outcome?.text())
}

/// The lab's own processor offers SVM, or nothing here could run.
fn virtual_machines_in_a_guest_are_offered_where_that_is_configured(
    context: &Context,
) -> Result<()> {
    for (config, offered) in [("", "0"), ("[machine]\nnested = true\n", "1")] {
        let count = "grep -c -w -E 'svm|vmx' /proc/cpuinfo; true";
        let seen = told(context, config, count)?;
        if seen.trim() != offered {
            bail!("with {config:?} {seen:?} processors offer it");
        }
    }
    Ok(())
}

fn six_vcpus_are_one_package_of_six_cores(context: &Context) -> Result<()> {
    let script = "cd /sys/devices/system/cpu; for n in 0 1 2 3 4 5; do \
        cd cpu$n/topology; echo $(cat physical_package_id core_id thread_siblings_list \
        package_cpus_list); cd ../..; done";
    let seen = told(context, "[machine]\nvcpus = 6\n", script)?;
    let expected: Vec<_> = (0..6).map(|n| format!("0 {n} {n} 0-5")).collect();
    if seen.trim() != expected.join("\n") {
        bail!("package, core, siblings, package's processors:\n{seen}");
    }
    Ok(())
}

fn memory_goes_on_above_the_hole_below_4_gib(context: &Context) -> Result<()> {
    // 512 MiB lie above 4 GiB, where Linux puts its own first.
    let config = "[machine]\nmemory_mib = 3584\n";
    let seen = told(context, config, "grep MemTotal: /proc/meminfo")?;
    let kib: u64 = seen.split_whitespace().nth(1).context("no number")?.parse()?;
    if !(3_400..3_584).contains(&(kib >> 10)) {
        bail!("the guest has {seen}");
    }
    Ok(())
}

/// No write to a device's registers, for which KVM has to look at a page fault and decode what was written.
fn requests_are_exits_that_say_by_themselves_what_they_are(context: &Context) -> Result<()> {
    const REQUESTS: u64 = 500;
    let container = context.sleeper()?;
    let counted = |what: &str| -> Result<u64> {
        let kvm = "/sys/kernel/debug/kvm";
        if !fs::exists(kvm)? {
            let mut mount = std::process::Command::new("mount");
            mount.args(["-t", "debugfs", "debugfs", "/sys/kernel/debug"]);
            command::output(&mut mount)?.expect_code(0)?;
        }
        Ok(fs::read_to_string(format!("{kvm}/{what}"))?.trim().parse()?)
    };
    let (emulated, ports) = (counted("pf_emulate")?, counted("io_exits")?);
    // Each opens the file and writes to it.
    let append = format!("for i in $(seq {REQUESTS}); do echo >> /file; done");
    container.exec(&["sh", "-c", &append])?.expect_code(0)?;
    let (emulated, ports) = (counted("pf_emulate")? - emulated, counted("io_exits")? - ports);
    println!("{emulated} page faults were emulated, {ports} exits were of ports");
    if emulated > REQUESTS / 10 || ports < REQUESTS {
        bail!("of {REQUESTS} requests KVM emulated {emulated} writes and saw {ports} at ports");
    }
    container.remove()
}

/// No line's, for which the host needs a thread; they go where the guest's kernel sends them, and to another processor when
/// theirs goes.
fn interrupts_of_devices_are_messages_and_follow_their_processor(context: &Context) -> Result<()> {
    const REQUESTS: u64 = 200;
    let script = format!(
        "irqs=$(awk -F: '/virtio-mmio/ {{print $1}}' /proc/interrupts)
        seen() {{ awk -v c=$1 '/virtio-mmio/ {{n += $(c + 2)}} END {{print n + 0}}' /proc/interrupts; }}
        work() {{ for i in $(seq {REQUESTS}); do echo >> /file; done; }}
        echo $irqs | wc -w; grep -c 'IO-APIC.*virtio' /proc/interrupts
        n=$(seen 0); work; echo $(($(seen 0) - n))
        for irq in $irqs; do echo 1 > /proc/irq/$irq/smp_affinity_list; done
        n=$(seen 1); work; echo $(($(seen 1) - n))
        echo 0 > /sys/devices/system/cpu/cpu1/online
        n=$(seen 0); work; echo $(($(seen 0) - n))"
    );
    let path = format!("/tmp/{}.toml", context.fresh_id());
    fs::write(&path, "[machine]\nvcpus = 2\n")?;
    let run = context.container().flag("--privileged").flag("--runtime-config-path").flag(&path);
    let outcome = run.output(&["sh", "-c", &script]).and_then(|output| output.expect_code(0));
    fs::remove_file(&path)?;
    let seen = outcome?.text();
    let numbers: Vec<u64> = seen.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [messages, lines, first, second, back] = numbers[..] else { bail!("{seen:?}") };
    if messages < 5 || lines > 0 || [first, second, back].iter().any(|n| *n < REQUESTS / 2) {
        bail!("messages, lines, interrupts at the first, the second, again the first: {numbers:?}");
    }
    Ok(())
}

/// By no thread of the kernel's that looks after processors: it would wake the guest ten times a second.
fn an_idle_guest_is_not_woken_to_see_whether_it_is_busy(context: &Context) -> Result<()> {
    let bundle = Bundle::new(context, &["ps", "-o", "comm"])?;
    let mut config = bundle::config(&["ps", "-o", "comm"]);
    let namespaces = config["linux"]["namespaces"].as_array_mut().context("no namespaces")?;
    // Then it sees all of the guest's.
    namespaces.retain(|namespace| namespace["type"] != "pid");
    bundle.write_config(&config)?;
    let seen = command::output(&mut bundle.run_command("/usr/bin/kata-like")?)?.expect_code(0)?;
    let seen = seen.text();
    if !seen.contains("kswapd") || seen.contains("psimon") {
        bail!("the guest's processes are:\n{seen}");
    }
    Ok(())
}

/// Without a first process the kernel panics and resets the machine, which all the while is given memory and
/// processors and loses them again.
fn a_guest_that_ends_while_its_machine_changes_is_told_as_such(context: &Context) -> Result<()> {
    for _ in 0..context.many {
        let console = format!("/tmp/{}-console.log", context.fresh_id());
        let mut config = machine::config(1, &console);
        config.cmdline = "rdinit=/none init=/none".into();
        config.max = Size { vcpus: 2, added_mib: 4 * MEMORY_BLOCK_MIB };
        let mut machine = Machine::start(config)?;
        let end = Instant::now() + command::DEADLINE;
        let mut changes = 0u64;
        let reason = loop {
            match machine.next_event(end)? {
                Event::Exited { reason } => break reason,
                Event::Failed { error, remedy } => bail!("{error}: {remedy}"),
                Event::Done { outcome: Err(why) } => bail!("a change failed: {why}"),
                Event::Running(_) | Event::Done { .. } => {
                    let size = Size { vcpus: 2, added_mib: (changes % 5) * MEMORY_BLOCK_MIB };
                    changes += 1;
                    // The machine may end first; why is yet to be read.
                    let _ = machine.command(&Command::Resize(size));
                }
                _ => {}
            }
        };
        fs::remove_file(&console)?;
        if reason != ExitReason::GuestPanic || changes < 2 {
            bail!("after {changes} changes: {reason}");
        }
    }
    Ok(())
}
