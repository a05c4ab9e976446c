//! The same words to runc and to `kata-like`, in turn: what comes back, and when, is the same.

use crate::bundle::{Background, Bundle, config};
use crate::command::{Output, Running};
use crate::context::Context;
use anyhow::{Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

crate::cases!(
    crate::Scope::Once;
    an_exec_behaves_as_runcs;
    crate::Scope::AllOnce;
    hooks_run_when_they_should,
    poststop_hooks_run_when_a_create_fails,
    binds_follow_the_hosts_later_mounts_where_they_say_so,
);

const OURS: &str = "/usr/bin/kata-like";
const RUNCS: &str = "runc";

/// An exec: its flags, its arguments, what it reads, and how its error is told, when it must be one of ours and
/// runc's alike.
struct Exec {
    flags: &'static [&'static str],
    args: &'static [&'static str],
    error: &'static str,
}

const fn exec(flags: &'static [&'static str], args: &'static [&'static str]) -> Exec {
    Exec { flags, args, error: "" }
}

const EXECS: [Exec; 12] = [
    exec(&[], &["sh", "-c", "exit 42"]),
    exec(&[], &["sh", "-c", "kill -9 $$"]),
    exec(&[], &["sh", "-c", "echo out; echo err >&2"]),
    exec(&[], &["sh", "-c", "wc -c; md5sum /dev/null"]),
    exec(&[], &["sh", "-c", "id; pwd; umask; env | sort; cat /proc/self/cgroup"]),
    exec(
        &["--cwd", "/tmp", "-e", "NEW=1", "-u", "5:6", "-g", "7"],
        &["sh", "-c", "pwd; echo $NEW; id"],
    ),
    exec(&["-u", "5"], &["id"]),
    exec(&["-e", "PATH=/nowhere"], &["/bin/sh", "-c", "echo $PATH"]),
    exec(&["--cap", "CAP_NET_RAW"], &["grep", "Cap", "/proc/self/status"]),
    exec(&["--no-new-privs"], &["grep", "NoNewPrivs", "/proc/self/status"]),
    Exec { flags: &[], args: &["nosuch"], error: "executable file not found in $PATH" },
    Exec { flags: &[], args: &["/etc"], error: "/etc" },
];

/// What the exec said in a container of this runtime's; the text of an error is each runtime's own.
fn told(container: &Background, exec: &Exec) -> Result<(i32, String, String)> {
    let mut command = container.command("exec", exec.flags, exec.args);
    let running = Running::start(&mut command, b"some input\n".repeat(10_000))?;
    let Output { code, stdout, stderr } = running.finish(crate::command::DEADLINE)?;
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    if exec.error.is_empty() {
        return Ok((code, stdout, stderr));
    }
    if !stderr.contains(exec.error) {
        bail!("the error lacks {:?}: {stderr:?}", exec.error);
    }
    Ok((code, stdout, exec.error.to_owned()))
}

fn an_exec_behaves_as_runcs(context: &Context) -> Result<()> {
    let bundle = Bundle::new(context, &[])?;
    fs::create_dir(bundle.0.join("rootfs/etc"))?;
    let mut spec = config(&["sleep", "1000000"]);
    spec["process"]["env"] = json!(["PATH=/bin", "KEPT=1"]);
    // runc's exec wants some where it is to give more.
    let own = json!(["CAP_KILL", "CAP_SETUID", "CAP_SETGID"]);
    spec["process"]["capabilities"] = json!({"bounding": own, "effective": own, "permitted": own});
    if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
        namespaces.push(json!({"type": "cgroup"}));
    }
    bundle.write_config(&spec)?;
    let theirs = Background::run(context, RUNCS, &bundle)?;
    let ours = Background::run(context, OURS, &bundle)?;
    let mut wrong = String::new();
    for exec in &EXECS {
        let (expected, seen) = (told(&theirs, exec), told(&ours, exec));
        match (expected, seen) {
            (Ok(expected), Ok(seen)) if expected == seen => {}
            (expected, seen) => {
                let words = [exec.flags, exec.args].concat();
                wrong += &format!("\nexec {words:?}: runc {expected:?}, ours {seen:?}");
            }
        }
    }
    if !wrong.is_empty() {
        bail!("{wrong}");
    }
    Ok(())
}

/// What each hook has written so far: its name, and the status that it is told.
fn hooks_so_far(log: &Path) -> Result<Vec<String>> {
    let lines = fs::read_to_string(log).unwrap_or_default();
    let line = |line: &str| -> Result<String> {
        let (name, state) = line.split_once(' ').unwrap_or((line, "{}"));
        let state: serde_json::Value = serde_json::from_str(state)?;
        Ok(format!("{name} {}", state["status"]))
    };
    lines.lines().map(line).collect()
}

/// A bundle whose hooks write their names to a file, and that file; its container ends when `/go` is there.
fn with_hooks(context: &Context) -> Result<(Bundle, PathBuf, Value)> {
    let bundle = Bundle::new(context, &[])?;
    let log = bundle.0.join("hooks.log");
    let mut spec = config(&["sh", "-c", "until [ -e /go ]; do sleep 0.1; done"]);
    for kind in ["prestart", "createRuntime", "poststart", "poststop"] {
        let script = format!("(echo {kind} $(cat)) >> {}", log.display());
        spec["hooks"][kind] = json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}]);
    }
    bundle.write_config(&spec)?;
    Ok((bundle, log, spec))
}

/// After each step of a life: the hooks that have run.
fn hooks_of_a_life(
    context: &Context,
    runtime: &'static str,
) -> Result<Vec<(&'static str, Vec<String>)>> {
    let (bundle, log, _) = with_hooks(context)?;
    let container = Background::of(context, runtime, &bundle);
    let mut seen = Vec::new();
    container.begin("create", &[])?;
    seen.push(("create", hooks_so_far(&log)?));
    container.say("start", &[])?.expect_code(0)?;
    seen.push(("start", hooks_so_far(&log)?));
    fs::write(bundle.0.join("rootfs/go"), "")?;
    container.await_status("stopped")?;
    // Nothing says when a hook that should not run would have: it has this long.
    std::thread::sleep(std::time::Duration::from_secs(1));
    seen.push(("its end", hooks_so_far(&log)?));
    container.say("delete", &[])?.expect_code(0)?;
    seen.push(("delete", hooks_so_far(&log)?));
    Ok(seen)
}

fn hooks_run_when_they_should(context: &Context) -> Result<()> {
    let expected = hooks_of_a_life(context, RUNCS)?;
    let seen = hooks_of_a_life(context, OURS)?;
    // The lab's runc runs poststart hooks at the create; later ones run them at the start, as the specification says.
    let own = |hooks: &[String]| -> Vec<String> {
        let differs = |hook: &&String| hook.starts_with("poststart");
        hooks.iter().filter(|hook| !differs(hook)).cloned().collect()
    };
    for ((step, expected), (_, seen)) in expected.iter().zip(&seen) {
        if own(expected) != own(seen) {
            bail!("after {step} of ours {seen:?} have run, of runc's {expected:?}");
        }
    }
    let post = |hooks: &[String]| -> Vec<String> {
        hooks.iter().filter(|hook| hook.starts_with("post")).cloned().collect()
    };
    let ours: Vec<Vec<String>> = seen.iter().map(|(_, hooks)| post(hooks)).collect();
    let [start, end] = [r#"poststart "running""#, r#"poststop "stopped""#];
    if ours != [&[][..], &[start], &[start], &[start, end]] {
        bail!("after each step of ours {ours:?} have run");
    }
    Ok(())
}

/// A container that fails to be made is removed, and its hooks are told so.
fn poststop_hooks_run_when_a_create_fails(context: &Context) -> Result<()> {
    let seen = |runtime| -> Result<Vec<String>> {
        let (bundle, log, mut spec) = with_hooks(context)?;
        spec["hooks"]["createRuntime"] = json!([{"path": "/bin/false"}]);
        bundle.write_config(&spec)?;
        let container = Background::of(context, runtime, &bundle);
        if container.begin("create", &[]).is_ok() {
            bail!("{runtime}: a failing hook let the container be made");
        }
        container.say("state", &[])?.expect_error(&["does not exist"])?;
        hooks_so_far(&log)
    };
    let (expected, ours) = (seen(RUNCS)?, seen(OURS)?);
    let of_both = [r#"prestart "creating""#, r#"poststop "stopped""#];
    if expected != of_both || ours != of_both {
        bail!("of runc's {expected:?} have run, of ours {ours:?}");
    }
    Ok(())
}

/// A file system in memory, shared, with a file; gone when dropped.
struct Memory(PathBuf);

impl Memory {
    fn mount(at: PathBuf) -> Result<Self> {
        fs::create_dir(&at)?;
        mount(Some("tmpfs"), &at, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
        let memory = Self(at);
        mount(None::<&str>, &memory.0, None::<&str>, MsFlags::MS_SHARED, None::<&str>)?;
        fs::write(memory.0.join("file"), "")?;
        Ok(memory)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.0);
    }
}

fn binds_follow_the_hosts_later_mounts_where_they_say_so(context: &Context) -> Result<()> {
    let binds: [&[&str]; 8] = [
        &["rbind"],
        &["rbind", "rslave"],
        &["rbind", "private"],
        &["rbind", "rprivate"],
        &["rbind", "rprivate", "slave"],
        &["rbind", "slave", "private"],
        &["bind"],
        &["bind", "private"],
    ];
    let script = "for bind in 0 1 2 3 4 5 6 7; do cd /$bind
        for at in . below later below/later; do test -e $at/file && echo -n \"$at \"; done; echo; done";
    let mut said = Vec::new();
    for runtime in [RUNCS, OURS] {
        let source = Memory::mount(PathBuf::from(format!("/var/tmp/{}", context.fresh_id())))?;
        let _below = Memory::mount(source.0.join("below"))?;
        let bundle = Bundle::new(context, &[])?;
        let mut spec = config(&["sleep", "1000000"]);
        let mounts = binds.iter().enumerate().map(|(number, options)| {
            json!({"destination": format!("/{number}"), "type": "bind", "source": source.0, "options": options})
        });
        if let Some(all) = spec["mounts"].as_array_mut() {
            all.extend(mounts);
        }
        bundle.write_config(&spec)?;
        let container = Background::run(context, runtime, &bundle)?;
        let _later = Memory::mount(source.0.join("later"))?;
        let _later_below = Memory::mount(source.0.join("below/later"))?;
        let look = container.say("exec", &["sh", "-c", script])?.expect_code(0)?;
        said.push(look.text());
    }
    if said[0] != said[1] {
        bail!("runc's: {:?}\nours: {:?}", said[0], said[1]);
    }
    Ok(())
}
