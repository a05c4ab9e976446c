//! Data packed with zstd (RFC 8878): any number of frames one after another, some of which are to be skipped.

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use std::io::{self, BufRead, Read};

/// Most memory that a frame may ask for, bytes: what `zstd` itself takes without being told to take more.
const MAX_WINDOW: u64 = 128 << 20;

/// The data that frames hold.
pub(super) struct Frames<R> {
    source: R,
    decoder: FrameDecoder,
    /// Within a frame.
    begun: bool,
}

impl<R: BufRead> Frames<R> {
    pub(super) fn new(source: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_WINDOW);
        Self { source, decoder, begun: false }
    }

    /// Goes to the next frame; `false` at the end of all.
    fn begin(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    let skipped = io::copy(&mut (&mut self.source).take(length), &mut io::sink())?;
                    if skipped < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(e) => return Err(io::Error::other(e)),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.begun && !self.begin()? {
                return Ok(0);
            }
            self.begun = true;
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let some = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.source, some).map_err(io::Error::other)?;
            }
            let read = self.decoder.read(buffer)?;
            if read > 0 {
                return Ok(read);
            }
            self.begun = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    fn unpacked(packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut data = Vec::new();
        Frames::new(packed).read_to_end(&mut data).map(|_| data)
    }

    #[test]
    fn frames_follow_each_other_and_some_are_skipped() {
        let (first, second) = (b"first ".repeat(100_000), b"second".to_vec());
        let frame = |data: &[u8]| compress_to_vec(data, CompressionLevel::Fastest);
        let skipped = [&0x184d_2a50_u32.to_le_bytes()[..], &3_u32.to_le_bytes(), b"xyz"].concat();
        let all = [frame(&first), skipped.clone(), frame(b""), frame(&second), skipped].concat();
        assert!(unpacked(&all).unwrap() == [first, second].concat());
        assert!(unpacked(&all[..all.len() - 1]).is_err(), "cut off in what is skipped");
        assert!(unpacked(&all[..40]).is_err(), "cut off");
        assert!(unpacked(b"").unwrap().is_empty());
    }

    #[test]
    fn a_frame_that_asks_for_too_much_memory_is_refused() {
        // A window of 2^41 bytes, of 256 MiB; then nothing.
        for window in [31 << 3, 18 << 3] {
            let frame = [&0xfd2f_b528_u32.to_le_bytes()[..], &[0, window], &[1, 0, 0]].concat();
            let error = unpacked(&frame).unwrap_err().to_string();
            assert!(error.to_lowercase().contains("window"), "{error}");
        }
    }
}
