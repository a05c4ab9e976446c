//! Creates that have been asked for, from the call on: a container of the sandbox is known only later.

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

#[cfg(test)]
mod tests {
    use super::*;

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
