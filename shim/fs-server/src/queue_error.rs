//! What a guest may do wrong with a queue.

use std::io;

/// Why a queue was stopped: the guest broke the rules.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueueError {
    #[error("the rings are not in guest memory")]
    Rings,
    #[error("ring: {0}")]
    Ring(#[from] virtio_queue::Error),
    #[error("descriptor chain: {0}")]
    Chain(#[from] virtiofsd::descriptor_utils::Error),
    #[error("request: {0}")]
    Request(#[from] virtiofsd::Error),
    #[error("the answer is longer than a ring can say")]
    AnswerLength,
    #[error("notification: {0}")]
    Notification(#[source] io::Error),
}
