// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compressed streams, known by their first bytes.

use std::io::{self, BufRead, Read};

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    Plain,
    /// gzip, one member or more.
    Gzip,
    /// zstd, one frame or more.
    Zstd,
}

/// The largest zstd window that is decoded (128 MiB, zstd's own limit without `--long`): it bounds memory.
const WINDOW_LOG_MAX: u32 = 27;

impl Compression {
    /// Knows a stream by its first bytes (four are enough).
    pub fn detect(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            // A skippable frame, with which zstd:chunked and pzstd may begin.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            _ => Compression::Plain,
        }
    }

    /// The uncompressed stream of `source`, which is compressed in this way.
    pub fn decode<'a>(self, source: impl BufRead + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
        Ok(match self {
            Compression::Plain => Box::new(source),
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
                decoder.window_log_max(WINDOW_LOG_MAX)?;
                Box::new(decoder)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn decode(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Compression::detect(bytes).decode(bytes)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn several_members_and_frames_are_one_stream() {
        assert_eq!(decode(&[gzip(b"ab"), gzip(b"cd")].concat()).unwrap(), b"abcd");
        let zstd = |b: &[u8]| zstd::encode_all(b, 1).unwrap();
        assert_eq!(decode(&[zstd(b"ab"), zstd(b"cd")].concat()).unwrap(), b"abcd");
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 1, 2][..], &zstd(b"x")].concat();
        assert_eq!(decode(&skippable).unwrap(), b"x");
        assert_eq!(decode(b"plain").unwrap(), b"plain");
    }

    #[test]
    fn streams_cut_short_are_errors() {
        for whole in [gzip(&[7; 5000]), zstd::encode_all(&[7; 5000][..], 1).unwrap()] {
            for cut in 4..whole.len() {
                assert!(decode(&whole[..cut]).is_err(), "{cut}");
            }
        }
    }
}
