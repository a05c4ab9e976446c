//! What can go wrong with a call, and the one map to ttrpc codes.

use crate::work::job::{Failure, FailureKind};
use crate::work::zygote::ZygoteError;
use std::io;
use ttrpc::Code;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// No container or process of that id.
    #[error("{0} not found")]
    NotFound(String),
    /// The id is taken.
    #[error("{0} already exists")]
    Exists(String),
    /// Not in the state for it.
    #[error("{0}")]
    WrongState(String),
    /// The process has ended; worded as containerd expects it.
    #[error("process already finished")]
    Finished,
    /// The request is wrong.
    #[error("{0}")]
    Invalid(String),
    /// A limit of the guest.
    #[error("too many {0}")]
    TooMany(&'static str),
    /// A worker could not make the process.
    #[error(transparent)]
    Worker(#[from] Failure),
    /// No worker.
    #[error("creating a process")]
    Zygote(#[from] ZygoteError),
    /// The kernel refused.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A fault of the agent.
    #[error("{0}")]
    Internal(String),
}

impl AgentError {
    /// An error of the kernel, with what was tried.
    pub fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { what: what.into(), source: source.into() }
    }

    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) | Self::Finished => Code::NOT_FOUND,
            Self::Exists(_) => Code::ALREADY_EXISTS,
            Self::WrongState(_) => Code::FAILED_PRECONDITION,
            Self::Invalid(_) => Code::INVALID_ARGUMENT,
            Self::TooMany(_) => Code::RESOURCE_EXHAUSTED,
            Self::Worker(failure) => match failure.kind {
                FailureKind::Invalid => Code::INVALID_ARGUMENT,
                FailureKind::WrongState => Code::FAILED_PRECONDITION,
                FailureKind::Internal => Code::INTERNAL,
            },
            Self::Zygote(_) => Code::UNAVAILABLE,
            Self::Io { .. } | Self::Internal(_) => Code::INTERNAL,
        }
    }
}

/// Most of an error's text that is told, bytes.
const MAX_TEXT: usize = 8192;

impl From<AgentError> for ttrpc::Error {
    fn from(error: AgentError) -> Self {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        // A spec may have words of any length, and an answer has not.
        let end = text.char_indices().map(|(at, c)| at + c.len_utf8());
        let end = end.take_while(|end| *end <= MAX_TEXT).last().unwrap_or_default();
        text.truncate(end);
        ttrpc::Error::RpcStatus(ttrpc::get_status(error.code(), text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut() {
        let error = AgentError::WrongState("é".repeat(MAX_TEXT));
        let ttrpc::Error::RpcStatus(status) = error.into() else { panic!("not a status") };
        assert!((MAX_TEXT - 1..=MAX_TEXT).contains(&status.message.len()));
    }

    #[test]
    fn the_caller_gets_the_code_and_the_whole_chain() {
        let error = AgentError::io("mounting \"x\"", io::Error::from_raw_os_error(libc::ENODEV));
        let ttrpc::Error::RpcStatus(status) = error.into() else { panic!("not a status") };
        assert_eq!(status.code(), Code::INTERNAL);
        assert!(status.message().starts_with("mounting \"x\": No such device"));
    }
}
