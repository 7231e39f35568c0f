//! The directory at the end of a pack: what its frames hold, so that an index can be rebuilt from packs alone.

use std::ops::Range;

use keepwell_catalog::IndexEntry;
use keepwell_crypto::ChunkId;
use minicbor::{Decoder, Encoder};

use super::PackError;
use super::frame::decode_at_most;

pub(super) const MAGIC_DIRECTORY: u32 = 0x184D_2A50;
pub(super) const MAGIC_PADDING: u32 = 0x184D_2A51;
pub(super) const TRAILER_LEN: usize = 24;
pub(super) const TRAILER_MAGIC: &[u8; 8] = b"KWPACK\0\x01";
pub(super) const FORMAT: u32 = 1;
/// No directory is read that decodes to more than this.
pub(super) const DIRECTORY_PLAIN_MAX: usize = 64 << 20;
/// Bytes that one chunk takes in a directory, at most: an array of two, 32 bytes with their header, a number.
pub(super) const CHUNK_BYTES: usize = 1 + 34 + 5;
/// Likewise a frame, without its chunks.
pub(super) const FRAME_BYTES: usize = 1 + 5 + 5 + 5;

/// One frame as the directory describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameInfo {
    /// Length as stored (compressed).
    pub stored: u32,
    /// Length decoded.
    pub plain: u32,
    /// Chunks in order, with their lengths, which add up to `plain`.
    pub chunks: Vec<(ChunkId, u32)>,
}

/// All frames of a pack, in order from plaintext offset 0.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PackDirectory {
    /// The frames.
    pub frames: Vec<FrameInfo>,
}

impl PackDirectory {
    /// Encodes to CBOR.
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new(Vec::new());
        // Writing into a Vec cannot fail.
        let infallible = "a Vec takes every byte";
        e.array(self.frames.len() as u64).expect(infallible);
        for frame in &self.frames {
            e.array(3)
                .expect(infallible)
                .u32(frame.stored)
                .expect(infallible)
                .u32(frame.plain)
                .expect(infallible);
            e.array(frame.chunks.len() as u64).expect(infallible);
            for (id, length) in &frame.chunks {
                e.array(2)
                    .expect(infallible)
                    .bytes(id.as_bytes())
                    .expect(infallible)
                    .u32(*length)
                    .expect(infallible);
            }
        }
        e.into_writer()
    }

    /// Decodes from CBOR; lengths must add up, nothing may follow, and there is one way to write each directory.
    pub fn decode(bytes: &[u8]) -> Result<Self, PackError> {
        const BAD: PackError = PackError::Malformed("the directory is not what it should be");
        let mut d = Decoder::new(bytes);
        let count = array(&mut d)?;
        let mut frames = Vec::new();
        for _ in 0..count {
            if array(&mut d)? != 3 {
                return Err(BAD);
            }
            let stored = d.u32().map_err(|_| BAD)?;
            let plain = d.u32().map_err(|_| BAD)?;
            let mut chunks = Vec::new();
            let mut sum = 0u64;
            for _ in 0..array(&mut d)? {
                if array(&mut d)? != 2 {
                    return Err(BAD);
                }
                let id: [u8; 32] = d.bytes().map_err(|_| BAD)?.try_into().map_err(|_| BAD)?;
                let length = d.u32().map_err(|_| BAD)?;
                sum += u64::from(length);
                chunks.push((ChunkId::from_bytes(id), length));
            }
            if chunks.is_empty() {
                return Err(PackError::Malformed("a frame holds no chunk"));
            }
            if sum != u64::from(plain) {
                return Err(PackError::Malformed("the chunks of a frame do not add up"));
            }
            frames.push(FrameInfo { stored, plain, chunks });
        }
        let directory = Self { frames };
        if d.position() != bytes.len() || directory.encode() != bytes {
            return Err(BAD);
        }
        Ok(directory)
    }

    /// What an index says of the pack, under an ordinal of its own.
    pub fn entries(&self, pack: u32) -> Vec<IndexEntry> {
        let mut entries = Vec::with_capacity(self.frames.iter().map(|frame| frame.chunks.len()).sum());
        let mut frame_offset = 0;
        for frame in &self.frames {
            let mut offset = 0;
            for &(id, length) in &frame.chunks {
                let frame_length = frame.stored;
                entries.push(IndexEntry { id, pack, frame_offset, frame_length, offset, length });
                offset += length;
            }
            frame_offset += frame.stored;
        }
        entries
    }

    /// Finds and decodes the directory in the decrypted bytes of a whole pack.
    pub fn of_plaintext(plain: &[u8]) -> Result<Self, PackError> {
        Self::find(plain.len(), |range| Ok::<_, PackError>(&plain[range]))
    }

    /// The same of a pack of which `piece` gives any range of the plaintext, `len` bytes in all. Asks for the trailer, then
    /// for the directory.
    pub(crate) fn find<B: AsRef<[u8]>, E: From<PackError>>(
        len: usize,
        mut piece: impl FnMut(Range<usize>) -> Result<B, E>,
    ) -> Result<Self, E> {
        let trailer_at =
            len.checked_sub(TRAILER_LEN).ok_or(PackError::Malformed("shorter than its trailer"))?;
        let place = place_in_trailer(piece(trailer_at..len)?.as_ref(), trailer_at)?;
        let (frames_end, content_len) = (place.start, place.len() - 8);
        let skippable = piece(place)?;
        let (header, stored) = skippable.as_ref().split_at_checked(8).ok_or(OUTSIDE)?;
        if le_u32(&header[..4]) != MAGIC_DIRECTORY || le_u32(&header[4..]) as usize != content_len {
            return Err(PackError::Malformed("the directory's frame header is wrong").into());
        }
        let directory = Self::decode(&decode_at_most(DIRECTORY_PLAIN_MAX, stored, None)?)?;
        let stored: u64 = directory.frames.iter().map(|f| u64::from(f.stored)).sum();
        if stored != frames_end as u64 {
            return Err(PackError::Malformed("the frames do not add up to the directory's place").into());
        }
        Ok(directory)
    }
}

const OUTSIDE: PackError = PackError::Malformed("the directory lies outside");

/// Where the directory lies, its frame header included: before the trailer, and at least 8 bytes long.
fn place_in_trailer(trailer: &[u8], trailer_at: usize) -> Result<Range<usize>, PackError> {
    if trailer.len() != TRAILER_LEN || &trailer[16..] != TRAILER_MAGIC {
        return Err(PackError::Malformed("the trailer does not end in its magic"));
    }
    if le_u32(&trailer[12..16]) != FORMAT {
        return Err(PackError::Malformed("the format is not 1"));
    }
    let at = usize::try_from(le_u64(&trailer[..8])).unwrap_or(usize::MAX);
    let whole = le_u32(&trailer[8..12]) as usize;
    let end = at.checked_add(whole).filter(|end| whole >= 8 && *end <= trailer_at).ok_or(OUTSIDE)?;
    Ok(at..end)
}

fn array(d: &mut Decoder<'_>) -> Result<u64, PackError> {
    match d.array() {
        Ok(Some(n)) => Ok(n),
        _ => Err(PackError::Malformed("the directory is not what it should be")),
    }
}

fn le_u32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().expect("four bytes were sliced"))
}

fn le_u64(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes were sliced"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four bytes each in a directory, and eight times that in memory.
    #[test]
    fn a_frame_without_chunks_is_refused() {
        let with = |chunks| PackDirectory { frames: vec![FrameInfo { stored: 9, plain: 0, chunks }] };
        let sound = with(vec![(ChunkId::from_bytes([1; 32]), 0)]);
        assert_eq!(PackDirectory::decode(&sound.encode()).unwrap(), sound);
        assert!(PackDirectory::decode(&with(Vec::new()).encode()).is_err());
    }
}
