//! The end of a segment: its tables and its trailer (format §8).

use keepwell_crypto::{ChunkId, GroupId, MemberId};

use super::block::{BLOCK_BYTES_MAX, BLOCK_ENTRIES_MAX};
use super::entry::PackRef;
use crate::cbor::{put_array, put_bytes, put_text, put_uint};
use crate::error::CatalogError;
use crate::frame::{self, SKIPPABLE_HEADER_LEN};
use crate::names::PackClass;
use crate::records::codec::{MapWriter, Reader, read_map, required};

pub(crate) const FILTER_MAGIC: u32 = 0x184D_2A52;
pub(crate) const TABLES_MAGIC: u32 = 0x184D_2A53;
const TRAILER_MAGIC: u32 = 0x184D_2A54;
const SIGNATURE: [u8; 8] = *b"KWINDX\0\x01";
const TRAILER_CONTENT_LEN: usize = 8 + 4 + 8 + 4 + 64 + 8 + 8;
/// Length of the trailer's whole frame, at the very end.
pub(crate) const TRAILER_LEN: usize = SKIPPABLE_HEADER_LEN + TRAILER_CONTENT_LEN;
/// A stored block is at most this long: what does not compress grows a little.
const STORED_BLOCK_BYTES_MAX: u32 = BLOCK_BYTES_MAX as u32 + 1024;

/// Kind of the signature over the tables.
pub(crate) const SIGNED_KIND: &str = "index";
const WHAT: &str = "index tables";

/// First 16 bytes of BLAKE3: what the tables keep of every other part.
pub(crate) type Hash16 = [u8; 16];

pub(crate) fn hash16(bytes: &[u8]) -> Hash16 {
    *blake3::hash(bytes).as_bytes().first_chunk().expect("BLAKE3 gives 32 bytes")
}

/// Where a block lies, and what it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlockRef {
    pub(crate) first: ChunkId,
    pub(crate) offset: u64,
    pub(crate) stored_len: u32,
    pub(crate) entries: u32,
    /// Entries in the blocks before it; not stored.
    pub(crate) first_ordinal: u64,
    pub(crate) hash: Hash16,
}

/// Everything about a segment but its entries and its filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tables {
    pub(crate) group: GroupId,
    pub(crate) class: PackClass,
    pub(crate) entries: u64,
    pub(crate) packs: Vec<PackRef>,
    pub(crate) blocks: Vec<BlockRef>,
    pub(crate) filter_hash: Hash16,
    pub(crate) inputs: Vec<String>,
}

impl Tables {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut map = MapWriter::default();
        map.text(0, &self.group.to_string());
        map.uint(1, self.class.code());
        map.uint(2, self.entries);
        map.array(3, &self.packs, |out, pack| {
            put_array(out, 4);
            put_text(out, &pack.name.to_string());
            put_uint(out, pack.size);
            put_uint(out, u64::from(pack.header_len));
            put_text(out, &pack.domain.to_string());
        });
        map.array(4, &self.blocks, |out, block| {
            put_array(out, 5);
            put_bytes(out, block.first.as_bytes());
            put_uint(out, block.offset);
            put_uint(out, u64::from(block.stored_len));
            put_uint(out, u64::from(block.entries));
            put_bytes(out, &block.hash);
        });
        map.bytes(5, &self.filter_hash);
        map.texts(6, &self.inputs);
        map.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, CatalogError> {
        let (mut group, mut class, mut entries, mut packs) = (None, None, None, None);
        let (mut blocks, mut filter_hash, mut inputs) = (None, None, None);
        read_map(WHAT, bytes, |reader, key| {
            match key {
                0 => group = Some(reader.parsed()?),
                1 => class = Some(read_class(reader)?),
                2 => entries = Some(reader.uint()?),
                3 => packs = Some(reader.array(read_pack)?),
                4 => blocks = Some(reader.array(read_block)?),
                5 => filter_hash = Some(reader.exact()?),
                6 => inputs = Some(reader.texts()?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let mut tables = Tables {
            group: required(WHAT, "group", group)?,
            class: required(WHAT, "class", class)?,
            entries: required(WHAT, "number of entries", entries)?,
            packs: required(WHAT, "array of packs", packs)?,
            blocks: required(WHAT, "array of blocks", blocks)?,
            filter_hash: required(WHAT, "hash of the filter", filter_hash)?,
            inputs: required(WHAT, "array of inputs", inputs)?,
        };
        tables.packs.shrink_to_fit();
        tables.blocks.shrink_to_fit();
        tables.number_blocks()?;
        Ok(tables)
    }

    /// Where the last block ends.
    pub(crate) fn blocks_end(&self) -> u64 {
        self.blocks.last().map_or(0, |block| block.offset + u64::from(block.stored_len))
    }

    /// Checks that the blocks follow each other, and counts the entries before each.
    fn number_blocks(&mut self) -> Result<(), CatalogError> {
        let malformed = |reason| Err(CatalogError::malformed(WHAT, reason));
        let (mut offset, mut ordinal, mut last) = (0, 0, None);
        for block in &mut self.blocks {
            if block.offset != offset {
                return malformed("a block does not follow the one before it");
            }
            let entries_fit = (1..=BLOCK_ENTRIES_MAX).contains(&block.entries);
            if !entries_fit || block.stored_len > STORED_BLOCK_BYTES_MAX {
                return malformed("a block has an impossible size");
            }
            if last.is_some_and(|last| last > block.first) {
                return malformed("its blocks are out of order");
            }
            last = Some(block.first);
            block.first_ordinal = ordinal;
            ordinal += u64::from(block.entries);
            offset += u64::from(block.stored_len);
        }
        if ordinal != self.entries {
            return malformed("its blocks have not as many entries as it says");
        }
        Ok(())
    }
}

fn read_class(reader: &mut Reader<'_>) -> Result<PackClass, CatalogError> {
    let kind = reader.uint()?;
    PackClass::from_code(kind).ok_or(CatalogError::UnknownKind { what: "index class", kind })
}

fn read_pack(reader: &mut Reader<'_>) -> Result<PackRef, CatalogError> {
    reader.tuple(4)?;
    Ok(PackRef {
        name: reader.parsed()?,
        size: reader.uint()?,
        header_len: reader.uint32()?,
        domain: reader.parsed()?,
    })
}

fn read_block(reader: &mut Reader<'_>) -> Result<BlockRef, CatalogError> {
    reader.tuple(5)?;
    Ok(BlockRef {
        first: ChunkId::from_bytes(reader.exact()?),
        offset: reader.uint()?,
        stored_len: reader.uint32()?,
        entries: reader.uint32()?,
        first_ordinal: 0,
        hash: reader.exact()?,
    })
}

/// The last frame of a segment: where the tables and the filter are, and who signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) tables_offset: u64,
    pub(crate) tables_len: u32,
    pub(crate) filter_offset: u64,
    pub(crate) filter_len: u32,
    pub(crate) signature: [u8; 64],
    pub(crate) signer: MemberId,
}

impl Trailer {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = frame::skippable_header(TRAILER_MAGIC, TRAILER_CONTENT_LEN as u32).to_vec();
        bytes.extend_from_slice(&self.tables_offset.to_le_bytes());
        bytes.extend_from_slice(&self.tables_len.to_le_bytes());
        bytes.extend_from_slice(&self.filter_offset.to_le_bytes());
        bytes.extend_from_slice(&self.filter_len.to_le_bytes());
        bytes.extend_from_slice(&self.signature);
        bytes.extend_from_slice(self.signer.as_bytes());
        bytes.extend_from_slice(&SIGNATURE);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, CatalogError> {
        const WHAT: &str = "index trailer";
        let mut rest = frame::skippable_content(WHAT, TRAILER_MAGIC, bytes)?;
        let mut read = || {
            let trailer = Trailer {
                tables_offset: u64::from_le_bytes(take(&mut rest)?),
                tables_len: u32::from_le_bytes(take(&mut rest)?),
                filter_offset: u64::from_le_bytes(take(&mut rest)?),
                filter_len: u32::from_le_bytes(take(&mut rest)?),
                signature: take(&mut rest)?,
                signer: MemberId::from_bytes(take(&mut rest)?),
            };
            (rest == SIGNATURE).then_some(trailer)
        };
        read().ok_or_else(|| CatalogError::malformed(WHAT, "it is not one of this format version"))
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*taken)
}
