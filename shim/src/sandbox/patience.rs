//! Whether a machine that is to end still writes: a guest keeps what its containers have written to the host's files until
//! they close them, and a slow disk takes its time. On runc that would be in the host's page cache, and outlive them.

use super::Sandbox;
use crate::host::persist::ProcessId;
use std::future::Future;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Bytes that have to be written from one look to the next: a turn of the guest's costs some by itself.
const LEAST: u64 = 64 << 10;

/// How long something may take to end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// In any case.
    pub(super) usual: Duration,
    /// If it is seen to write all the while.
    pub(super) most: Duration,
    /// How far apart it is looked.
    pub(super) look: Duration,
}

impl Patience {
    /// What `end` gives, if it comes in time; `written` counts the bytes.
    pub(super) async fn wait<T>(
        self,
        end: impl Future<Output = T>,
        written: impl Fn() -> u64,
    ) -> Option<T> {
        tokio::pin!(end);
        let begin = Instant::now();
        let mut until = begin + self.usual;
        loop {
            if let Ok(ended) = timeout_at(until - self.look, &mut end).await {
                return Some(ended);
            }
            let before = written();
            if let Ok(ended) = timeout_at(until, &mut end).await {
                return Some(ended);
            }
            let stands_still = written().saturating_sub(before) < LEAST;
            if stands_still || until >= begin + self.most {
                return None;
            }
            until += self.look;
        }
    }
}

impl Sandbox {
    /// Bytes that the machine has written so far: the file server to the host's files, and the VMM to disks. Only what goes
    /// to a file system counts: both also tell the guest of each answer, and write to taps.
    pub(super) fn written(&self) -> u64 {
        let [vmm, file_server] = self.0.helpers;
        figure(vmm, "write_bytes: ") + figure(file_server, "write_bytes: ")
    }
}

/// One of a process's figures (proc_pid_io(5)); 0: it can't be read.
fn figure(process: ProcessId, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/io", process.pid)).unwrap_or_default();
    let figure = text.lines().find_map(|line| line.strip_prefix(name));
    figure.and_then(|figure| figure.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    const PATIENCE: Patience = Patience {
        usual: Duration::from_secs(30),
        most: Duration::from_secs(600),
        look: Duration::from_secs(5),
    };

    /// After how many seconds one is given up that never ends and writes at this rate, a second, so long.
    async fn given_up(rate: u64, seconds: u64) -> u64 {
        let begin = Instant::now();
        let written = || begin.elapsed().as_secs().min(seconds) * rate;
        assert!(PATIENCE.wait(pending::<()>(), written).await.is_none());
        begin.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_writes_has_longer_but_not_for_ever() {
        assert_eq!(given_up(0, 0).await, 30);
        assert_eq!(given_up(1 << 20, 20).await, 30);
        assert_eq!(given_up(1 << 20, 100).await, 105);
        assert_eq!(given_up(1 << 20, 100_000).await, 600);
        // As a guest that turns round and says so.
        assert_eq!(given_up(LEAST / 10, 100_000).await, 30);
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_is_seen_at_once() {
        for seconds in [0, 3, 29, 77] {
            let begin = Instant::now();
            let end = tokio::time::sleep(Duration::from_secs(seconds));
            let written = || begin.elapsed().as_secs() << 20;
            assert!(PATIENCE.wait(end, written).await.is_some());
            assert_eq!(begin.elapsed().as_secs(), seconds);
        }
    }

    #[test]
    fn what_a_process_writes_to_a_file_counts() {
        let own = ProcessId::own().unwrap();
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let before = figure(own, "write_bytes: ");
        std::io::Write::write_all(&mut &file, &vec![0; 100_000]).unwrap();
        assert!(figure(own, "write_bytes: ") >= before + 90_000);
    }
}
