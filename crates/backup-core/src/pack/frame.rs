//! Frames: one or more whole chunks compressed together.

use keepwell_crypto::ChunkId;

use super::PackError;

/// No frame decodes to more than this. Writers stay far below (one chunk of at most 4 MiB, or about 1 MiB of small ones).
pub const FRAME_PLAIN_MAX: usize = 8 << 20;
/// A frame of small chunks is ended when it has so many, however short they are: the directory of its pack lists them all.
pub(crate) const FRAME_CHUNKS_MAX: usize = 1 << 16;

/// Gathers small chunks into one frame.
#[derive(Debug, Default)]
pub struct FrameBuilder {
    plain: Vec<u8>,
    chunks: Vec<(ChunkId, u32)>,
}

impl FrameBuilder {
    /// Appends a chunk; the frame's plain length must stay within [`FRAME_PLAIN_MAX`], which the caller sees to.
    pub fn push(&mut self, id: ChunkId, chunk: &[u8]) {
        self.plain.extend_from_slice(chunk);
        let length = u32::try_from(chunk.len()).expect("a chunk is at most 4 MiB");
        self.chunks.push((id, length));
    }

    /// Plain bytes gathered.
    pub fn len(&self) -> usize {
        self.plain.len()
    }

    /// Whether it is to be written before another chunk is added, whatever its length.
    pub(crate) fn is_full(&self) -> bool {
        self.chunks.len() >= FRAME_CHUNKS_MAX
    }

    /// Whether there is nothing to write; a chunk of no bytes counts as something.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The gathered bytes.
    pub fn plain(&self) -> &[u8] {
        &self.plain
    }

    /// Ids and lengths, in order.
    pub fn chunks(&self) -> &[(ChunkId, u32)] {
        &self.chunks
    }

    /// Makes it empty, keeping its memory.
    pub fn clear(&mut self) {
        self.plain.clear();
        self.chunks.clear();
    }
}

/// Decompresses exactly one frame that declares its size; `expected` (if known) and [`FRAME_PLAIN_MAX`] bound the memory.
pub fn decode_frame(stored: &[u8], expected: Option<usize>) -> Result<Vec<u8>, PackError> {
    decode_at_most(FRAME_PLAIN_MAX, stored, expected)
}

/// The same with another bound.
pub(super) fn decode_at_most(
    plain_max: usize,
    stored: &[u8],
    expected: Option<usize>,
) -> Result<Vec<u8>, PackError> {
    let mut decoder = FrameDecoder::default();
    decoder.decode_at_most(plain_max, stored, expected)?;
    Ok(decoder.plain)
}

/// Decompresses one frame after another into the same memory.
#[derive(Default)]
pub(crate) struct FrameDecoder {
    context: zstd::bulk::Decompressor<'static>,
    plain: Vec<u8>,
}

impl FrameDecoder {
    /// As [`decode_frame`]; the answer lasts until the next frame.
    pub fn decode(&mut self, stored: &[u8], expected: Option<usize>) -> Result<&[u8], PackError> {
        self.decode_at_most(FRAME_PLAIN_MAX, stored, expected)
    }

    fn decode_at_most(
        &mut self,
        plain_max: usize,
        stored: &[u8],
        expected: Option<usize>,
    ) -> Result<&[u8], PackError> {
        let declared = declared_len(plain_max, stored, expected)?;
        self.plain.clear();
        self.plain.reserve_exact(declared);
        let decoded = self.context.decompress_to_buffer(stored, &mut self.plain);
        if decoded.map_err(|e| PackError::Frame(e.to_string()))? != declared {
            return Err(PackError::Malformed("a frame has another size than declared"));
        }
        Ok(&self.plain)
    }
}

/// What exactly one frame says that it decodes to.
fn declared_len(plain_max: usize, stored: &[u8], expected: Option<usize>) -> Result<usize, PackError> {
    let declared = zstd::zstd_safe::get_frame_content_size(stored)
        .ok()
        .flatten()
        .ok_or(PackError::Malformed("a frame does not declare its size"))?;
    let declared = usize::try_from(declared).unwrap_or(usize::MAX);
    if declared > plain_max {
        return Err(PackError::Malformed("a frame is larger than the format allows"));
    }
    if expected.is_some_and(|n| n != declared) {
        return Err(PackError::Malformed("a frame has another size than recorded"));
    }
    let whole = zstd::zstd_safe::find_frame_compressed_size(stored)
        .map_err(|code| PackError::Frame(zstd::zstd_safe::get_error_name(code).to_owned()))?;
    if whole != stored.len() {
        return Err(PackError::Malformed("a frame is followed by stray bytes"));
    }
    Ok(declared)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(plain: &[u8]) -> Vec<u8> {
        zstd::bulk::compress(plain, 2).unwrap()
    }

    #[test]
    fn a_decoder_gives_each_frame_alone_and_asks_for_memory_once() {
        let mut decoder = FrameDecoder::default();
        let place = decoder.decode(&frame(&[1; 1 << 20]), None).unwrap().as_ptr();
        for (byte, length) in [(2, 1000), (3, 1 << 20), (4, 0), (5, 1)] {
            let plain = decoder.decode(&frame(&vec![byte; length]), Some(length)).unwrap();
            assert_eq!((plain, plain.as_ptr()), (&vec![byte; length][..], place));
        }
    }

    #[test]
    fn what_a_decoder_refused_spoils_nothing() {
        let mut decoder = FrameDecoder::default();
        let whole = frame(b"whole");
        let mut damaged = frame(&[9; 100_000]);
        let last = damaged.len() - 1;
        damaged[last] ^= 0xFF;
        for wrong in [&whole[..whole.len() - 1], &[&whole[..], b"x"].concat(), &damaged, b""] {
            assert!(decoder.decode(wrong, None).is_err(), "{wrong:?}");
            assert!(decode_frame(wrong, None).is_err());
        }
        assert!(decoder.decode(&whole, Some(6)).is_err());
        assert_eq!(decoder.decode(&whole, Some(5)).unwrap(), b"whole");
    }
}
