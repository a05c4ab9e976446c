//! The one error of a sandbox, and the one map from it to ttrpc codes.

use crate::host::network::NetworkError;
use std::path::PathBuf;
use ttrpc::Code;

/// Why a sandbox, a container or a process could not be what the caller asked for.
///
/// The cause is in the source; [`Error::chain`] prints both.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No container or process of that id.
    #[error("{0} not found")]
    NotFound(String),
    /// The id is taken.
    #[error("{0} already exists")]
    AlreadyExists(String),
    /// Not legal in the state the object is in.
    #[error("{0}")]
    FailedPrecondition(String),
    /// The caller's input is wrong; the text names the thing.
    #[error("{0}")]
    InvalidArgument(String),
    /// Not offered by this runtime.
    #[error("{0}")]
    Unimplemented(String),
    /// The machine did not start.
    #[error("the virtual machine did not start: {0}")]
    Machine(String),
    /// The sandbox has ended; the text is the reason.
    #[error("the sandbox is gone: {0}")]
    Ended(String),
    /// The agent refused; its own code and text.
    #[error("{message}")]
    Agent {
        /// The agent's code.
        code: Code,
        /// The agent's text, bounded.
        message: String,
    },
    /// The agent did not answer in time.
    #[error("the agent did not answer {call} within {seconds} s")]
    Deadline {
        /// The call.
        call: &'static str,
        /// The deadline, seconds.
        seconds: u64,
    },
    /// The network that was asked for can't be had.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A system call on a file or directory.
    #[error("{what} {}", path.display())]
    Path {
        /// What was tried, as in "mount".
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// Any other system call.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}

/// Result of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// For `map_err` of a call on a path.
    pub fn path<E: Into<std::io::Error>>(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::Path { what, path, source: source.into() }
    }

    /// For `map_err` of any other system call.
    pub fn system<E: Into<std::io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { what, source: source.into() }
    }

    /// The error and all its causes in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }

    /// The ttrpc code that containerd turns into its own kind of error.
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NOT_FOUND,
            Self::AlreadyExists(_) => Code::ALREADY_EXISTS,
            Self::FailedPrecondition(_) => Code::FAILED_PRECONDITION,
            Self::InvalidArgument(_)
            | Self::Network(
                NetworkError::Hosts { .. }
                | NetworkError::Anothers { .. }
                | NetworkError::NotEthernet { .. },
            ) => Code::INVALID_ARGUMENT,
            Self::Unimplemented(_) => Code::UNIMPLEMENTED,
            Self::Ended(_) => Code::UNAVAILABLE,
            Self::Agent { code, .. } => *code,
            Self::Deadline { .. } => Code::DEADLINE_EXCEEDED,
            Self::Machine(_) | Self::Network(_) | Self::Path { .. } | Self::System { .. } => {
                Code::UNKNOWN
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_names_the_thing_and_the_cause() {
        let error =
            Error::path("open", "/nowhere")(std::io::Error::from_raw_os_error(libc::ENOENT));
        assert_eq!(error.chain(), "open /nowhere: No such file or directory (os error 2)");
        assert_eq!(error.code(), Code::UNKNOWN);
    }
}
