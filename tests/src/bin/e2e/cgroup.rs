//! The host's cgroup of a sandbox's processes: where `linux.cgroupsPath` says, as large as it must be, gone with them.

use crate::bundle::{Bundle, config};
use crate::command::{self, DEADLINE};
use crate::confinement::pid_of;
use crate::context::Context;
use crate::disks::{Image, LoopDevice};
use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

crate::cases!(
    crate::Scope::Once;
    a_shims_processes_are_in_its_containers_cgroup,
    the_command_line_does_as_runc,
    a_cgroup_that_others_use_is_refused;
    crate::Scope::AllOnce;
    limits_by_the_hosts_numbers_are_the_hosts,
    a_killed_shim_leaves_no_cgroup,
    what_is_kept_of_a_run_keeps_its_cgroup,
    weights_of_disks_are_the_hosts,
);

const ROOT: &str = "/sys/fs/cgroup";
const LIMIT: u64 = 256 << 20;

/// What a file of a cgroup says.
pub fn read(directory: &Path, file: &str) -> Result<String> {
    let path = directory.join(file);
    Ok(fs::read_to_string(&path).with_context(|| path.display().to_string())?.trim().to_owned())
}

/// The cgroup of a process, on the host.
pub fn of(pid: u32) -> Result<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = text.trim().strip_prefix("0::/").context("a cgroup of version 2")?;
    Ok(Path::new(ROOT).join(path))
}

fn gone(directory: &Path) -> Result<()> {
    command::eventually(&format!("{} is gone", directory.display()), DEADLINE, || {
        Ok(!directory.exists())
    })
}

/// Room for the limit and for what the machine costs, but not without end.
fn check_memory(directory: &Path) -> Result<()> {
    let most: u64 = read(directory, "memory.max")?.parse()?;
    ensure!(most > LIMIT + (64 << 20) && most < 3 * LIMIT, "memory.max is {most}");
    Ok(())
}

fn a_shims_processes_are_in_its_containers_cgroup(context: &Context) -> Result<()> {
    let limit = LIMIT.to_string();
    let run = context.container().flag("--memory-limit").flag(&limit).flag("--cpus").flag("0.5");
    let container = run.detached(&["sleep", "1000000"])?;
    let directory = of(pid_of("kata-like-vmm")?)?;
    ensure!(
        directory.ends_with(Path::new("default").join(&container.id)),
        "{}",
        directory.display()
    );
    let file_servers = directory.join("file-server");
    ensure!(of(pid_of("kata-like-fs")?)? == file_servers, "the file server is elsewhere");
    check_no_device_opens(&file_servers)?;
    ensure!(of(pid_of("containerd-shim-kata-like-v2")?)? == directory, "the shim is elsewhere");
    check_memory(&directory)?;
    let most = read(&directory, "cpu.max")?;
    ensure!(most == "50000 100000", "cpu.max is {most}");
    let used: u64 = read(&directory, "memory.current")?.parse()?;
    ensure!(used > 16 << 20, "the guest's memory is not counted: {used}");
    container.remove()?;
    gone(&directory)
}

/// As a file server that a guest has made its own would try it.
fn check_no_device_opens(cgroup: &Path) -> Result<()> {
    let script = "echo $$ > $0/cgroup.procs || exit 1; n=/run/e2e-node; mknod $n c 1 3 || exit 2; \
                  head -c 1 /proc/version > /run/e2e-file || exit 3; \
                  (: < $n) 2>&1 && exit 4; (: > /dev/null) 2>&1 && exit 5; exit 0";
    let said = command::output(Command::new("sh").args(["-c", script]).arg(cgroup));
    fs::remove_file("/run/e2e-node")?;
    fs::remove_file("/run/e2e-file")?;
    let text = said?.expect_code(0)?.text();
    ensure!(text.matches("Operation not permitted").count() == 2, "devices: {text}");
    Ok(())
}

fn a_killed_shim_leaves_no_cgroup(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    let shim = pid_of("containerd-shim-kata-like-v2")?;
    let directory = of(shim)?;
    kill(Pid::from_raw(shim.cast_signed()), Signal::SIGKILL)?;
    command::eventually("the task is gone or stopped", DEADLINE, || {
        Ok(container.status()?.is_none_or(|status| status == "STOPPED"))
    })?;
    gone(&directory)?;
    drop(container);
    crate::crash::remove_fifos_of_ctr()
}

fn kata(args: &[&str]) -> Result<command::Output> {
    command::output(Command::new("/usr/bin/kata-like").args(args))
}

/// A bundle that waits, with this `cgroupsPath`.
fn bundle(context: &Context, path: &str) -> Result<Bundle> {
    let bundle = Bundle::new(context, &["true"])?;
    let mut config = config(&["sleep", "1000000"]);
    config["linux"]["cgroupsPath"] = path.into();
    config["linux"]["resources"] = json!({"memory": {"limit": LIMIT}, "pids": {"limit": 7}});
    bundle.write_config(&config)?;
    Ok(bundle)
}

/// `kata-like run --detach`; what it said, if it failed.
fn run(bundle: &Bundle, id: &str) -> Result<Result<(), String>> {
    let out = bundle.0.join("out");
    let file = fs::File::create(&out)?;
    let mut run = Command::new("/usr/bin/kata-like");
    run.args(["run", "--detach", "--bundle"]).arg(&bundle.0).arg(id).stdin(Stdio::null());
    let status = run.stdout(file.try_clone()?).stderr(file).status()?;
    Ok(if status.success() { Ok(()) } else { Err(fs::read_to_string(&out)?) })
}

fn pid(id: &str) -> Result<u32> {
    let state: Value = serde_json::from_str(&kata(&["state", id])?.expect_code(0)?.text())?;
    Ok(state["pid"].as_u64().context("pid")?.try_into()?)
}

fn the_command_line_does_as_runc(context: &Context) -> Result<()> {
    let id = context.fresh_id();
    let directory = Path::new(ROOT).join("e2e").join(&id);
    let bundle = bundle(context, &format!("/e2e/{id}"))?;
    // One that was there before is used, and is not ours to remove.
    for there in [false, true] {
        if there {
            fs::create_dir_all(&directory)?;
            hand_down(&directory)?;
            fs::write(directory.join("cpu.max"), "250000 200000")?;
        }
        if let Err(said) = run(&bundle, &id)? {
            bail!("{said}");
        }
        ensure!(of(pid(&id)?)? == directory, "the monitor is elsewhere");
        ensure!(of(pid_of("kata-like-vmm")?)? == directory, "the VMM is elsewhere");
        check_memory(&directory)?;
        ensure!(read(&directory, "pids.max")? == "max", "the container's limit is the guest's");
        let most = read(&directory, "cpu.max")?;
        ensure!(most == if there { "250000 200000" } else { "max 100000" }, "cpu.max is {most}");
        kata(&["update", "--cpu-quota", "75000", "--cpu-period", "50000", &id])?.expect_code(0)?;
        let most = read(&directory, "cpu.max")?;
        ensure!(most == "75000 50000", "cpu.max is {most}");
        for (quota, burst) in [("75000", "60000"), ("30000", "20000"), ("90000", "0")] {
            let change = ["update", "--cpu-quota", quota, "--cpu-burst", burst, &id];
            kata(&change)?.expect_code(0)?;
            let saved = read(&directory, "cpu.max.burst")?;
            ensure!(saved == burst, "cpu.max.burst is {saved}, not {burst}");
        }
        if there {
            kata(&["delete", "--force", &id])?.expect_code(0)?;
            ensure!(directory.exists(), "a cgroup of others' was removed");
            fs::remove_dir(&directory)?;
            fs::remove_dir(directory.parent().context("a parent")?)?;
        } else {
            kill(Pid::from_raw(pid(&id)?.cast_signed()), Signal::SIGKILL)?;
            kata(&["delete", "--force", &id])?.expect_code(0)?;
            gone(&directory)?;
        }
    }
    Ok(())
}

fn what_is_kept_of_a_run_keeps_its_cgroup(context: &Context) -> Result<()> {
    let id = context.fresh_id();
    let directory = Path::new(ROOT).join("e2e").join(&id);
    let bundle = Bundle::new(context, &["true"])?;
    let mut config = config(&["true"]);
    config["linux"]["cgroupsPath"] = format!("/e2e/{id}").into();
    bundle.write_config(&config)?;
    let path = bundle.0.to_str().context("a path")?;
    kata(&["run", "--keep", "--bundle", path, &id])?.expect_code(0)?;
    ensure!(read(&directory, "cgroup.procs")?.is_empty(), "somebody is left in it");
    ensure!(read(&directory, "pids.max")? == "max", "the container's limit is the guest's");
    kata(&["delete", &id])?.expect_code(0)?;
    gone(&directory)
}

/// Has those above a cgroup hand it the processors.
fn hand_down(directory: &Path) -> Result<()> {
    let above = directory.ancestors().skip(1).take_while(|above| above.starts_with(ROOT));
    for above in above.collect::<Vec<_>>().into_iter().rev() {
        fs::write(above.join("cgroup.subtree_control"), "+cpu")?;
    }
    Ok(())
}

fn a_cgroup_that_others_use_is_refused(context: &Context) -> Result<()> {
    let id = context.fresh_id();
    let directory = Path::new(ROOT).join(&id);
    let bundle = bundle(context, &format!("/{id}"))?;
    fs::create_dir(&directory)?;
    let mut other = Command::new("sleep").arg("1000").spawn()?;
    fs::write(directory.join("cgroup.procs"), other.id().to_string())?;
    let outcome = run(&bundle, &id)?;
    other.kill()?;
    other.wait()?;
    fs::remove_dir(&directory)?;
    match outcome {
        Err(said) if said.contains("not empty") => Ok(()),
        outcome => bail!("{outcome:?}"),
    }
}

/// Processors, and disks whether the container has them or not: what of them it uses its sandbox uses.
fn limits_by_the_hosts_numbers_are_the_hosts(context: &Context) -> Result<()> {
    let id = context.fresh_id();
    let directory = Path::new(ROOT).join("e2e").join(&id);
    let bundle = bundle(context, &format!("/e2e/{id}"))?;
    let stat = fs::metadata("/")?.dev();
    let disk = format!("{}:{}", nix::sys::stat::major(stat), nix::sys::stat::minor(stat));
    let (major, minor) = disk.split_once(':').context("two numbers")?;
    let rate = |rate: u64| {
        let (major, minor): (u64, u64) = (major.parse()?, minor.parse()?);
        anyhow::Ok(json!([{"major": major, "minor": minor, "rate": rate}]))
    };
    let mut config = config(&["sleep", "1000000"]);
    config["linux"]["cgroupsPath"] = format!("/e2e/{id}").into();
    config["linux"]["resources"] = json!({
        "cpu": {"cpus": "0", "mems": "0"},
        "unified": {"io.max": format!("{disk} riops=333\n")},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}],
    });
    bundle.write_config(&config)?;
    if let Err(said) = run(&bundle, &id)? {
        bail!("{said}");
    }
    let says = |file: &str, expected: &str| {
        let said = read(&directory, file)?;
        ensure!(said == expected, "{file} is {said:?}, not {expected:?}");
        Ok(())
    };
    says("cpuset.cpus", "0")?;
    says("cpuset.mems", "0")?;
    says("io.max", &format!("{disk} rbps=max wbps=max riops=333 wiops=max"))?;
    says("hugetlb.2MB.max", "4194304")?;
    let all = fs::read_to_string(format!("{ROOT}/cpuset.cpus.effective"))?;
    let change = bundle.0.join("change.json");
    let to = json!({"cpu": {"cpus": all.trim()},
        "blockIO": {"throttleWriteBpsDevice": rate(9_437_184)?, "throttleReadIOPSDevice": rate(0)?}});
    fs::write(&change, to.to_string())?;
    let change = change.to_str().context("a path")?;
    kata(&["update", "--resources", change, &id])?.expect_code(0)?;
    says("cpuset.cpus", all.trim())?;
    says("io.max", &format!("{disk} rbps=max wbps=9437184 riops=max wiops=max"))?;
    kata(&["update", "--cpuset-cpus", "77", &id])?.expect_error(&["cpuset.cpus"])?;
    says("cpuset.cpus", all.trim())?;
    kata(&["delete", "--force", &id])?.expect_code(0)?;
    gone(&directory)
}

/// With the scheduler that knows them.
fn weights_of_disks_are_the_hosts(context: &Context) -> Result<()> {
    command::output(Command::new("modprobe").arg("bfq"))?.expect_code(0)?;
    let device = LoopDevice::new(Image::ext4(context)?)?;
    let name = device.path.strip_prefix("/dev/").context("a device")?;
    fs::write(format!("/sys/block/{name}/queue/scheduler"), "bfq")?;
    let numbers = device.numbers()?;
    let (major, minor) = numbers.split_once(':').context("two numbers")?;
    let (major, minor): (u64, u64) = (major.parse()?, minor.parse()?);
    let weights = |all: u16, one: u16| {
        let one = json!([{"major": major, "minor": minor, "weight": one}]);
        json!({"blockIO": {"weight": all, "weightDevice": one}})
    };
    let id = context.fresh_id();
    let directory = Path::new(ROOT).join("e2e").join(&id);
    let bundle = bundle(context, &format!("/e2e/{id}"))?;
    let mut config = config(&["sleep", "1000000"]);
    config["linux"]["cgroupsPath"] = format!("/e2e/{id}").into();
    config["linux"]["resources"] = weights(333, 444);
    bundle.write_config(&config)?;
    if let Err(said) = run(&bundle, &id)? {
        bail!("{said}");
    }
    let says = |expected: String| {
        let said = read(&directory, "io.bfq.weight")?;
        ensure!(said == expected, "io.bfq.weight is {said:?}, not {expected:?}");
        Ok(())
    };
    says(format!("default 333\n{numbers} 444"))?;
    let change = bundle.0.join("change.json");
    fs::write(&change, weights(111, 222).to_string())?;
    let change = change.to_str().context("a path")?;
    kata(&["update", "--resources", change, &id])?.expect_code(0)?;
    says(format!("default 111\n{numbers} 222"))?;
    kata(&["delete", "--force", &id])?.expect_code(0)?;
    gone(&directory)
}
