//! Bind mounts are live: what one side does, the other sees with its very next look.

use crate::command;
use crate::context::Context;
use anyhow::{Context as _, Result, bail};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

crate::cases!(
    crate::Scope::Once;
    what_the_host_does_is_seen_by_the_next_look_of_the_guest,
    what_the_guest_does_is_seen_by_the_next_look_of_the_host,
    a_program_that_another_user_writes_loses_its_rights;
    crate::Scope::AllOnce;
    what_waits_for_the_hosts_disk_holds_up_nobody_else,
    a_file_that_is_mapped_into_memory_is_written_to_the_host,
);

const ROUNDS: usize = 20;

/// A directory and a file of the host; removed when dropped.
struct Volume {
    directory: PathBuf,
    file: PathBuf,
}

impl Volume {
    fn new(context: &Context) -> Result<Self> {
        let base = PathBuf::from(format!("/tmp/{}", context.fresh_id()));
        fs::create_dir(&base)?;
        let volume = Self { directory: base.join("directory"), file: base.join("file") };
        fs::create_dir(&volume.directory)?;
        fs::write(&volume.file, "")?;
        Ok(volume)
    }

    /// The flags that show them as `/volume` and `/file`.
    fn flags(&self) -> [String; 2] {
        [(&self.directory, "/volume"), (&self.file, "/file")].map(|(from, to)| {
            format!("--mount=type=bind,src={},dst={to},options=rbind:rw", from.display())
        })
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.directory.join(name), text).with_context(|| name.to_owned())
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        fs::rename(self.directory.join(from), self.directory.join(to))
            .with_context(|| to.to_owned())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = self.directory.parent().map(fs::remove_dir_all);
    }
}

/// A shell in a container that stays, so that what it has seen is in the guest's caches.
struct Shell {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Shell {
    fn start(mut exec: Command) -> Result<Self> {
        let mut process = exec.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = process.stdin.take().context("stdin")?;
        let output = BufReader::new(process.stdout.take().context("stdout")?);
        Ok(Self { process, input, output })
    }

    /// What a command says.
    fn ask(&mut self, command: &str) -> Result<String> {
        writeln!(self.input, "{{ {command}; }} 2>&1; echo; echo the end")?;
        let mut said = String::new();
        while !said.ends_with("\nthe end\n") {
            if self.output.read_line(&mut said)? == 0 {
                bail!("the shell has ended: {said}");
            }
        }
        Ok(said.trim_end_matches("the end\n").trim_end_matches('\n').to_owned())
    }

    /// An error unless a command says so.
    fn expect(&mut self, command: &str, expected: &str) -> Result<()> {
        let said = self.ask(command)?;
        if said != expected {
            bail!("{command}: {said:?} instead of {expected:?}");
        }
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        drop(self.input);
        self.process.wait()?;
        Ok(())
    }
}

/// A shell in a container with the volume.
fn with_shell(
    context: &Context,
    act: impl FnOnce(&Volume, &mut Shell) -> Result<()>,
) -> Result<()> {
    let volume = Volume::new(context)?;
    let [directory, file] = volume.flags();
    let container = context.container().flag(directory).flag(file).detached(&["sleep", "1000"])?;
    let mut shell = Shell::start(container.exec_command(&[], &["sh"]))?;
    act(&volume, &mut shell)?;
    shell.end()?;
    container.remove()
}

fn what_the_host_does_is_seen_by_the_next_look_of_the_guest(context: &Context) -> Result<()> {
    with_shell(context, |volume, shell| {
        volume.write("held", &"0".repeat(4 * ROUNDS))?;
        let held = File::options().write(true).open(volume.directory.join("held"))?;
        symlink("..data/key", volume.directory.join("key"))?;
        shell.ask("exec 3< /volume/held")?;
        for round in 0..ROUNDS {
            one_round(volume, shell, &held, round).with_context(|| format!("round {round}"))?;
        }
        Ok(())
    })
}

/// What the guest looks at in each round.
const LOOK: &str = "cd /volume; cat same-length longer replaced key /file made; dd bs=4 count=1 <&3 2>&-; \
    ls . ..data/; stat -c %a /file";

fn one_round(volume: &Volume, shell: &mut Shell, held: &File, round: usize) -> Result<()> {
    let text = format!("text {round:03}\n");
    let longer = text.repeat(round + 1);
    volume.write("same-length", &text)?;
    volume.write("longer", &longer)?;
    volume.write("next", &text)?;
    volume.rename("next", "replaced")?;
    // As a kubelet changes a ConfigMap.
    let data = format!("..{round}");
    fs::create_dir(volume.directory.join(&data))?;
    volume.write(&format!("{data}/key"), &text)?;
    symlink(&data, volume.directory.join("..tmp"))?;
    volume.rename("..tmp", "..data")?;
    if round > 0 {
        fs::remove_dir_all(volume.directory.join(format!("..{}", round - 1)))?;
    }
    fs::write(&volume.file, &text)?;
    let mode = 0o400 + round as u32;
    fs::set_permissions(&volume.file, fs::Permissions::from_mode(mode))?;
    // The guest has looked for the first in vain; and it has the second open, and has read of it.
    volume.write("made", &text)?;
    held.write_all_at(format!("{round:03}\n").as_bytes(), 4 * round as u64)?;
    let names = "held\nkey\nlonger\nmade\nreplaced\nsame-length";
    let seen = format!("{text}{longer}{}", text.repeat(4));
    let rest = format!("{round:03}\n.:\n{names}\n\n..data/:\nkey\n{mode:o}");
    shell.expect(LOOK, &(seen + &rest))?;
    fs::remove_file(volume.directory.join("made"))?;
    let nothing = "cat: can't open 'made': No such file or directory\n0";
    shell.expect("cat made; ls | grep -c made", nothing)
}

fn what_the_guest_does_is_seen_by_the_next_look_of_the_host(context: &Context) -> Result<()> {
    with_shell(context, |volume, shell| {
        let at = |name: &str| volume.directory.join(name);
        let expect = |what: &str, seen: &str, expected: &str| {
            if seen != expected {
                bail!("{what}: {seen:?} instead of {expected:?}");
            }
            Ok(())
        };
        for round in 0..ROUNDS {
            let text = format!("text {round}\n");
            shell.ask(&format!("echo text {round} > /volume/a; cp /volume/a /file"))?;
            expect("written", &fs::read_to_string(at("a"))?, &text)?;
            expect("the file", &fs::read_to_string(&volume.file)?, &text)?;
            shell.ask("mv /volume/a /volume/b; ln -sfn b /volume/link; echo more >> /volume/b")?;
            expect("moved", &fs::read_to_string(at("link"))?, &format!("{text}more\n"))?;
            shell.ask("rm /volume/b")?;
            if at("a").exists() || at("b").exists() {
                bail!("round {round}: a removed file is still there");
            }
        }
        Ok(())
    })
}

fn a_file_that_is_mapped_into_memory_is_written_to_the_host(context: &Context) -> Result<()> {
    let volume = Volume::new(context)?;
    let program = std::env::current_exe()?;
    let program =
        format!("--mount=type=bind,src={},dst=/inside,options=rbind:ro", program.display());
    let [directory, file] = volume.flags();
    let run = context.container().flag(directory).flag(file).flag(program);
    fs::write(&volume.file, "before")?;
    run.output(&["/inside", crate::inside::FLAG, "map", "/file"])?.expect_code(0)?;
    let seen = fs::read_to_string(&volume.file)?;
    if seen != crate::inside::MAPPED {
        bail!("the host sees {seen:?}");
    }
    Ok(())
}

fn a_program_that_another_user_writes_loses_its_rights(context: &Context) -> Result<()> {
    let volume = Volume::new(context)?;
    let [directory, file] = volume.flags();
    let container = context.container().flag(directory).flag(file).detached(&["sleep", "1000"])?;
    for path in ["/volume/program", "/program"] {
        container
            .exec(&["sh", "-c", &format!("echo old > {path}; chmod 6777 {path}")])?
            .expect_code(0)?;
        let write = format!("printf new 1<> {path}; stat -c %a {path}; cat {path}");
        let mut other = container.exec_command(&["--user", "7:7"], &["sh", "-c", &write]);
        let said = command::output(&mut other)?.text();
        if said != "777\nnew" {
            bail!("{path}: {said:?}");
        }
    }
    let mode = fs::metadata(volume.directory.join("program"))?.permissions().mode();
    if mode & 0o7777 != 0o777 {
        bail!("the host sees {mode:o}");
    }
    container.remove()
}

/// A file system of the host's in which every change waits; thawed, unmounted and removed when dropped.
struct Frozen(PathBuf);

impl Frozen {
    fn new(context: &Context) -> Result<Self> {
        let frozen = Self(format!("/tmp/{}", context.fresh_id()).into());
        let image = frozen.0.with_extension("img");
        fs::create_dir(&frozen.0)?;
        for command in [
            Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&image).arg("16M"),
            Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&frozen.0),
        ] {
            command::output(command)?.expect_code(0)?;
        }
        Ok(frozen)
    }

    fn freeze(&self) -> Result<()> {
        let mut freeze = Command::new("fsfreeze");
        command::output(freeze.arg("--freeze").arg(&self.0))?.expect_code(0)?;
        Ok(())
    }

    /// In a while if not before, so that nobody waits for ever; until what is given is dropped.
    fn thaw_later(&self) -> Sender<()> {
        let (wanted, until) = channel();
        let directory = self.0.clone();
        std::thread::spawn(move || {
            if until.recv_timeout(Duration::from_secs(60)) == Err(RecvTimeoutError::Timeout) {
                thaw(&directory);
            }
        });
        wanted
    }
}

fn thaw(directory: &Path) {
    let _ = Command::new("fsfreeze").arg("--unfreeze").arg(directory).output();
}

impl Drop for Frozen {
    fn drop(&mut self) {
        thaw(&self.0);
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).output();
        let _ = fs::remove_dir(&self.0);
        let _ = fs::remove_file(self.0.with_extension("img"));
    }
}

fn what_waits_for_the_hosts_disk_holds_up_nobody_else(context: &Context) -> Result<()> {
    let frozen = Frozen::new(context)?;
    let volume = Volume::new(context)?;
    let [directory, _] = volume.flags();
    let slow = format!("--mount=type=bind,src={},dst=/slow,options=rbind:rw", frozen.0.display());
    let container = context.container().flag(directory).flag(slow).detached(&["sleep", "1000"])?;
    let mut shell = Shell::start(container.exec_command(&[], &["sh"]))?;
    shell.expect("touch /slow/file", "")?;
    volume.write("text", "from another disk\n")?;
    frozen.freeze()?;
    let in_time = frozen.thaw_later();
    shell.ask("fallocate -l 65536 /slow/file >/dev/null 2>&1 & waits=$!")?;
    let said = shell.ask("cat /volume/text && touch /volume/new && kill -0 $waits && echo still");
    // Thawed before the outcome is looked at: whatever it is, the container can end.
    thaw(&frozen.0);
    drop(in_time);
    let said = said?;
    if said != "from another disk\nstill" {
        bail!("{said:?}");
    }
    shell.expect("wait $waits && stat -c %s /slow/file", "65536")?;
    shell.end()?;
    container.remove()
}
