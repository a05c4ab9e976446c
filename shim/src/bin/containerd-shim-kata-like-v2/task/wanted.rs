//! Creates that have been asked for, from the call on: a container of the sandbox is known only later.

use sandbox::{Error, Result};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The creates of each id, the one under way and those that wait.
#[derive(Clone, Default)]
pub struct Wanted(Arc<Mutex<HashMap<String, Creates>>>);

#[derive(Default)]
struct Creates {
    count: usize,
    called_off: bool,
}

impl Wanted {
    fn ids(&self) -> MutexGuard<'_, HashMap<String, Creates>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one until what it gives is dropped.
    pub fn begin(&self, id: &str) -> CreateOf {
        self.ids().entry(id.to_owned()).or_default().count += 1;
        CreateOf { id: id.to_owned(), wanted: self.clone() }
    }

    /// Whether there are creates of an id.
    pub fn has(&self, id: &str) -> bool {
        self.ids().contains_key(id)
    }

    /// Tells all creates of an id that there are that nobody wants it any more.
    pub fn call_off(&self, id: &str) {
        if let Some(creates) = self.ids().get_mut(id) {
            creates.called_off = true;
        }
    }
}

/// One create.
pub struct CreateOf {
    id: String,
    wanted: Wanted,
}

impl CreateOf {
    /// Whether nobody wants it any more.
    pub fn is_called_off(&self) -> bool {
        self.wanted.ids().get(&self.id).is_some_and(|creates| creates.called_off)
    }
}

impl Drop for CreateOf {
    fn drop(&mut self) {
        let mut ids = self.wanted.ids();
        if let Some(creates) = ids.get_mut(&self.id) {
            creates.count -= 1;
            if creates.count == 0 {
                ids.remove(&self.id);
            }
        }
    }
}

/// Does `work` once no create is under way any more, and to its end, whether or not the caller waits for it. Until then
/// none begins, and a shutdown does not take what is being undone for a container that lives.
pub async fn after_creates<T: Send + 'static>(
    creating: &Arc<tokio::sync::Mutex<()>>,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let creating = creating.clone();
    let done = tokio::spawn(async move {
        let _creating = creating.lock().await;
        work.await
    });
    done.await
        .unwrap_or_else(|e| Err(Error::Machine(format!("what undoes a create ended early: {e}"))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn what_a_create_makes_is_undone_after_it_also_when_the_caller_has_gone() {
        let creating = Arc::new(tokio::sync::Mutex::new(()));
        let under_way = creating.clone().lock_owned().await;
        let (undone, mut seen) = oneshot::channel();
        let undo = after_creates(&creating, async move { Ok(undone.send(())) });
        tokio::time::timeout(Duration::from_millis(10), undo).await.unwrap_err();
        assert!(seen.try_recv().is_err());
        drop(under_way);
        tokio::time::timeout(Duration::from_secs(10), seen).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn no_shutdown_looks_while_a_create_is_being_undone() {
        let creating = Arc::<tokio::sync::Mutex<()>>::default();
        let looked = creating.clone();
        let undone = after_creates(&creating, async move { Ok(looked.try_lock().is_err()) });
        assert!(undone.await.unwrap());
        assert!(creating.try_lock().is_ok());
    }

    #[test]
    fn a_create_is_called_off_before_its_container_is_known_and_the_next_is_not() {
        let wanted = Wanted::default();
        wanted.call_off("c");
        let (first, second) = (wanted.begin("c"), wanted.begin("c"));
        let other = wanted.begin("d");
        assert!(!first.is_called_off() && wanted.has("c"));
        wanted.call_off("c");
        assert!(first.is_called_off() && second.is_called_off() && !other.is_called_off());
        drop(first);
        assert!(wanted.has("c"));
        drop(second);
        assert!(!wanted.has("c") && !wanted.begin("c").is_called_off());
    }
}
