//! The tests that are still to be run, and what became of the others; several labs take from it.

use crate::count::Count;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Shared by the labs.
pub struct Queue {
    inner: Mutex<Inner>,
    total: usize,
}

struct Inner {
    left: VecDeque<String>,
    count: Count,
    failures: Vec<String>,
}

impl Queue {
    /// Of these tests, in this order.
    pub fn new(tests: Vec<String>) -> Self {
        let total = tests.len();
        let inner = Inner { left: tests.into(), count: Count::default(), failures: Vec::new() };
        Self { inner: Mutex::new(inner), total }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next test, which nobody else gets.
    pub fn take(&self) -> Option<String> {
        self.inner().left.pop_front()
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.inner().left.is_empty()
    }

    /// Notes how a test ended, and says it with all it had to say; blocks of two labs don't mix.
    pub fn ended(&self, passed: bool, verdict: &str, said: &[String]) {
        let mut inner = self.inner();
        inner.count = inner.count + Count::of(passed);
        let number = inner.count.passed + inner.count.failed;
        println!("[{number}/{}] {verdict}", self.total);
        for line in said {
            println!("{line}");
            if line.starts_with("failed: ") {
                inner.failures.push(line.clone());
            }
        }
    }

    /// How many passed and failed.
    pub fn count(&self) -> Count {
        self.inner().count
    }

    /// A line for each that failed.
    pub fn failures(&self) -> Vec<String> {
        self.inner().failures.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_test_is_taken_once_and_counted_once() {
        let queue = Queue::new(vec!["1.7 a".into(), "2.4 a".into()]);
        assert_eq!(queue.take().as_deref(), Some("1.7 a"));
        assert!(!queue.is_empty());
        assert_eq!(queue.take().as_deref(), Some("2.4 a"));
        assert!(queue.is_empty() && queue.take().is_none());
        queue.ended(true, "1.7 a ... ok (1.0 s)", &[]);
        queue.ended(
            false,
            "2.4 a ... FAILED (1.0 s)",
            &["failed: 2.4 a: why".into(), "log".into()],
        );
        assert_eq!(queue.count(), Count { passed: 1, failed: 1 });
        assert_eq!(queue.failures(), ["failed: 2.4 a: why"]);
    }
}
