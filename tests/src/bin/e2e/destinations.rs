//! Mounts whose destinations lead upwards, by dots or by links of the image's: they stay in the container's root.

use crate::bundle::{Bundle, config};
use crate::command::Output;
use crate::context::Context;
use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

crate::cases!(
    crate::Scope::Once;
    a_destination_that_leads_upwards_stays_in_the_root,
    a_destination_that_leads_through_proc_leads_nowhere;
    crate::Scope::AllOnce;
    a_root_without_directories_to_mount_on_gets_them,
);

/// Ways to the top and beyond: what `/up` is in the image (a link's target, or a directory), and the destination.
const WAYS: [(Option<&str>, &str); 5] = [
    (None, "/up/../../../../escape"),
    (None, "/../../../escape"),
    (Some("/tmp"), "/up/../../../../escape"),
    (Some("../../../.."), "/up/escape"),
    (Some("../../../../nowhere/.."), "/up/../../escape"),
];

const LOOK: &str = "cat /escape/marker /escape-file; \
    grep -o ' /[^ ]*escape[^ ]* ' /proc/self/mountinfo | sort | tr -d '\\n'";

/// What that says when nothing is above the root.
const SEEN: &str = "in the volume\nin the volume\n /escape  /escape-file ";

fn a_destination_that_leads_upwards_stays_in_the_root(context: &Context) -> Result<()> {
    for (target, destination) in WAYS {
        for runtime in ["runc", "kata-like"] {
            let said = mounted(context, runtime, target, destination)?.expect_code(0)?;
            let text = String::from_utf8_lossy(&said.stdout).into_owned();
            if text != SEEN {
                bail!("{runtime}: /up is {target:?}, {destination} leads to {text:?}");
            }
        }
    }
    Ok(())
}

/// Its links lead anywhere: what they lead to is decided by the kernel, not by names.
fn a_destination_that_leads_through_proc_leads_nowhere(context: &Context) -> Result<()> {
    let said = mounted(context, "kata-like", Some("/proc/self/root/.."), "/up/escape")?;
    said.expect_error(&["failed to mount", "/proc/self/root/../escape"]).map(drop)
}

/// As an image made from one program has none.
fn a_root_without_directories_to_mount_on_gets_them(context: &Context) -> Result<()> {
    const MISSING: [&str; 3] = ["dev", "proc", "sys"];
    let look =
        "ls -d /dev/null /dev/pts /proc/self /sys/kernel; ls /; echo > /dev/null && echo yes";
    for read_only in [false, true] {
        let mut said = Vec::new();
        for runtime in ["runc", "kata-like"] {
            let bundle = Bundle::new(context, &[])?;
            let root = bundle.0.join("rootfs");
            for name in MISSING {
                let _ = fs::remove_dir_all(root.join(name));
            }
            let mut config = config(&["sh", "-c", look]);
            config["root"]["readonly"] = read_only.into();
            config["mounts"] = json!([
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
            ]);
            bundle.write_config(&config)?;
            let output = match runtime {
                "kata-like" => bundle.run()?,
                runtime => bundle.run_on_the_host(runtime)?,
            };
            said.push(output.expect_code(0)?.text());
            ensure!(MISSING.iter().all(|name| root.join(name).is_dir()), "{runtime}");
        }
        ensure!(said[0] == said[1] && said[0].ends_with("yes"), "{said:?}");
    }
    Ok(())
}

/// Looks for a directory and a file that are mounted there.
fn mounted(
    context: &Context,
    runtime: &str,
    target: Option<&str>,
    destination: &str,
) -> Result<Output> {
    let bundle = Bundle::new(context, &[])?;
    let up = bundle.0.join("rootfs/up");
    match target {
        Some(target) => symlink(target, up)?,
        None => fs::create_dir(up)?,
    }
    bundle.write_config(&with_mounts(&bundle.0, destination)?)?;
    let said = match runtime {
        "kata-like" => bundle.run()?,
        runtime => bundle.run_on_the_host(runtime)?,
    };
    for above in [&*bundle.0, Path::new("/var/tmp"), Path::new("/")] {
        let escaped = ["escape", "escape-file"].map(|name| above.join(name));
        ensure!(!escaped.iter().any(|path| path.exists()), "{runtime} has made one of {escaped:?}");
    }
    Ok(said)
}

fn with_mounts(bundle: &Path, destination: &str) -> Result<Value> {
    let volume = bundle.join("volume");
    let marker = volume.join("marker");
    fs::create_dir(&volume)?;
    fs::write(&marker, "in the volume\n")?;
    let mut config = config(&["sh", "-c", LOOK]);
    let Some(mounts) = config["mounts"].as_array_mut() else { bail!("no mounts") };
    mounts.push(json!({"destination": destination, "source": volume, "options": ["bind"]}));
    let beside = format!("{destination}-file");
    mounts.push(json!({"destination": beside, "source": marker, "options": ["bind"]}));
    Ok(config)
}
