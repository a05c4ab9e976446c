//! The end of a container that somebody removes: of its processes, its directory, and then its poststop hooks.

use crate::monitor::call;
use crate::record::{Home, MAKING, PATIENCE, Record};
use anyhow::{Result, bail};
use sandbox::persist::{self, ProcessId, SandboxState};
use std::time::Duration;

impl Home {
    /// Removes a container whose end has been seen to, or asked for by a kill: waits for its processes, and
    /// kills those that stay; by force also a monitor that answers. Then come its poststop hooks.
    pub(crate) fn remove(&self, force: bool) -> Result<()> {
        // Before the lock: one in the foreground has it as long as it lives.
        if let Ok(record) = self.load()
            && !self.wait_for_monitor(&record, force, PATIENCE)
            // If not, it has removed the container itself, and runs the hooks.
            && self.load().is_ok_and(|now| now.monitor == record.monitor)
        {
            self.end(record.monitor)?;
        }
        let _lock = self.lock(MAKING)?;
        let record = self.load();
        persist::clean_up(&self.sandbox()?, PATIENCE)?;
        self.remove_dir()?;
        if let Ok(record) = record
            && !record.poststop.is_empty()
        {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(record.hooks(self.id()).gone());
            // A thread may be in a system call on a file that hangs.
            runtime.shutdown_background();
        }
        Ok(())
    }

    /// Waits for the monitor's end; without force as long as it answers, for it may have output to hand over to a
    /// slow reader. Whether it has ended.
    fn wait_for_monitor(&self, record: &Record, force: bool, patience: Duration) -> bool {
        while !record.monitor.wait(patience) {
            if force || call::status(self, record).is_err() {
                return false;
            }
        }
        true
    }

    /// Ends by force who makes a container, of which there is no record yet, for longer than it may take.
    pub(crate) fn end_making(&self) -> Result<()> {
        match SandboxState::read(&self.sandbox()?) {
            Ok(Some(state)) if self.lock(PATIENCE).is_err() => self.end(state.owner),
            _ => Ok(()),
        }
    }

    /// Ends a process of the container's by force.
    pub(crate) fn end(&self, process: ProcessId) -> Result<()> {
        if !process.kill(PATIENCE) {
            bail!("process {} of container {} does not end", process.pid, self.id());
        }
        Ok(())
    }

    /// Whether nobody will ever end it: it belonged to a command that was killed before it could. One with hooks
    /// to be run is left to a delete, as with runc: they may take for ever.
    pub(crate) fn is_abandoned(&self) -> bool {
        let Ok(paths) = self.sandbox() else { return false };
        match self.load() {
            Ok(record) => {
                record.foreground && record.poststop.is_empty() && !record.monitor.lives()
            }
            Err(_) => matches!(SandboxState::read(&paths), Ok(Some(state)) if !state.owner.lives()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Reservation;
    use oci_spec::runtime::{Hook, Spec, SpecBuilder};
    use std::fs;
    use std::path::{Path, PathBuf};

    fn spec() -> Spec {
        SpecBuilder::default().build().unwrap()
    }

    #[test]
    fn what_a_crashed_create_left_can_be_removed() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::new(root.path(), "c1").unwrap();
        fs::create_dir(home.path()).unwrap();
        home.remove(false).unwrap();
        assert!(!home.path().exists() && root.path().exists(), "the root is the caller's");
        assert_eq!(home.remove(false).unwrap_err().to_string(), "container does not exist");
    }

    #[test]
    fn only_force_ends_a_monitor_that_answers() {
        use crate::monitor::call::{Answer, Status};
        let root = tempfile::tempdir().unwrap();
        let home = Home::new(root.path(), "c1").unwrap();
        let reserved = home.clone().reserve().unwrap();
        reserved.record(&spec(), "/b".into(), false).unwrap();
        reserved.leave();
        let mut record = home.load().unwrap();
        let mut child = std::process::Command::new("cat");
        let mut child = child.stdin(std::process::Stdio::piped()).spawn().unwrap();
        record.monitor = ProcessId::of(child.id() as i32).unwrap();
        call::tests::always_answering(&home, Answer::Status(Status::Stopped));
        let short = Duration::from_millis(100);
        assert!(!home.wait_for_monitor(&record, true, short));
        assert!(record.monitor.lives());
        let stdin = child.stdin.take();
        let ending = std::thread::spawn(move || {
            std::thread::sleep(5 * short);
            drop(stdin);
        });
        assert!(home.wait_for_monitor(&record, false, short));
        ending.join().unwrap();
        assert!(child.wait().unwrap().success(), "it ended by itself");
    }

    /// A container whose poststop hook adds a line to a file, after a look for the container.
    fn with_hook(root: &Path, home: &Home) -> (Reservation, Spec, PathBuf) {
        let said = root.join("said");
        let script = format!("(cat; ls -d {} 2>&1) >> {}", home.path().display(), said.display());
        let hooks = serde_json::json!({"poststop":
            [{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}]});
        let mut spec = spec();
        spec.set_hooks(serde_json::from_value(hooks).unwrap());
        spec.set_annotations(Some([("a".to_owned(), "b".to_owned())].into()));
        let mut reserved = home.clone().reserve().unwrap();
        reserved.take_poststop(&mut spec, Path::new("/b"));
        (reserved, spec, said)
    }

    /// Ran once, told of the container, which was gone.
    fn assert_ran_once(said: &Path) {
        let said = fs::read_to_string(said).unwrap_or_default();
        let (state, looked) = said.split_once('}').unwrap_or_default();
        let told = [r#""status":"stopped""#, r#""id":"c1""#, r#""bundle":"/b""#, r#""a":"b""#];
        assert!(told.iter().all(|member| state.contains(member)), "{said}");
        assert_eq!(looked.matches("No such file").count(), 1, "{said}");
        assert_eq!(said.matches("ociVersion").count(), 1, "{said}");
    }

    #[test]
    fn one_of_those_who_remove_a_container_runs_its_poststop_hooks() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::new(root.path(), "c1").unwrap();
        let (reserved, spec, said) = with_hook(root.path(), &home);
        assert_eq!(*spec.hooks().as_ref().unwrap().poststop(), None, "the sandbox has none");
        reserved.record(&spec, "/b".into(), false).unwrap();
        let mut record = home.load().unwrap();
        reserved.leave();
        // Its monitor has crashed.
        record.monitor.start += 1;
        fs::write(home.path().join("record.json"), serde_json::to_vec(&record).unwrap()).unwrap();
        let removes: Vec<_> = (0..8)
            .map(|_| {
                let home = home.clone();
                std::thread::spawn(move || home.remove(false).is_ok())
            })
            .collect();
        assert_eq!(
            removes.into_iter().filter_map(|t| t.join().ok()).filter(|done| *done).count(),
            1
        );
        assert_ran_once(&said);
    }

    #[tokio::test]
    async fn poststop_hooks_of_a_container_that_is_given_up_run_as_well() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::new(root.path(), "c1").unwrap();
        let (reserved, ..) = with_hook(root.path(), &home);
        reserved.give_up().await;
        assert_ran_once(&root.path().join("said"));
    }

    #[test]
    fn what_has_hooks_is_left_to_a_delete() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::new(root.path(), "c1").unwrap();
        let (reserved, spec, _said) = with_hook(root.path(), &home);
        reserved.record(&spec, "/b".into(), true).unwrap();
        reserved.leave();
        let abandoned = |poststop: Vec<Hook>| {
            let mut record = home.load().unwrap();
            record.monitor.start += 1;
            record.poststop = poststop;
            fs::write(home.path().join("record.json"), serde_json::to_vec(&record).unwrap())
                .unwrap();
            home.is_abandoned()
        };
        assert!(!abandoned(home.load().unwrap().poststop));
        assert!(abandoned(Vec::new()));
    }
}
