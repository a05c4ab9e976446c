//! System calls on paths that a caller names: any of them may hang, as on a file system whose server is gone, and the
//! sandbox's one thread has other containers to serve.

use crate::error::{Error, Result};
use std::io;
use std::path::Path;
use std::time::Duration;

/// How long a caller's paths may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Does `work`, which is about `path`, on a thread of its own. What is done later than in time is dropped, and with it
/// undone.
///
/// # Errors
/// Its own, or that it takes too long.
pub async fn blocking<T: Send + 'static>(
    what: &'static str,
    path: &Path,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    within(PATIENCE, what, path, work).await
}

/// The same within `patience`.
///
/// # Errors
/// As [`blocking`].
pub async fn within<T: Send + 'static>(
    patience: Duration,
    what: &'static str,
    path: &Path,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::time::timeout(patience, tokio::task::spawn_blocking(work)).await {
        Ok(done) => done.map_err(|e| Error::path(what, path)(io::Error::other(e)))?,
        Err(_) => {
            let text = format!("no answer within {} s", patience.as_secs());
            Err(Error::path(what, path)(io::Error::new(io::ErrorKind::TimedOut, text)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_hangs_is_given_up_and_named_and_what_it_makes_later_is_dropped() {
        let (go_on, wait) = std::sync::mpsc::channel::<()>();
        let made = std::sync::Arc::new(());
        let late = made.clone();
        let hung = within(Duration::from_millis(50), "look at", Path::new("/dead"), move || {
            let _ = wait.recv();
            Ok(late)
        });
        let error = hung.await.unwrap_err().chain();
        assert_eq!(error, "look at /dead: no answer within 0 s");
        drop(go_on);
        while std::sync::Arc::strong_count(&made) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(blocking("look at", Path::new("/"), || Ok(7)).await.unwrap(), 7);
    }
}
