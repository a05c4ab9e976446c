//! The OCI runtime-spec inside the guest: every field is seen there, and as runc gives it.

mod fields;
mod generator;
mod probe;

use crate::bundle::{Background, Bundle, config};
use crate::command::{self, Output};
use crate::context::Context;
use anyhow::{Context as _, Result, bail};
use fields::Field;
use nix::mount::{MntFlags, umount2};
use serde_json::{Value, json};
use std::process::Command;

crate::cases!(
    crate::Scope::Once;
    what_runc_knows_is_seen_as_runc_gives_it,
    hooks_run_on_the_host_and_one_in_the_guest,
    what_cannot_be_had_is_refused_by_name;
    crate::Scope::AllOnce;
    generated_specs_mean_what_they_mean_to_runc,
    what_crun_knows_is_seen_as_crun_gives_it,
    an_exec_sees_what_it_sees_on_runc,
    flags_of_a_hosts_mount_are_those_that_a_bind_has_on_runc,
    a_memory_policy_holds_for_the_init_and_for_execs,
);

/// A spec with the usual mounts, whose process tells what it sees.
fn base(probes: &str) -> Value {
    let script = format!("{}\n{probes}\n:", probe::SCRIPT);
    let mut spec = config(&["sh", "-c", &script, "zero", "one two", ""]);
    spec["mounts"] = json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
         "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
         "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs",
         "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
         "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
    ]);
    spec["process"]["oomScoreAdj"] = json!(0);
    let namespaces = ["pid", "mount", "uts", "ipc", "network", "cgroup"];
    spec["linux"] = json!({
        "namespaces": namespaces.map(|kind| json!({"type": kind})),
        "resources": {"devices": [{"allow": false, "access": "rwm"}]},
        "cgroupsPath": "/kata-like-spec",
    });
    spec
}

/// Runs the spec both ways; what the process said in the guest.
fn compare(bundle: &Bundle, spec: &Value, reference: &str) -> Result<String> {
    bundle.write_config(spec)?;
    let told = |output: Output| -> Result<String> { Ok(output.expect_code(0)?.text()) };
    let expected = told(bundle.run_on_the_host(reference)?).context(reference.to_owned())?;
    let seen = told(bundle.run()?)?;
    no_difference(reference, &expected, &seen)?;
    Ok(seen)
}

/// Fails when what the two processes of a spec said differs in what it should not.
fn no_difference(reference: &str, expected: &str, seen: &str) -> Result<()> {
    let (expected, ours) = (probe::normalised(expected), probe::normalised(seen));
    let lacks = |from: &[String], of: &[String], who: &str| -> String {
        let lines = from.iter().filter(|line| !of.contains(line));
        lines.map(|line| format!("\n{who}: {line}")).collect()
    };
    let difference = lacks(&expected, &ours, reference) + &lacks(&ours, &expected, "guest");
    if !difference.is_empty() {
        bail!("the guest differs from {reference}:{difference}");
    }
    Ok(())
}

/// What a second process of a container says that `runtime` runs in the background.
fn told_by_an_exec(context: &Context, runtime: &'static str, bundle: &Bundle) -> Result<String> {
    let container = Background::run(context, runtime, bundle).context(runtime)?;
    let probe = ["sh", "-c", probe::SCRIPT, "zero", "one two", ""];
    Ok(container.say("exec", &probe)?.expect_code(0).context(runtime)?.text())
}

/// Of every field that a process sees, and of some specs at random.
fn an_exec_sees_what_it_sees_on_runc(context: &Context) -> Result<()> {
    let bundle = Bundle::new(context, &[])?;
    fields::prepare(&bundle)?;
    let mut specs = Vec::new();
    for group in fields::OF_RUNC {
        let mut spec = base("");
        for field in *group {
            field.set(&mut spec, &bundle)?;
        }
        specs.push(spec);
    }
    specs.extend((1..=3).map(|seed| generator::spec(seed, base(""), &bundle)));
    let mut wrong = String::new();
    for (number, mut spec) in specs.into_iter().enumerate() {
        spec["process"]["args"] = json!(["sleep", "1000000"]);
        // Ours have the container's; runc's have that of who calls it.
        if let Some(user) = spec["process"]["user"].as_object_mut() {
            user.remove("umask");
        }
        bundle.write_config(&spec)?;
        let expected = told_by_an_exec(context, "runc", &bundle)?;
        let seen = told_by_an_exec(context, "/usr/bin/kata-like", &bundle)?;
        if let Err(error) = no_difference("runc", &expected, &seen) {
            wrong += &format!("\nspec {number}: {error:#}");
        }
    }
    if !wrong.is_empty() {
        bail!("{wrong}");
    }
    Ok(())
}

/// Runs a spec with all these fields, and looks for each in what its process says.
fn fields_are_seen(context: &Context, groups: &[&[Field]], reference: &str) -> Result<()> {
    let mut wrong = String::new();
    for group in groups {
        let probes: String = group.iter().map(Field::script).collect();
        let mut spec = base(&probes);
        let bundle = Bundle::new(context, &[])?;
        fields::prepare(&bundle)?;
        for field in *group {
            field.set(&mut spec, &bundle).with_context(|| field.pointer.to_owned())?;
        }
        match compare(&bundle, &spec, reference) {
            Ok(said) => wrong.extend(group.iter().filter_map(|field| field.missing_in(&said))),
            Err(error) => wrong += &format!("\n{error:#}"),
        }
    }
    if !wrong.is_empty() {
        bail!("{wrong}");
    }
    Ok(())
}

fn what_runc_knows_is_seen_as_runc_gives_it(context: &Context) -> Result<()> {
    fields_are_seen(context, fields::OF_RUNC, "runc")
}

/// What came to the runtime-spec after the lab's runc.
fn what_crun_knows_is_seen_as_crun_gives_it(context: &Context) -> Result<()> {
    fields_are_seen(context, fields::OF_CRUN, "crun")
}

fn generated_specs_mean_what_they_mean_to_runc(context: &Context) -> Result<()> {
    let bundle = Bundle::new(context, &[])?;
    fields::prepare(&bundle)?;
    for seed in generator::seeds()? {
        let spec = generator::spec(seed, base(""), &bundle);
        compare(&bundle, &spec, "runc").with_context(|| format!("KATA_LIKE_SEED={seed}"))?;
    }
    Ok(())
}

/// Each hook writes its name, and the state that it is given, to a file.
fn hooks_run_on_the_host_and_one_in_the_guest(context: &Context) -> Result<()> {
    let bundle = Bundle::new(context, &[])?;
    let log = bundle.0.join("hooks.log");
    let hook = |kind: &str, to: &std::path::Path| {
        let script = format!("(echo {kind} $(cat)) >> {}", to.display());
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}])
    };
    let mut spec = config(&["sh", "-c", "cat /hooks.log; ls /made; cat /data/file"]);
    for kind in ["prestart", "createRuntime", "poststart", "poststop"] {
        spec["hooks"][kind] = hook(kind, &log);
    }
    // It begins in the root file system, and what it mounts there the container sees.
    let script = format!(
        "cp {0}/rootfs/bin/busybox made && mkdir -p data && mount -t tmpfs none data && echo mounted > data/file; \
         (echo createContainer $(cat)) >> {1}",
        bundle.0.display(),
        log.display()
    );
    spec["hooks"]["createContainer"] = json!([{"path": "/bin/sh", "args": ["sh", "-c", script],
        "env": ["PATH=/bin:/usr/bin"]}]);
    spec["hooks"]["startContainer"] = hook("startContainer", std::path::Path::new("/hooks.log"));
    bundle.write_config(&spec)?;
    let inside = bundle.run()?.expect_code(0)?.text();
    let outside = std::fs::read_to_string(&log)?;
    let order = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];
    let names: Vec<&str> = outside.lines().filter_map(|line| line.split(' ').next()).collect();
    let states = ["creating", "creating", "creating", "running", "stopped"];
    let told = outside.lines().zip(states).all(|(line, state)| {
        let status = format!("\"status\":\"{state}\"");
        line.replace(": ", ":").contains(&status) && line.contains(&*bundle.0.to_string_lossy())
    });
    let seen = inside.starts_with("startContainer {") && inside.ends_with("/made\nmounted");
    if names != order || !told || !seen {
        bail!("on the host: {outside}\nin the guest: {inside}");
    }
    Ok(())
}

/// On runc and on ours, without and with a user namespace, where those are kept that nobody could clear.
fn flags_of_a_hosts_mount_are_those_that_a_bind_has_on_runc(context: &Context) -> Result<()> {
    let bundle = Bundle::new(context, &[])?;
    let directory = bundle.0.join("flagged");
    std::fs::create_dir(&directory)?;
    let mounted = |options: &str, more: &[&str]| {
        let mut mount = Command::new("mount");
        command::output(mount.args(more).args(["-o", options]).arg(&directory))?.expect_code(0)
    };
    mounted("mode=0777,strictatime", &["-t", "tmpfs", "none"])?;
    mounted("bind,remount,ro,noexec,noatime,nodiratime", &[])?;
    let look = "awk '$2 == \"/d\" {print $4}' /proc/self/mounts | tr , '\\n' | \
                grep -E '^(r[ow]|no(exec|dev|suid|atime|diratime))$' | sort; (: > /d/made) 2>&1 | grep -o Read-only; :";
    let mut tested = Ok(());
    for (options, mapped) in [
        (&["bind"][..], false),
        (&["bind", "nodev", "atime"], false),
        (&["bind"], true),
        (&["bind", "nodev", "atime"], true),
    ] {
        let mut spec = config(&["sh", "-c", look]);
        let mounts = spec["mounts"].as_array_mut().context("mounts")?;
        mounts.push(json!({"destination": "/d", "source": directory, "options": options}));
        mounts.push(json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}));
        if mapped {
            let ids = json!([{"containerID": 0, "hostID": 0, "size": 65534}]);
            spec["linux"]["namespaces"]
                .as_array_mut()
                .context("a list")?
                .push(json!({"type": "user"}));
            spec["linux"]["uidMappings"] = ids.clone();
            spec["linux"]["gidMappings"] = ids;
        }
        tested = if mapped && options.len() > 1 {
            // The lab's runc does not keep them yet.
            kept_flags(&bundle, &spec)
        } else {
            compare(&bundle, &spec, "runc").map(drop)
        };
        tested = tested.with_context(|| format!("{options:?}"));
        if tested.is_err() {
            break;
        }
    }
    umount2(&directory, MntFlags::MNT_DETACH)?;
    tested
}

fn kept_flags(bundle: &Bundle, spec: &Value) -> Result<()> {
    bundle.write_config(spec)?;
    let said = bundle.run()?.expect_code(0)?.text();
    if said != "noatime\nnodev\nnodiratime\nnoexec\nro\nRead-only" {
        bail!("the bind has {said:?}");
    }
    Ok(())
}

/// The guest has one node, so this is all that there can be; the lab's runtimes know nothing of policies.
fn a_memory_policy_holds_for_the_init_and_for_execs(context: &Context) -> Result<()> {
    let bundle = Bundle::new(context, &[])?;
    let look = ["head", "-n", "1", "/proc/self/numa_maps"];
    let mut spec = config(&look);
    let policy = |spec: &mut Value, mode: &str, nodes: &str, flags: Value| {
        spec["linux"]["memoryPolicy"] = json!({"mode": mode, "nodes": nodes, "flags": flags});
        bundle.write_config(spec)
    };
    for (mode, nodes, flags, expected) in [
        ("MPOL_DEFAULT", "", json!([]), "default"),
        ("MPOL_INTERLEAVE", "0", json!([]), "interleave:0"),
        ("MPOL_BIND", "0", json!(["MPOL_F_STATIC_NODES"]), "bind=static:0"),
    ] {
        policy(&mut spec, mode, nodes, flags)?;
        let said = bundle.run()?.expect_code(0)?.text();
        if said.split(' ').nth(1) != Some(expected) {
            bail!("{mode} is {said}");
        }
    }
    policy(&mut spec, "MPOL_BIND", "1", json!([]))?;
    bundle.run()?.expect_error(&["memory policy"])?;
    spec["process"]["args"] = json!(["sleep", "1000000"]);
    policy(&mut spec, "MPOL_PREFERRED", "0", json!(["MPOL_F_RELATIVE_NODES"]))?;
    let container = Background::run(context, "/usr/bin/kata-like", &bundle)?;
    let said = container.say("exec", &look)?.expect_code(0)?.text();
    if said.split(' ').nth(1) != Some("prefer=relative:0") {
        bail!("an exec has {said}");
    }
    Ok(())
}

fn what_cannot_be_had_is_refused_by_name(context: &Context) -> Result<()> {
    let bundle = Bundle::new(context, &[])?;
    let listener = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}]});
    for (pointer, value, word) in [
        ("/process/apparmorProfile", json!("my-profile"), "/process/apparmorProfile"),
        ("/linux/seccomp", listener, "SCMP_ACT_NOTIFY"),
        ("/process/env", json!(["NAME"]), "process.env"),
        ("/process/selinuxLabel", json!("u:r:mine_t:s0"), "/process/selinuxLabel"),
        ("/linux/mountLabel", json!("u:r:mine_t:s0"), "/linux/mountLabel"),
        ("/linux/intelRdt", json!({"closID": "mine"}), "/linux/intelRdt"),
    ] {
        let mut spec = config(&["true"]);
        let (parent, key) = pointer.rsplit_once('/').context("a pointer")?;
        spec.pointer_mut(parent).context("a parent")?[key] = value;
        bundle.write_config(&spec)?;
        bundle.run()?.expect_error(&[word])?;
    }
    Ok(())
}
