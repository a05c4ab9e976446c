//! The same commands to runc and to `kata-like`: what both say, compared.

use super::container::{Container, WAITS, kata};
use crate::bundle::config;
use crate::command::{self, DEADLINE, Output};
use crate::context::Context;
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};

crate::cases!(
    crate::Scope::Once;
    a_life_reads_as_runcs,
    what_cannot_be_done_is_told_as_runc_tells_it;
    crate::Scope::AllOnce;
    lists_and_states_are_laid_out_as_runcs,
    events_have_runcs_members_in_their_order,
    an_exec_has_the_limits_of_its_caller_where_none_are_named,
);

/// Both, by the program's name.
const RUNTIMES: [&str; 2] = ["runc", "/usr/bin/kata-like"];

/// One runtime with a state directory of its own, and a container.
struct Side {
    runtime: &'static str,
    root: PathBuf,
    container: Container,
}

impl Side {
    fn both(context: &Context, config: &Value) -> Result<[Self; 2]> {
        let side = |runtime| -> Result<Self> {
            let container = Container::of(context, config)?;
            let root = container.file("root");
            Ok(Self { runtime, root, container })
        };
        let [runc, ours] = RUNTIMES;
        Ok([side(runc)?, side(ours)?])
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.runtime);
        command.arg("--root").arg(&self.root).args(words).current_dir(&self.container.bundle.0);
        command
    }

    fn say(&self, words: &[&str]) -> Result<Output> {
        let named: Vec<_> = words
            .iter()
            .map(|word| if *word == "ID" { &self.container.id } else { *word })
            .collect();
        command::output(&mut self.command(&named))
    }

    fn create(&self) -> Result<()> {
        let out = File::create(self.container.file("out"))?;
        let mut create = self.command(&["create", &self.container.id]);
        create.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let success = create.status()?.success();
        // The container has yet to say something, so whatever is there is the runtime's.
        let said = fs::read_to_string(self.container.file("out"))?;
        if !success || !said.is_empty() {
            bail!("{} create: {said}", self.runtime);
        }
        Ok(())
    }

    /// What it says, with what differs from run to run replaced.
    fn normal(&self, text: &str) -> String {
        text.replace(&self.container.bundle.0.to_string_lossy().into_owned(), "BUNDLE")
            .replace(&self.container.id, "ID")
            .replace("kata-like", "runc")
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        let _ = self.command(&["delete", "--force", &self.container.id]).status();
    }
}

/// The text of a log line.
fn message(stderr: &str) -> String {
    let text = stderr.trim_end();
    let after = text.rsplit_once(" msg=").map_or(text, |(_, message)| message);
    // Some of runc's end with a line of their own.
    after.trim_matches('"').trim_end_matches("\\n").replace("\\\"", "\"")
}

fn waits() -> Value {
    config(&["sh", "-c", WAITS])
}

/// Code and message of each step.
fn a_life_reads_as_runcs(context: &Context) -> Result<()> {
    let sides = Side::both(context, &waits())?;
    for side in &sides {
        side.create()?;
    }
    let steps: &[&[&str]] = &[
        &["exec", "ID", "true"],
        &["resume", "ID"],
        &["pause", "ID"],
        &["pause", "ID"],
        &["start", "ID"],
        &["exec", "ID", "true"],
        &["delete", "ID"],
        &["resume", "ID"],
        &["resume", "ID"],
        &["start", "ID"],
        &["start", "ID"],
        &["delete", "ID"],
        &["exec", "--console-socket", "/x", "ID", "true"],
        &["exec", "-t", "--detach", "ID", "true"],
        &["exec", "--user", "7", "ID", "id"],
        &["resume", "ID"],
        &["update", "ID"],
        &["update", "--memory", "50M", "ID"],
        &["kill", "ID", "0"],
        &["kill", "ID", "NOSUCH"],
        &["pause", "ID"],
        &["pause", "ID"],
        &["start", "ID"],
        &["exec", "ID", "true"],
        &["delete", "ID"],
        &["resume", "ID"],
        &["create", "ID"],
        &["events", "--interval", "0s", "ID"],
        &["kill", "ID", "KILL"],
    ];
    for step in steps {
        compare(&sides, step)?;
    }
    for side in &sides {
        command::eventually("stopped", DEADLINE, || {
            Ok(side.say(&["state", "ID"])?.text().contains("\"stopped\""))
        })?;
    }
    let steps: &[&[&str]] = &[
        &["start", "ID"],
        &["exec", "ID", "true"],
        &["kill", "ID", "0"],
        &["kill", "-a", "ID", "0"],
        &["pause", "ID"],
        &["resume", "ID"],
        &["ps", "--format", "json", "ID"],
        &["events", "--stats", "ID"],
        &["delete", "ID"],
        &["delete", "ID"],
        &["delete", "--force", "ID"],
        &["state", "ID"],
        &["start", "ID"],
        &["list", "-q"],
    ];
    for step in steps {
        compare(&sides, step)?;
    }
    Ok(())
}

fn compare(sides: &[Side; 2], step: &[&str]) -> Result<()> {
    let [runc, ours] = sides.each_ref().map(|side| {
        side.say(step)
            .map(|said| (said.code, side.normal(&said.text()), side.normal(&message(&said.stderr))))
    });
    let (runc, ours) = (runc?, ours?);
    if runc != ours {
        bail!("{step:?}: runc says {runc:?}, kata-like {ours:?}");
    }
    Ok(())
}

/// Byte for byte, but for pids and times.
fn lists_and_states_are_laid_out_as_runcs(context: &Context) -> Result<()> {
    let mut config = waits();
    config["annotations"] = json!({"org.b": "<&>", "org.a": "ü"});
    let sides = Side::both(context, &config)?;
    // Of a root that is not there runc has come to complain only lately.
    for side in &sides {
        fs::create_dir(&side.root)?;
    }
    for format in [&["list"][..], &["list", "-f", "json"], &["list", "-q"]] {
        compare(&sides, format)?;
    }
    for side in &sides {
        side.create()?;
    }
    for step in [&["state", "ID"][..], &["list", "-f", "json"], &["list"], &["list", "-q"]] {
        let [runc, ours] = sides.each_ref().map(|side| -> Result<String> {
            let said = side.say(step)?.expect_code(0)?;
            let state = side.say(&["state", "ID"])?.expect_code(0)?.text();
            let state: Value = serde_json::from_str(&state)?;
            let created = state["created"].as_str().context("no time")?;
            if !created.ends_with('Z') || created.contains("0Z") && created.contains('.') {
                bail!("created at {created}");
            }
            // Columns are as wide as what is in them.
            let text = String::from_utf8_lossy(&said.stdout).into_owned();
            let text = side
                .normal(&text.replace(created, "TIME").replace(&state["pid"].to_string(), "PID"));
            Ok(match step {
                ["list"] => text.split_whitespace().collect::<Vec<_>>().join(" "),
                _ => text,
            })
        });
        let (runc, ours) = (runc?, ours?);
        if runc != ours {
            bail!("{step:?}: runc prints {runc:?}, kata-like {ours:?}");
        }
    }
    Ok(())
}

/// A member that only a kernel or a host has is no difference; what runc always tells must be there.
fn events_have_runcs_members_in_their_order(context: &Context) -> Result<()> {
    let sides = Side::both(context, &waits())?;
    let mut told = Vec::new();
    for side in &sides {
        side.create()?;
        side.say(&["start", "ID"])?.expect_code(0)?;
        let text = side.say(&["events", "--stats", "ID"])?.expect_code(0)?.text();
        if !text.starts_with(&format!(
            "{{\"type\":\"stats\",\"id\":\"{}\",\"data\":{{\"cpu\":{{\"usage\":{{\"total\":",
            side.container.id
        )) {
            bail!("{} begins with {text:?}", side.runtime);
        }
        let value: Value = serde_json::from_str(&text)?;
        told.push((members(&text), value));
    }
    let [(runc, _), (ours, value)] = &told[..] else { bail!("two were asked") };
    let known: BTreeSet<_> = ours.iter().collect();
    // Of the kernel's own counts each has those of its version.
    let missing: Vec<_> = runc
        .iter()
        .filter(|name| !name.starts_with("/data/memory/raw") && !known.contains(name))
        .collect();
    if !missing.is_empty() {
        bail!("runc tells {missing:?} as well: {value}");
    }
    let order = |all: &[String]| {
        let top = |name: &&String| name.matches('/').count() == 2;
        all.iter().filter(top).filter(|name| runc.contains(name)).cloned().collect::<Vec<_>>()
    };
    if order(runc) != order(ours) {
        bail!("members are in the order {:?}, runc's in {:?}", order(ours), order(runc));
    }
    let psi = &value["data"]["cpu"]["psi"];
    if !psi["some"]["avg10"].is_number() || !value["data"]["hugetlb"].is_object() {
        bail!("no pressure, or no huge pages: {value}");
    }
    Ok(())
}

/// Where each member stands, as a path, in the order of the text. Lists are left out.
fn members(text: &str) -> Vec<String> {
    let (mut found, mut path, mut key, mut depth) =
        (Vec::new(), Vec::<String>::new(), String::new(), 0);
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '"' => {
                key = rest.by_ref().take_while(|c| *c != '"').collect();
                if depth == 0 && rest.peek() == Some(&':') {
                    found.push(format!("/{}", [&path[..], &[key.clone()]].concat().join("/")));
                }
            }
            '[' => depth += 1,
            ']' => depth -= 1,
            '{' if depth == 0 && !found.is_empty() => path.push(std::mem::take(&mut key)),
            '}' if depth == 0 => drop(path.pop()),
            _ => {}
        }
    }
    found
}

fn what_cannot_be_done_is_told_as_runc_tells_it(context: &Context) -> Result<()> {
    let sides = Side::both(context, &waits())?;
    for step in [
        &["state", "nosuch"][..],
        &["kill", "nosuch", "TERM"],
        &["delete", "nosuch"],
        &["delete", "--force", "nosuch"],
        &["exec", "nosuch", "true"],
        &["ps", "nosuch"],
    ] {
        compare(&sides, step)?;
    }
    // A starting point: what is in it differs by version, that it works does not.
    let directory = sides[1].container.file("spec");
    fs::create_dir(&directory)?;
    let spec = || kata(&["spec", "--bundle"]).arg(&directory).output();
    let (first, second) = (spec()?, spec()?);
    if !first.status.success() || second.status.success() {
        bail!("spec wrote over a config.json: {second:?}");
    }
    let written: Value = serde_json::from_slice(&fs::read(directory.join("config.json"))?)?;
    let container = &sides[1].container;
    let mut run = written;
    run["process"]["terminal"] = json!(false);
    run["process"]["args"] = json!(["cat", "/proc/sys/kernel/hostname"]);
    container.bundle.write_config(&run)?;
    let said = sides[1].say(&["run", "ID"])?.expect_code(0)?.text();
    if said != "kata-like" {
        bail!("a container of the spec said {said:?}");
    }
    Ok(())
}

fn an_exec_has_the_limits_of_its_caller_where_none_are_named(context: &Context) -> Result<()> {
    let mut config = waits();
    config["process"]["rlimits"] =
        json!([{"type": "RLIMIT_STACK", "soft": 1 << 20, "hard": 1 << 20}]);
    let sides = Side::both(context, &config)?;
    let mut told = Vec::new();
    for side in &sides {
        side.create()?;
        let mut exec = Command::new("sh");
        exec.args(["-c", "ulimit -n 300; ulimit -s 2048; ulimit -c 7; exec \"$0\" \"$@\""]);
        exec.arg(side.runtime).arg("--root").arg(&side.root);
        exec.args(["exec", &side.container.id, "sh", "-c", "ulimit -n; ulimit -s; ulimit -c"]);
        told.push(command::output(&mut exec)?.expect_code(0)?.text());
    }
    if told != ["300\n1024\n7"; 2] {
        bail!("runc and kata-like give an exec the limits {told:?}");
    }
    Ok(())
}
