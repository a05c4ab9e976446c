//! What a guest may say at once. Its messages are decoded before they are looked at, and then take more than a hundred
//! times their length: an empty item of a list is two bytes.

use protocol::ports::MAX_ANSWER;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, Join, ReadBuf, join};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MessageHeader};

/// A guest's stream of ttrpc, the reading half of which is bounded.
pub(super) fn bounded(stream: UnixStream) -> Join<BoundedFrames, OwnedWriteHalf> {
    let (stream, written) = stream.into_split();
    join(BoundedFrames { stream, header: Vec::new(), left: 0 }, written)
}

/// What is read of it: it fails before a message of more than [`MAX_ANSWER`]. It lies below ttrpc, whose own limit is
/// fixed, and so holds for all calls and for the status that each answer comes in.
#[derive(Debug)]
pub(super) struct BoundedFrames {
    stream: OwnedReadHalf,
    /// The header that is being read.
    header: Vec<u8>,
    /// What is yet to come of the message after it.
    left: u64,
}

impl BoundedFrames {
    /// Follows what was read.
    fn follow(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let in_message = self.left.min(bytes.len() as u64);
            self.left -= in_message;
            bytes = &bytes[in_message as usize..];
            let missing = MESSAGE_HEADER_LENGTH - self.header.len();
            let (of_header, rest) = bytes.split_at(missing.min(bytes.len()));
            self.header.extend(of_header);
            bytes = rest;
            if self.header.len() == MESSAGE_HEADER_LENGTH {
                self.left = MessageHeader::from(&self.header).length.into();
                self.header.clear();
                if self.left > MAX_ANSWER {
                    let what = format!("the guest sends {} bytes at once", self.left);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                }
            }
        }
        Ok(())
    }
}

impl AsyncRead for BoundedFrames {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let outcome = self.follow(&buffer.filled()[before..]);
        if outcome.is_err() {
            buffer.set_filled(before);
        }
        Poll::Ready(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn frame(len: u64) -> Vec<u8> {
        let mut frame = Vec::from(MessageHeader::new_response(1, len as u32));
        frame.resize(frame.len() + len as usize, 7);
        frame
    }

    #[tokio::test]
    async fn messages_pass_as_they_are_and_none_that_is_too_long() {
        let good = [frame(3), frame(0), frame(MAX_ANSWER), frame(1)].concat();
        for piece in [1, 9, 11, 70_000, good.len()] {
            let (ours, mut guest) = UnixStream::pair().unwrap();
            let sent = good.clone();
            let say = tokio::spawn(async move {
                for bytes in sent.chunks(piece) {
                    guest.write_all(bytes).await.unwrap();
                    if piece < 70_000 && bytes.len() < piece {
                        tokio::task::yield_now().await;
                    }
                }
                guest.write_all(&frame(MAX_ANSWER + 1)[..MESSAGE_HEADER_LENGTH]).await.unwrap();
            });
            let mut heard = Vec::new();
            let mut stream = bounded(ours);
            let error = stream.read_to_end(&mut heard).await.unwrap_err();
            say.await.unwrap();
            assert!(error.to_string().contains("131073 bytes at once"), "{error}");
            // What was read together with its header is lost with it.
            assert!(good.starts_with(&heard));
        }
    }

    #[test]
    fn lengths_are_followed_however_they_come() {
        let (ours, _guest) = std::os::unix::net::UnixStream::pair().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _context = runtime.enter();
        ours.set_nonblocking(true).unwrap();
        let (mut frames, _written) = bounded(UnixStream::from_std(ours).unwrap()).into_inner();
        for piece in [1, 9, 10, 11, 4096] {
            let all = [frame(3), frame(0), frame(MAX_ANSWER)].concat();
            all.chunks(piece).for_each(|bytes| frames.follow(bytes).unwrap());
        }
        let long = frame(MAX_ANSWER + 1);
        frames.follow(&long[..MESSAGE_HEADER_LENGTH - 1]).unwrap();
        assert!(frames.follow(&long[MESSAGE_HEADER_LENGTH - 1..MESSAGE_HEADER_LENGTH]).is_err());
    }
}
