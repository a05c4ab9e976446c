//! A root file system of many layers and of whatever files there are looks inside as it does on runc.

mod content;

use crate::bundle::{Bundle, config};
use crate::command::Output;
use crate::context::Context;
use crate::inside;
use anyhow::{Context as _, Result, bail};
use content::Layers;
use serde_json::json;
use std::time::Duration;

crate::cases!(
    crate::Scope::Once;
    thirty_thousand_odd_files_look_as_on_runc,
);

/// Several times what the lab needs when it is idle.
const PATIENCE: Duration = Duration::from_secs(240);

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
    let expected = without_acls(&expected);
    let seen = told(bundle.run_within(PATIENCE)?)?;
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
    Ok(seen)
}

/// The guest's kernel knows no ACLs in a submount of virtio-fs: it names them, no more.
fn without_acls(listing: &str) -> String {
    let word = |word: &str| match word.split_once('=') {
        Some((name, _)) if name.starts_with("system.posix_acl_") => {
            format!("{name}={}", inside::listing::UNSUPPORTED)
        }
        _ => word.to_owned(),
    };
    let line = |line: &str| line.split(' ').map(word).collect::<Vec<_>>().join(" ");
    listing.lines().map(line).collect::<Vec<_>>().join("\n")
}
