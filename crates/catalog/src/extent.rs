//! Extents: what the content of a file is made of.

use keepwell_crypto::ChunkId;

use crate::cbor::{Malformed, Reader, put_array, put_bytes, put_null, put_uint};

/// A run of a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Extent {
    /// Bytes `offset..offset + length` of the plaintext of chunk `id`.
    Chunk {
        /// Which chunk.
        id: ChunkId,
        /// Where in the chunk, in bytes.
        offset: u32,
        /// How many bytes, at least one.
        length: u32,
    },
    /// Zeros that need not be stored, and become a hole in a restored file where the file system can.
    Hole {
        /// How many bytes, at least one.
        length: u64,
    },
}

impl Extent {
    /// Length in bytes of the file's content.
    pub fn length(&self) -> u64 {
        match *self {
            Self::Chunk { length, .. } => u64::from(length),
            Self::Hole { length } => length,
        }
    }

    /// The chunk it needs, if any.
    pub fn chunk(&self) -> Option<&ChunkId> {
        match self {
            Self::Chunk { id, .. } => Some(id),
            Self::Hole { .. } => None,
        }
    }

    pub(crate) fn check(&self) -> Result<(), Malformed> {
        if self.length() == 0 {
            return Err(Malformed("an extent is empty"));
        }
        match *self {
            Self::Chunk { offset, length, .. } if offset.checked_add(length).is_none() => {
                Err(Malformed("an extent ends behind its chunk"))
            }
            _ => Ok(()),
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Hole { length } => {
                put_array(out, 2);
                put_null(out);
                put_uint(out, length);
            }
            Self::Chunk { id, offset, length } => {
                put_array(out, if offset == 0 { 2 } else { 3 });
                put_bytes(out, id.as_bytes());
                put_uint(out, u64::from(length));
                if offset != 0 {
                    put_uint(out, u64::from(offset));
                }
            }
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let items = reader.array()?;
        let extent = match (items, reader.null()) {
            (2, true) => Self::Hole { length: reader.uint()? },
            (2 | 3, false) => {
                let id = decode_id(reader)?;
                let length = reader.uint_as()?;
                let offset = if items == 3 { reader.uint_as()? } else { 0 };
                if items == 3 && offset == 0 {
                    return Err(Malformed("an extent is not in its shortest form"));
                }
                Self::Chunk { id, offset, length }
            }
            _ => return Err(Malformed("an extent has the wrong shape")),
        };
        extent.check()?;
        Ok(extent)
    }
}

/// Writes an array of extents: field 6 of an entry, or the value of a sub-key record.
pub(crate) fn encode_extents(extents: &[Extent], out: &mut Vec<u8>) {
    put_array(out, extents.len() as u64);
    for extent in extents {
        extent.encode(out);
    }
}

/// Reads an array of 1 to `maximum` extents and appends them to `into`; returns the sum of their lengths.
pub(crate) fn decode_extents(
    reader: &mut Reader<'_>,
    maximum: usize,
    into: &mut Vec<Extent>,
) -> Result<u64, Malformed> {
    let items = reader.array()?;
    if items == 0 || items > maximum as u64 {
        return Err(Malformed("an array of extents has the wrong length"));
    }
    let mut total: u64 = 0;
    for _ in 0..items {
        let extent = Extent::decode(reader)?;
        total = total.checked_add(extent.length()).ok_or(Malformed("its extents are too long"))?;
        into.push(extent);
    }
    Ok(total)
}

pub(crate) fn decode_id(reader: &mut Reader<'_>) -> Result<ChunkId, Malformed> {
    let bytes =
        <[u8; 32]>::try_from(reader.bytes()?).map_err(|_| Malformed("a chunk id has the wrong length"))?;
    Ok(ChunkId::from_bytes(bytes))
}
