//! The ground holds: guest after guest, each counted as good when its agent has reported in.

use crate::context::Context;
use crate::machine::{self, Machine};
use anyhow::{Result, bail};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

crate::cases!(
    crate::Scope::AllOnce;
    guest_after_guest,
    guests_six_at_a_time,
);

/// Far beyond any start seen: what takes this long hangs.
const REPORT_IN: Duration = Duration::from_secs(60);

/// Of each number of vCPUs as many as `--many` says.
fn guest_after_guest(context: &Context) -> Result<()> {
    for number in 0..3 * context.many {
        one(context, number)?;
    }
    Ok(())
}

fn guests_six_at_a_time(context: &Context) -> Result<()> {
    std::thread::scope(|scope| {
        let lane = |lane: u32| {
            let turns = context.many.div_ceil(2);
            move || (0..turns).try_for_each(|turn| one(context, 1000 + lane * turns + turn))
        };
        let lanes: Vec<_> = (0..6).map(|number| scope.spawn(lane(number))).collect();
        for lane in lanes {
            lane.join().unwrap_or_else(|_| bail!("a lane panicked"))?;
        }
        Ok(())
    })
}

/// One guest with 1, 2 or 4 vCPUs by its number; what a hung one left is kept.
fn one(context: &Context, number: u32) -> Result<()> {
    let vcpus = [1, 2, 4][number as usize % 3];
    let console = format!("/tmp/{}-console.log", context.fresh_id());
    let mut machine = Machine::start(machine::config(vcpus, &console))?;
    let reported = machine.await_agent(REPORT_IN);
    if let Err(error) = reported {
        let kept = context.artifacts.join("boot");
        fs::create_dir_all(&kept)?;
        let counters = machine.counters();
        fs::write(kept.join(format!("{number}-counters")), format!("{counters:#?}\n"))?;
        let _ = fs::copy(&console, kept.join(format!("{number}-console")));
        let _ = copy_kvm_statistics(&kept.join(format!("{number}-kvm")));
        fs::remove_file(&console)?;
        return Err(error.context(format!("guest {number} with {vcpus} vCPUs")));
    }
    machine.stop()?;
    Ok(fs::remove_file(&console)?)
}

/// KVM's own counters (debugfs), where the kernel gives them.
fn copy_kvm_statistics(to: &Path) -> Result<()> {
    let mut text = String::new();
    for entry in fs::read_dir("/sys/kernel/debug/kvm")?.flatten() {
        if let Ok(value) = fs::read_to_string(entry.path()) {
            writeln!(text, "{} {}", entry.file_name().to_string_lossy(), value.trim())?;
        }
    }
    Ok(fs::write(to, text)?)
}
