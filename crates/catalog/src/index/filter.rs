//! The Bloom filter of a segment: 64 byte blocks, seven bits each (format §8).
//!
//! Ids are keyed hashes, so their own bytes serve as the hash. About 1.4 % of the ids that are absent pass it.

use keepwell_crypto::ChunkId;

use crate::error::CatalogError;

const BLOCK_LEN: usize = 64;
const BITS_PER_BLOCK: u16 = 512;
const BITS_PER_ENTRY: u64 = 10;
const PROBES: usize = 7;
const HEADER_LEN: usize = 8;

/// A filter as it is stored: header, then the blocks.
#[derive(Debug)]
pub(crate) struct Filter {
    bytes: Box<[u8]>,
}

impl Filter {
    /// An empty filter, sized for this many entries.
    pub(crate) fn for_entries(entries: u64) -> Self {
        let blocks = (entries * BITS_PER_ENTRY).div_ceil(u64::from(BITS_PER_BLOCK)).max(1);
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
        let mut bytes = vec![0; HEADER_LEN + blocks as usize * BLOCK_LEN];
        bytes[..4].copy_from_slice(&blocks.to_le_bytes());
        bytes[4] = PROBES as u8;
        Filter { bytes: bytes.into() }
    }

    /// Takes a stored filter; refuses one whose header does not fit it.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, CatalogError> {
        let malformed = |reason| CatalogError::malformed("index filter", reason);
        let (header, blocks) =
            bytes.split_at_checked(HEADER_LEN).ok_or_else(|| malformed("it is cut short"))?;
        if header[4..] != [PROBES as u8, 0, 0, 0] {
            return Err(malformed("its header is not one of this version"));
        }
        let said = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        if said == 0 || said.checked_mul(BLOCK_LEN) != Some(blocks.len()) {
            return Err(malformed("its length is not what its header says"));
        }
        Ok(Filter { bytes: bytes.into() })
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn insert(&mut self, id: &ChunkId) {
        let start = self.block_start(id);
        for bit in bits(id) {
            self.bytes[start + usize::from(bit / 8)] |= 1 << (bit % 8);
        }
    }

    /// `false` means that the id was never inserted.
    pub(crate) fn may_contain(&self, id: &ChunkId) -> bool {
        let start = self.block_start(id);
        bits(id).all(|bit| self.bytes[start + usize::from(bit / 8)] & 1 << (bit % 8) != 0)
    }

    fn block_start(&self, id: &ChunkId) -> usize {
        let blocks = (self.bytes.len() - HEADER_LEN) / BLOCK_LEN;
        let hash = u64::from_le_bytes(*id.as_bytes().first_chunk().expect("an id has 32 bytes"));
        HEADER_LEN + (hash % blocks as u64) as usize * BLOCK_LEN
    }
}

/// Which bits of its block an id sets.
fn bits(id: &ChunkId) -> impl Iterator<Item = u16> {
    let pairs = &id.as_bytes()[8..8 + 2 * PROBES];
    pairs.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]) % BITS_PER_BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u64) -> ChunkId {
        ChunkId::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes())
    }

    #[test]
    fn every_inserted_id_passes_and_few_others_do() {
        let mut filter = Filter::for_entries(10_000);
        (0..10_000).for_each(|n| filter.insert(&id(n)));
        let filter = Filter::parse(filter.as_bytes()).unwrap();
        assert!((0..10_000).all(|n| filter.may_contain(&id(n))));
        let false_hits = (10_000..110_000).filter(|&n| filter.may_contain(&id(n))).count();
        assert!(false_hits < 2_500, "{false_hits} of 100000");
    }

    #[test]
    fn the_layout_is_the_one_of_the_format() {
        let mut filter = Filter::for_entries(1);
        let mut bytes = [0; 32];
        bytes[8..10].copy_from_slice(&513_u16.to_le_bytes());
        filter.insert(&ChunkId::from_bytes(bytes));
        assert_eq!(filter.as_bytes()[..9], [1, 0, 0, 0, 7, 0, 0, 0, 0b11]);
        assert_eq!(filter.as_bytes().len(), 72);
    }

    #[test]
    fn headers_that_do_not_fit_are_refused() {
        let good = Filter::for_entries(100).as_bytes().to_vec();
        for at in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(Filter::parse(&bad).is_err(), "byte {at}");
        }
        assert!(Filter::parse(&good[..good.len() - 1]).is_err());
        assert!(Filter::parse(&[]).is_err());
        assert!(Filter::parse(&[0, 0, 0, 0, 7, 0, 0, 0]).is_err());
    }
}
