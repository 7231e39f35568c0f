//! Frames: one or more whole chunks compressed together.

use keepwell_crypto::ChunkId;

use super::PackError;

/// No frame decodes to more than this. Writers stay far below (one chunk of at most 4 MiB, or about 1 MiB of small ones).
pub const FRAME_PLAIN_MAX: usize = 8 << 20;

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
    let declared = zstd::zstd_safe::get_frame_content_size(stored)
        .ok()
        .flatten()
        .ok_or(PackError::Malformed("a frame does not declare its size"))?;
    let declared = usize::try_from(declared).unwrap_or(usize::MAX);
    if declared > FRAME_PLAIN_MAX {
        return Err(PackError::Malformed("a frame is larger than 8 MiB"));
    }
    if expected.is_some_and(|n| n != declared) {
        return Err(PackError::Malformed("a frame has another size than recorded"));
    }
    let whole = zstd::zstd_safe::find_frame_compressed_size(stored)
        .map_err(|code| PackError::Frame(zstd::zstd_safe::get_error_name(code).to_owned()))?;
    if whole != stored.len() {
        return Err(PackError::Malformed("a frame is followed by stray bytes"));
    }
    let plain = zstd::bulk::decompress(stored, declared).map_err(|e| PackError::Frame(e.to_string()))?;
    if plain.len() != declared {
        return Err(PackError::Malformed("a frame has another size than declared"));
    }
    Ok(plain)
}
