//! A root file system of many layers and of whatever files there are looks inside as it does on runc.

pub mod content;

use crate::bundle::{Bundle, config};
use crate::command::Output;
use crate::context::Context;
use crate::inside;
use anyhow::{Context as _, Result, bail};
use content::Layers;
use serde_json::json;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::time::Duration;

crate::cases!(
    crate::Scope::Once;
    acls_decide_as_on_runc,
    what_is_set_again_is_as_on_runc;
    crate::Scope::AllOnce;
    thirty_thousand_odd_files_look_as_on_runc,
);

/// Several times what the lab needs when it is idle.
const PATIENCE: Duration = Duration::from_secs(240);

const CAPABILITY: &str = "security.capability";

/// Differences that are told of.
const TOLD: usize = 20;

fn thirty_thousand_odd_files_look_as_on_runc(context: &Context) -> Result<()> {
    let bundle = Bundle::new(context, &[])?;
    let layers = Layers::make(&bundle)?;
    let seen = compare(&bundle, &layers, &["list", "/"])?;
    if seen.lines().count() < content::SMALL_FILES {
        bail!("only {} files were listed", seen.lines().count());
    }
    let programs = content::PROGRAMS.map(|program| program.path);
    let rights = compare(&bundle, &layers, &[&["become"], &programs[..]].concat())?;
    if rights != content::PROGRAMS.map(|program| program.rights).join("\n") {
        bail!("{programs:?}: {rights:?}");
    }
    Ok(())
}

/// What this program says inside, if it is the same on runc and in a machine.
fn compare(bundle: &Bundle, layers: &Layers, arguments: &[&str]) -> Result<String> {
    let mut spec = config(&[&[content::PROGRAM, inside::FLAG], arguments].concat());
    spec["root"] = json!({"path": layers.merged()});
    let rights =
        ["CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID"];
    spec["process"]["capabilities"] =
        json!({"bounding": rights, "effective": rights, "permitted": rights});
    let mounts = spec["mounts"].as_array_mut().context("mounts")?;
    mounts.push(json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}));
    bundle.write_config(&spec)?;
    let told = |output: Output| Ok::<_, anyhow::Error>(output.expect_code(0)?.text());
    let expected = told(bundle.run_on_the_host("runc")?).context("runc")?;
    let seen = told(bundle.run_within(PATIENCE)?)?;
    same(&expected, &seen)?;
    Ok(seen)
}

/// Fails unless both say the same, with the lines that differ.
pub fn same(expected: &str, seen: &str) -> Result<()> {
    let (mut ours, mut theirs) = (seen.lines(), expected.lines());
    let mut differences = Vec::new();
    loop {
        match (theirs.next(), ours.next()) {
            (None, None) => break,
            (theirs, ours) if theirs == ours => {}
            (theirs, ours) => differences.push(format!("\nrunc:  {theirs:?}\nguest: {ours:?}")),
        }
    }
    if !differences.is_empty() {
        let count = differences.len();
        differences.truncate(TOLD);
        bail!("{count} lines differ: {}", differences.concat());
    }
    Ok(())
}

/// Who may do what is the ACL's to say, for reading, and for what new files get of their directory's. The group of
/// `/acl/file` has r-- in the mode, which is the ACL's mask, but no rights.
fn acls_decide_as_on_runc(context: &Context) -> Result<()> {
    let bundle = Bundle::new(context, &[])?;
    let directory = bundle.0.join("rootfs/acl");
    let file = directory.join("file");
    fs::create_dir(&directory)?;
    fs::write(&file, "for a few\n")?;
    fs::set_permissions(&directory, Permissions::from_mode(0o777))?;
    content::set_attribute(&file, "system.posix_acl_access", &content::acl())?;
    content::set_attribute(&directory, "system.posix_acl_default", &content::acl())?;
    let script =
        "cd /acl; cat file; umask 077; rm -f new; echo new > new; stat -c '%a %u' file new";
    for (uid, gid, reads) in [(1000, 1000, true), (1001, 0, false), (1001, 1001, false)] {
        let mut spec = config(&["sh", "-c", script]);
        spec["process"]["user"] = json!({"uid": uid, "gid": gid});
        bundle.write_config(&spec)?;
        let (theirs, ours) = (bundle.run_on_the_host("runc")?, bundle.run()?);
        let expected = if reads { "for a few\n" } else { "" };
        let expected = format!("{expected}640 0\n640 {uid}");
        if ours.text() != theirs.text() || ours.text() != expected {
            bail!("user {uid}:{gid}: on runc {theirs:?}\nours: {ours:?}");
        }
    }
    Ok(())
}

/// The guest asks nobody where an owner or a mode is set that a file has; but what goes with it, goes.
fn what_is_set_again_is_as_on_runc(context: &Context) -> Result<()> {
    let script = "cd /made; umask 022; for name in plain real uid gid; do echo $name > $name; done
        chown 0:0 plain; chmod 644 plain; before=$(stat -c %Z plain); sleep 1.1
        chmod 644 plain; test $(stat -c %Z plain) -gt $before && echo later
        chown 7:8 real; chown 7:8 real; chmod 600 real; chmod 600 real; echo more >> real; chmod 640 real
        chmod 4755 uid; chown 0:0 uid; chmod 2755 gid; chown 0:0 gid; chown 0:0 old capable
        stat -c '%n %a %u %g' *; cat real; sync";
    let rights = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID"];
    let mut spec = config(&["sh", "-c", script]);
    spec["process"]["capabilities"] =
        json!({"bounding": rights, "effective": rights, "permitted": rights});
    let run = |ours: bool| -> Result<String> {
        let bundle = Bundle::new(context, &[])?;
        let made = bundle.0.join("rootfs/made");
        fs::create_dir(&made)?;
        for name in ["old", "capable"] {
            fs::write(made.join(name), name)?;
        }
        fs::set_permissions(made.join("old"), Permissions::from_mode(0o6755))?;
        content::set_attribute(&made.join("capable"), CAPABILITY, &content::NET_RAW)?;
        bundle.write_config(&spec)?;
        let output = if ours { bundle.run()? } else { bundle.run_on_the_host("runc")? };
        let mut said = output.expect_code(0)?.text();
        for name in ["plain", "real", "uid", "gid", "old", "capable"] {
            let of = fs::metadata(made.join(name))?;
            let capable = content::has_attribute(&made.join(name), CAPABILITY)?;
            said += &format!("\n{name} {:o} {} {} {capable}", of.mode(), of.uid(), of.gid());
        }
        Ok(said)
    };
    let (expected, seen) = (run(false).context("runc")?, run(true)?);
    same(&expected, &seen)?;
    if !(expected.starts_with("later\n") && expected.contains("uid 755 0 0\n")) {
        bail!("{expected}");
    }
    Ok(())
}
