//! How soon the host's kernel ends a sandbox's processes when it lacks memory: as late as it would end the process of the
//! container that matters most, since all end with them. A pause container, which takes next to nothing on runc and is
//! kept to the last, does not count.

use super::Sandbox;
use crate::host::persist::ProcessId;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::sync::{MutexGuard, PoisonError};

/// The least that is set: the kernel is to be free to end a guest before it fails itself.
const LEAST: i32 = -999;

/// Those of the containers whose spec says one, by their ids.
#[derive(Debug, Default)]
pub(super) struct OomScores(BTreeMap<String, i32>);

impl OomScores {
    /// For our processes; none: no container says.
    fn of_all(&self) -> Option<i32> {
        self.0.values().min().map(|&score| score.max(LEAST))
    }
}

impl Sandbox {
    fn oom_scores(&self) -> MutexGuard<'_, OomScores> {
        self.0.oom_scores.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Container `id` is made, and has this score.
    pub(super) fn note_oom_score(&self, id: &str, score: Option<i32>) {
        if let Some(score) = score {
            self.oom_scores().0.insert(id.to_owned(), score);
            self.score_helpers();
        }
    }

    /// Container `id` is gone. That of the last one stays.
    pub(super) fn forget_oom_score(&self, id: &str) {
        if self.oom_scores().0.remove(id).is_some() {
            self.score_helpers();
        }
    }

    fn score_helpers(&self) {
        let Some(score) = self.oom_scores().of_all() else { return };
        for helper in self.0.helpers {
            if let Err(error) = set(helper, score) {
                tracing::warn!("oom_score_adj of process {}: {error}", helper.pid);
            }
        }
    }
}

fn set(process: ProcessId, score: i32) -> io::Result<()> {
    let mut file =
        File::options().write(true).open(format!("/proc/{}/oom_score_adj", process.pid))?;
    // What is open is of the process that had this pid then, and can't be written to when that has ended.
    if !process.lives() {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    file.write_all(score.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_matters_most_counts_but_none_is_beyond_the_kernels_reach() {
        let of = |scores: &[i32]| {
            let named = scores.iter().enumerate().map(|(n, &score)| (n.to_string(), score));
            OomScores(named.collect()).of_all()
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[1000, 940]), Some(940));
        assert_eq!(of(&[2, -1000]), Some(-999));
    }

    #[test]
    fn the_score_of_a_process_is_set_but_not_of_another_with_its_pid() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let process = ProcessId::of(child.id().cast_signed()).unwrap();
        set(process, 321).unwrap();
        let file = format!("/proc/{}/oom_score_adj", child.id());
        let said = std::fs::read_to_string(&file).unwrap();
        let other = ProcessId { start: process.start + 1, ..process };
        let refused = set(other, 5);
        let then = std::fs::read_to_string(&file).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((said.trim(), then.trim()), ("321", "321"));
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
