//! Which events are logged, of ours and of the libraries'.

use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, Targets};

/// Those of at least this level. Of the cgroup library errors only: it warns of each controller of the host's that it
/// does not know at each look into a cgroup, which is of no use to anybody who reads the log.
pub fn levels(level: Level) -> Targets {
    Targets::new().with_default(level).with_target("libcgroups", LevelFilter::ERROR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_of_the_cgroup_library_are_not_logged() {
        let levels = levels(Level::DEBUG);
        assert!(!levels.would_enable("libcgroups::v2::util", &Level::WARN));
        assert!(levels.would_enable("libcgroups::v2::util", &Level::ERROR));
        assert!(levels.would_enable("sandbox::sandbox", &Level::DEBUG));
        assert!(!levels.would_enable("sandbox::sandbox", &Level::TRACE));
    }
}
