//! Decompresses a whole zstd file: frame after frame, checksums verified.

use std::io::{self, BufRead, Read};

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// The first bytes of a zstd frame (RFC 8878, section 3.1.1).
pub(crate) const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Reads the content of all frames of `source`, one after the other; skippable frames are skipped.
///
/// Memory: one window of at most 128 MiB, the decoder's limit for a frame.
pub(crate) struct ZstdFrames<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> ZstdFrames<R> {
    pub(crate) fn new(source: R) -> Self {
        Self { source, decoder: FrameDecoder::new(), in_frame: false }
    }

    /// Begins the next frame; false at the end of the source.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.init(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    io::copy(&mut self.source.by_ref().take(u64::from(length)), &mut io::sink())?;
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        }
        Ok(false)
    }

    fn end_frame(&mut self) -> io::Result<()> {
        self.in_frame = false;
        match self.decoder.get_checksum_from_data() {
            Some(expected) if self.decoder.get_calculated_checksum() != Some(expected) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "checksum of the zstd frame does not match"))
            }
            _ => Ok(()),
        }
    }
}

impl<R: BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.in_frame {
                self.in_frame = self.next_frame()?;
                if !self.in_frame {
                    return Ok(0);
                }
            }
            let read = self.decoder.read(buffer)?;
            if read > 0 {
                return Ok(read);
            }
            if self.decoder.is_finished() {
                self.end_frame()?;
            } else {
                self.decoder
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn frame(content: &[u8]) -> Vec<u8> {
        compress_to_vec(content, CompressionLevel::Fastest)
    }

    fn read(compressed: &[u8]) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        ZstdFrames::new(compressed).read_to_end(&mut content).map(|_| content)
    }

    #[test]
    fn reads_frame_after_frame_and_skips_the_skippable() {
        let long = b"line of a trace\n".repeat(50_000);
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let file = [frame(b"first\n"), skippable, frame(&long)].concat();
        let content = read(&file).expect("well formed");
        assert!(content == [b"first\n".to_vec(), long].concat());
        assert_eq!(read(b"").expect("nothing"), b"");
    }

    #[test]
    fn a_truncated_frame_is_an_error() {
        let whole = frame(&b"line of a trace\n".repeat(1000));
        assert!(read(&whole[..whole.len() - 7]).is_err());
    }

    #[test]
    fn a_flipped_bit_is_an_error() {
        let mut bent = frame(b"some text that does not repeat: 0123456789");
        let last_content_byte = bent.len() - 5;
        bent[last_content_byte] ^= 1;
        assert_eq!(read(&bent).expect_err("checksum").kind(), io::ErrorKind::InvalidData);
    }
}
