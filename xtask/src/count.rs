//! What suites come to.

/// How many tests passed and failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Passed.
    pub passed: u32,
    /// Failed.
    pub failed: u32,
}

impl Count {
    /// One check.
    pub fn of(passed: bool) -> Self {
        Self { passed: u32::from(passed), failed: u32::from(!passed) }
    }

    /// The exit status: good only when something ran and nothing failed.
    pub fn status(self) -> i32 {
        i32::from(self.failed > 0 || self.passed == 0)
    }
}

impl std::ops::Add for Count {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { passed: self.passed + other.passed, failed: self.failed + other.failed }
    }
}

impl std::iter::Sum for Count {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |a, b| a + b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_nothing_is_no_success() {
        assert_ne!(Count::default().status(), 0);
        assert_eq!(Count { passed: 1, failed: 0 }.status(), 0);
        assert_ne!(Count { passed: 9, failed: 1 }.status(), 0);
    }
}
