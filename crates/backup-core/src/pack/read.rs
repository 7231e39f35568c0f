//! Taking chunks out of decoded frames.

use keepwell_crypto::{ChunkId, ChunkKind, IdKey};

use super::PackError;
use crate::planted::planted;

/// Takes one chunk out of a decoded frame and proves that it is the one asked for.
pub fn chunk_from_frame<'a>(
    frame: &'a [u8],
    offset: u32,
    length: u32,
    id: &ChunkId,
    kind: ChunkKind,
    key: &IdKey,
) -> Result<&'a [u8], PackError> {
    let from = offset as usize;
    let chunk = frame
        .get(from..from.saturating_add(length as usize))
        .ok_or(PackError::Malformed("a chunk lies outside its frame"))?;
    if key.chunk_id(kind, chunk) != *id && !planted("chunk-id-unchecked") {
        return Err(PackError::WrongId(*id));
    }
    Ok(chunk)
}
