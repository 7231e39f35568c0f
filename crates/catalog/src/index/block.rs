//! Blocks: a run of entries, at most 64 KiB before compression (format §8).
//!
//! A lookup reads, hashes and decodes one block, so we write small ones. At 4 KiB the table of blocks takes 0.85
//! bytes per entry in memory; at 16 KiB a lookup costs nearly four times as much.

use keepwell_crypto::ChunkId;

use super::entry::IndexEntry;
use crate::error::CatalogError;
use crate::varint::put_varint;

/// Largest block before compression that is read.
pub(crate) const BLOCK_BYTES_MAX: usize = 64 << 10;
/// Largest block before compression that is written.
const WRITTEN_BYTES_MAX: usize = 4 << 10;
const COUNT_LEN: usize = 4;
const ID_LEN: usize = ChunkId::LEN;
/// Numbers stored with each id.
const NUMBERS: usize = 5;
const VARINT_U32_LEN_MAX: usize = 5;
/// What a block takes in memory beside its bytes, with its place in a cache.
pub(crate) const BLOCK_OVERHEAD_BYTES: usize = 160;
/// No block has more entries than this: each takes an id and at least one byte per number.
pub(crate) const BLOCK_ENTRIES_MAX: u32 = ((BLOCK_BYTES_MAX - COUNT_LEN) / (ID_LEN + NUMBERS)) as u32;

/// Collects entries until the next one no longer fits.
#[derive(Default)]
pub(crate) struct BlockBuilder {
    ids: Vec<u8>,
    numbers: Vec<u8>,
    count: u32,
    first: Option<ChunkId>,
}

impl BlockBuilder {
    pub(crate) fn first(&self) -> Option<ChunkId> {
        self.first
    }

    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    pub(crate) fn has_room(&self) -> bool {
        let used = COUNT_LEN + self.ids.len() + self.numbers.len();
        used + ID_LEN + NUMBERS * VARINT_U32_LEN_MAX <= WRITTEN_BYTES_MAX
    }

    pub(crate) fn push(&mut self, entry: &IndexEntry) {
        self.first.get_or_insert(entry.id);
        self.ids.extend_from_slice(entry.id.as_bytes());
        let numbers = [entry.pack, entry.frame_offset, entry.frame_length, entry.offset, entry.length];
        for number in numbers {
            put_varint(&mut self.numbers, u64::from(number));
        }
        self.count += 1;
    }

    /// The plain bytes of the block; the builder is empty afterwards.
    pub(crate) fn take(&mut self, plain: &mut Vec<u8>) {
        plain.clear();
        plain.extend_from_slice(&self.count.to_le_bytes());
        plain.append(&mut self.ids);
        plain.append(&mut self.numbers);
        self.count = 0;
        self.first = None;
    }
}

/// A decoded block. Only its shape is checked at first; entries are as they are read.
#[derive(Debug)]
pub(crate) struct Block {
    plain: Vec<u8>,
    count: usize,
}

impl Block {
    /// Takes the plain bytes of a block that must have `count` entries.
    pub(crate) fn parse(plain: Vec<u8>, count: u32) -> Result<Self, CatalogError> {
        let said = plain.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        let count_fits = count as usize <= plain.len().saturating_sub(COUNT_LEN) / ID_LEN;
        if said != Some(count) || !count_fits {
            return Err(malformed("its number of entries does not fit"));
        }
        Ok(Block { plain, count: count as usize })
    }

    /// Bytes that it takes in memory. Whoever signs a segment may make blocks of one entry, so what is beside them counts.
    pub(crate) fn weight(&self) -> usize {
        self.plain.len() + BLOCK_OVERHEAD_BYTES
    }

    /// Position of the first entry whose id is not below `id`.
    pub(crate) fn lower_bound(&self, id: &ChunkId) -> usize {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low.midpoint(high);
            if self.id_bytes(middle) < id.as_bytes() { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// Whether the entry at this position has this id; `false` past the end.
    pub(crate) fn is_at(&self, position: usize, id: &ChunkId) -> bool {
        position < self.count && self.id_bytes(position) == id.as_bytes()
    }

    /// All entries in order. Bytes that follow the last one are an error in its place.
    pub(crate) fn entries(&self) -> BlockEntries<'_> {
        BlockEntries { block: self, position: 0, numbers: &self.plain[COUNT_LEN + self.count * ID_LEN..] }
    }

    fn id_bytes(&self, position: usize) -> &[u8; ID_LEN] {
        let start = COUNT_LEN + position * ID_LEN;
        self.plain[start..].first_chunk().expect("parse checked that all ids are there")
    }
}

/// Entries of one block.
pub(crate) struct BlockEntries<'b> {
    block: &'b Block,
    position: usize,
    numbers: &'b [u8],
}

impl BlockEntries<'_> {
    /// Passes over `count` entries without decoding them.
    pub(crate) fn skip_entries(&mut self, count: usize) -> Result<(), CatalogError> {
        let mut left = count * NUMBERS;
        let mut at = 0;
        while left > 0 {
            let byte = self.numbers.get(at).ok_or_else(|| malformed("it is cut short"))?;
            left -= usize::from(byte & 0x80 == 0);
            at += 1;
        }
        self.numbers = &self.numbers[at..];
        self.position += count;
        Ok(())
    }

    fn read(&mut self) -> Result<IndexEntry, CatalogError> {
        let mut numbers = [0; NUMBERS];
        for number in &mut numbers {
            *number = take_varint(&mut self.numbers)?;
        }
        let id = ChunkId::from_bytes(*self.block.id_bytes(self.position));
        let [pack, frame_offset, frame_length, offset, length] = numbers;
        self.position += 1;
        if self.position == self.block.count && !self.numbers.is_empty() {
            return Err(malformed("bytes follow its last entry"));
        }
        Ok(IndexEntry { id, pack, frame_offset, frame_length, offset, length })
    }
}

impl Iterator for BlockEntries<'_> {
    type Item = Result<IndexEntry, CatalogError>;

    fn next(&mut self) -> Option<Self::Item> {
        (self.position < self.block.count).then(|| self.read())
    }
}

fn take_varint(bytes: &mut &[u8]) -> Result<u32, CatalogError> {
    let mut number: u64 = 0;
    for at in 0..VARINT_U32_LEN_MAX {
        let byte = *bytes.get(at).ok_or_else(|| malformed("it is cut short"))?;
        number |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            if byte == 0 && at > 0 {
                return Err(malformed("a number is not in its shortest form"));
            }
            *bytes = &bytes[at + 1..];
            return u32::try_from(number).map_err(|_| malformed("a number is too large"));
        }
    }
    Err(malformed("a number is too large"))
}

fn malformed(reason: &str) -> CatalogError {
    CatalogError::malformed("index block", reason)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn build(entries: &[IndexEntry]) -> Vec<u8> {
        let mut builder = BlockBuilder::default();
        entries.iter().for_each(|entry| builder.push(entry));
        let mut plain = Vec::new();
        builder.take(&mut plain);
        plain
    }

    fn entry() -> impl Strategy<Value = IndexEntry> {
        any::<([u8; 32], [u32; 5])>().prop_map(|(id, [pack, frame_offset, frame_length, offset, length])| {
            IndexEntry { id: ChunkId::from_bytes(id), pack, frame_offset, frame_length, offset, length }
        })
    }

    proptest! {
        #[test]
        fn entries_survive_a_block(mut entries in prop::collection::vec(entry(), 1..50)) {
            entries.sort();
            let block = Block::parse(build(&entries), entries.len() as u32).unwrap();
            let read: Vec<_> = block.entries().collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(&read, &entries);
            for entry in &entries {
                let at = block.lower_bound(&entry.id);
                prop_assert!(block.is_at(at, &entry.id));
                let mut rest = block.entries();
                rest.skip_entries(at).unwrap();
                prop_assert_eq!(rest.next().unwrap().unwrap().id, entry.id);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(plain: Vec<u8>, count in 0_u32..20, id: [u8; 32]) {
            let mut plain = plain;
            if plain.len() >= 4 {
                plain[..4].copy_from_slice(&count.to_le_bytes());
            }
            if let Ok(block) = Block::parse(plain, count) {
                let _ = block.entries().collect::<Result<Vec<_>, _>>();
                let at = block.lower_bound(&ChunkId::from_bytes(id));
                let _ = block.entries().skip_entries(at);
            }
        }
    }

    #[test]
    fn a_block_that_is_cut_or_longer_is_refused() {
        let entry = IndexEntry {
            id: ChunkId::from_bytes([1; 32]),
            pack: 300,
            frame_offset: 0,
            frame_length: 1,
            offset: 2,
            length: u32::MAX,
        };
        let plain = build(&[entry]);
        let read = |plain: &[u8]| Block::parse(plain.to_vec(), 1)?.entries().collect::<Result<Vec<_>, _>>();
        assert_eq!(read(&plain).unwrap(), [entry]);
        for cut in 0..plain.len() {
            assert!(read(&plain[..cut]).is_err());
        }
        assert!(read(&[&plain[..], &[0]].concat()).is_err());
        let offset = plain.len() - 6; // 2, behind the length of five bytes
        assert_eq!(plain[offset], 2);
        let padded = [&plain[..offset], &[0x82, 0], &plain[offset + 1..]].concat();
        assert!(read(&padded).is_err(), "a number is padded");
    }
}
