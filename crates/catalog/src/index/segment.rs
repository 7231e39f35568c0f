//! Reading a segment: trailer, tables and filter once, then one block per lookup.

use std::error::Error;
use std::fmt;
use std::sync::{Arc, OnceLock};

use keepwell_crypto::{ChunkId, GroupId, MemberId};

use super::block::{BLOCK_BYTES_MAX, Block};
use super::cache::BlockCache;
use super::entry::{IndexEntry, PackRef};
use super::filter::Filter;
use super::layout::{BlockRef, FILTER_MAGIC, Hash16, TABLES_MAGIC, TRAILER_LEN, Tables, Trailer, hash16};
use super::read_at::ReadAt;
use crate::error::CatalogError;
use crate::frame;
use crate::names::PackClass;

/// The tables of the largest segment (256 MiB) stay far below this.
const TABLES_BYTES_MAX: usize = 256 << 20;
/// Ids and hashes do not compress, names in hex to half: tables decode to less than three times what they take. Anybody can
/// seal to a group, and the signature is over what they decode to.
const TABLES_EXPANSION_MAX: usize = 16;
/// So much they may decode to in any case.
const TABLES_BYTES_FREE: usize = 1 << 20;

/// Decides whether a signature over the tables of a segment holds: signer, tables, signature.
///
/// It should check the signature as kind `index`, and that the signer is a member that may write to the group.
pub type VerifySegment<'a> =
    &'a dyn Fn(&MemberId, &[u8], &[u8; 64]) -> Result<(), Box<dyn Error + Send + Sync>>;

/// One segment of the index, open for lookups from several threads.
pub struct Segment {
    group: GroupId,
    class: PackClass,
    entries: u64,
    packs: Vec<PackRef>,
    inputs: Vec<String>,
    signer: MemberId,
    body: Body,
}

/// Where the entries are.
enum Body {
    Stored { source: Box<dyn ReadAt>, blocks: Vec<BlockRef>, filter: StoredFilter },
    Memory(Arc<Vec<IndexEntry>>),
}

/// A filter that is read once it is near.
struct StoredFilter {
    offset: u64,
    len: u32,
    hash: Hash16,
    read: OnceLock<Filter>,
}

impl Segment {
    /// Opens the plaintext of a segment: reads trailer, tables and filter, and checks the signature before it
    /// believes anything. Memory afterwards: the filter (10 bits per entry), 56 bytes per pack, 72 per block.
    ///
    /// Of one that is far ([`ReadAt::is_far`]) the filter is left where it is, and every lookup costs a block.
    pub fn open(source: Box<dyn ReadAt>, verify: VerifySegment<'_>) -> Result<Self, CatalogError> {
        let trailer = read_trailer(source.as_ref())?;
        let tables_cbor = read_tables(source.as_ref(), &trailer)?;
        verify(&trailer.signer, &tables_cbor, &trailer.signature)
            .map_err(|source| CatalogError::Untrusted { source })?;
        let tables = Tables::decode(&tables_cbor)?;
        if tables.blocks_end() != trailer.filter_offset {
            return Err(malformed("its filter does not follow its blocks"));
        }
        let filter = StoredFilter::of(&trailer, &tables);
        if !source.is_far() {
            filter.get(source.as_ref())?;
        }
        Ok(Segment {
            group: tables.group,
            class: tables.class,
            entries: tables.entries,
            packs: tables.packs,
            inputs: tables.inputs,
            signer: trailer.signer,
            body: Body::Stored { source, blocks: tables.blocks, filter },
        })
    }

    /// Group that it belongs to.
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// What its packs hold.
    pub fn class(&self) -> PackClass {
        self.class
    }

    /// Number of entries.
    pub fn len(&self) -> u64 {
        self.entries
    }

    /// Whether it has no entries.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Its packs, in order of their ordinals.
    pub fn packs(&self) -> &[PackRef] {
        &self.packs
    }

    /// Names of the segments that were merged into it.
    pub fn inputs(&self) -> &[String] {
        &self.inputs
    }

    /// Who wrote it.
    pub fn signer(&self) -> MemberId {
        self.signer
    }

    /// Whether a lookup costs a request to a store; see [`ReadAt::is_far`].
    pub fn is_far(&self) -> bool {
        match &self.body {
            Body::Stored { source, .. } => source.is_far(),
            Body::Memory(_) => false,
        }
    }

    /// `false` means that the id is not in the segment. Reads nothing.
    pub fn may_contain(&self, id: &ChunkId) -> bool {
        match &self.body {
            Body::Stored { filter, .. } => filter.read.get().is_none_or(|filter| filter.may_contain(id)),
            Body::Memory(entries) => entries.binary_search_by_key(id, |entry| entry.id).is_ok(),
        }
    }

    /// Every entry with this id, each with its position in the segment. Reads and decodes one block, rarely more,
    /// unless the filter excludes the id.
    pub fn find(&self, id: &ChunkId) -> Result<Vec<(u64, IndexEntry)>, CatalogError> {
        let mut found = Vec::new();
        let load = |segment: &Self, number| segment.load_block(number);
        self.visit_with(id, load, &mut |ordinal, entry| found.push((ordinal, entry)))?;
        Ok(found)
    }

    /// Calls `visit` with what [`Segment::find`] gives, through the blocks that `cache` keeps for segment `number` of an
    /// index. Holds one block at a time: how many entries there are, whoever signed the segment decides.
    pub(crate) fn visit_cached(
        &self,
        id: &ChunkId,
        number: usize,
        cache: &BlockCache,
        visit: &mut dyn FnMut(u64, IndexEntry),
    ) -> Result<(), CatalogError> {
        let load = |segment: &Self, block_number| -> Result<_, CatalogError> {
            if let Some(block) = cache.get((number, block_number)) {
                return Ok(block);
            }
            let block = segment.load_block(block_number)?;
            cache.insert((number, block_number), &block);
            Ok(block)
        };
        self.visit_with(id, load, visit)
    }

    /// All entries in order, each with its position. Holds one block at a time.
    pub fn iter(&self) -> SegmentEntries<'_> {
        SegmentEntries {
            segment: self,
            next_block: 0,
            ordinal: 0,
            current: Vec::new().into_iter(),
            last: None,
        }
    }

    /// Decodes all entries (52 bytes each) and lets go of what the segment was read from.
    pub(crate) fn into_memory(self) -> Result<Self, CatalogError> {
        // All at once: a list that grows, or is copied, holds them twice for a moment.
        let mut entries = Vec::with_capacity(usize::try_from(self.entries).unwrap_or(0));
        for item in self.iter() {
            entries.push(item?.1);
        }
        Ok(Segment { body: Body::Memory(Arc::new(entries)), ..self })
    }

    /// The entries, if they are in memory.
    pub(crate) fn in_memory(&self) -> Option<&Arc<Vec<IndexEntry>>> {
        match &self.body {
            Body::Memory(entries) => Some(entries),
            Body::Stored { .. } => None,
        }
    }

    fn visit_with(
        &self,
        id: &ChunkId,
        load: impl Fn(&Self, usize) -> Result<Arc<Block>, CatalogError>,
        visit: &mut dyn FnMut(u64, IndexEntry),
    ) -> Result<(), CatalogError> {
        match &self.body {
            Body::Memory(entries) => {
                find_in_memory(entries, id).for_each(|(ordinal, entry)| visit(ordinal, entry));
            }
            Body::Stored { source, blocks, filter } => {
                if filter.get(source.as_ref())?.is_some_and(|filter| !filter.may_contain(id)) {
                    return Ok(());
                }
                let mut last_pack = 0;
                for number in candidates(blocks, id) {
                    let block = load(self, number)?;
                    self.visit_block(&block, blocks[number].first_ordinal, id, &mut last_pack, visit)?;
                }
            }
        }
        Ok(())
    }

    /// Those of one block. `last_pack` is that of the entry before.
    fn visit_block(
        &self,
        block: &Block,
        first_ordinal: u64,
        id: &ChunkId,
        last_pack: &mut u32,
        visit: &mut dyn FnMut(u64, IndexEntry),
    ) -> Result<(), CatalogError> {
        let mut position = block.lower_bound(id);
        if !block.is_at(position, id) {
            return Ok(());
        }
        let mut entries = block.entries();
        entries.skip_entries(position)?;
        while block.is_at(position, id) {
            let Some(entry) = entries.next() else { break };
            let entry = self.checked(entry?)?;
            if entry.pack < *last_pack {
                return Err(malformed("its entries are out of order"));
            }
            *last_pack = entry.pack;
            visit(first_ordinal + position as u64, entry);
            position += 1;
        }
        Ok(())
    }

    /// A block; from a local copy that is damaged, after that was renewed.
    fn load_block(&self, number: usize) -> Result<Arc<Block>, CatalogError> {
        match (self.read_block(number), &self.body) {
            (Err(error), Body::Stored { source, .. }) => match source.renew()? {
                true => self.read_block(number),
                false => Err(error),
            },
            (read, _) => read,
        }
    }

    fn read_block(&self, number: usize) -> Result<Arc<Block>, CatalogError> {
        const WHAT: &str = "index block";
        let Body::Stored { source, blocks, .. } = &self.body else {
            return Err(CatalogError::malformed(WHAT, "the segment is in memory"));
        };
        let place = &blocks[number];
        let stored = source.read_at(place.offset, place.stored_len as usize)?;
        if hash16(&stored) != place.hash {
            return Err(CatalogError::malformed(WHAT, "its hash is not the one in the tables"));
        }
        let plain = frame::decompress(WHAT, &stored, BLOCK_BYTES_MAX)?;
        Ok(Arc::new(Block::parse(plain, place.entries)?))
    }

    fn checked(&self, entry: IndexEntry) -> Result<IndexEntry, CatalogError> {
        match self.packs.get(entry.pack as usize) {
            Some(_) => Ok(entry),
            None => Err(malformed("an entry names a pack that is not in the tables")),
        }
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment")
            .field("group", &self.group)
            .field("class", &self.class)
            .field("entries", &self.entries)
            .field("packs", &self.packs.len())
            .finish_non_exhaustive()
    }
}

/// Iterator over a whole segment; ends after the first error.
#[derive(Debug)]
pub struct SegmentEntries<'s> {
    segment: &'s Segment,
    next_block: usize,
    ordinal: u64,
    current: std::vec::IntoIter<IndexEntry>,
    last: Option<IndexEntry>,
}

impl SegmentEntries<'_> {
    /// Decodes the next block; `false` when there is none.
    fn advance(&mut self) -> Result<bool, CatalogError> {
        let Body::Stored { blocks, .. } = &self.segment.body else { return Ok(false) };
        if self.next_block == blocks.len() {
            return Ok(false);
        }
        let block = self.segment.load_block(self.next_block)?;
        let entries = block.entries().collect::<Result<Vec<_>, _>>()?;
        if entries.first().map(|entry| entry.id) != Some(blocks[self.next_block].first) {
            return Err(malformed("a block does not begin where the tables say"));
        }
        self.next_block += 1;
        self.current = entries.into_iter();
        Ok(true)
    }

    fn next_entry(&mut self) -> Result<Option<IndexEntry>, CatalogError> {
        if let Body::Memory(entries) = &self.segment.body {
            return Ok(usize::try_from(self.ordinal).ok().and_then(|at| entries.get(at)).copied());
        }
        let entry = loop {
            match self.current.next() {
                Some(entry) => break self.segment.checked(entry)?,
                None if self.advance()? => {}
                None => return Ok(None),
            }
        };
        if self.last.is_some_and(|last| last >= entry) {
            return Err(malformed("its entries are out of order, or one is there twice"));
        }
        self.last = Some(entry);
        Ok(Some(entry))
    }

    fn stop(&mut self) {
        self.current = Vec::new().into_iter();
        self.ordinal = u64::MAX;
        self.next_block = match &self.segment.body {
            Body::Stored { blocks, .. } => blocks.len(),
            Body::Memory(_) => 0,
        };
    }
}

impl Iterator for SegmentEntries<'_> {
    type Item = Result<(u64, IndexEntry), CatalogError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.next_entry() {
            Ok(Some(entry)) => {
                let ordinal = self.ordinal;
                self.ordinal += 1;
                Some(Ok((ordinal, entry)))
            }
            Ok(None) => None,
            Err(error) => {
                self.stop();
                Some(Err(error))
            }
        }
    }
}

impl StoredFilter {
    fn of(trailer: &Trailer, tables: &Tables) -> Self {
        let (offset, len) = (trailer.filter_offset, trailer.filter_len);
        StoredFilter { offset, len, hash: tables.filter_hash, read: OnceLock::new() }
    }

    /// The filter; `None` as long as the segment is far.
    fn get(&self, source: &dyn ReadAt) -> Result<Option<&Filter>, CatalogError> {
        const WHAT: &str = "index filter";
        if self.read.get().is_some() || source.is_far() {
            return Ok(self.read.get());
        }
        let stored = source.read_at(self.offset, self.len as usize)?;
        if hash16(&stored) != self.hash {
            return Err(CatalogError::malformed(WHAT, "its hash is not the one in the tables"));
        }
        let filter = Filter::parse(frame::skippable_content(WHAT, FILTER_MAGIC, &stored)?)?;
        Ok(Some(self.read.get_or_init(|| filter)))
    }
}

/// Blocks that can hold the id: the last one that begins below it, and all that begin with it.
fn candidates(blocks: &[BlockRef], id: &ChunkId) -> std::ops::Range<usize> {
    let from = blocks.partition_point(|block| block.first < *id).saturating_sub(1);
    let to = blocks.partition_point(|block| block.first <= *id);
    from..to.max(from)
}

fn find_in_memory(entries: &[IndexEntry], id: &ChunkId) -> impl Iterator<Item = (u64, IndexEntry)> {
    let from = entries.partition_point(|entry| entry.id < *id);
    let same = entries[from..].iter().take_while(move |entry| entry.id == *id);
    (from as u64..).zip(same.copied())
}

fn read_trailer(source: &dyn ReadAt) -> Result<Trailer, CatalogError> {
    let len = source.len()?;
    let at = len.checked_sub(TRAILER_LEN as u64).ok_or_else(|| malformed("it is too short"))?;
    let trailer = Trailer::decode(&source.read_at(at, TRAILER_LEN)?)?;
    let ends = |offset: u64, len: u32, end: u64| offset.checked_add(u64::from(len)) == Some(end);
    let fits = ends(trailer.tables_offset, trailer.tables_len, at)
        && ends(trailer.filter_offset, trailer.filter_len, trailer.tables_offset);
    if fits { Ok(trailer) } else { Err(malformed("its trailer does not fit its length")) }
}

fn read_tables(source: &dyn ReadAt, trailer: &Trailer) -> Result<Vec<u8>, CatalogError> {
    const WHAT: &str = "index tables";
    let stored = source.read_at(trailer.tables_offset, trailer.tables_len as usize)?;
    let content = frame::skippable_content(WHAT, TABLES_MAGIC, &stored)?;
    let most = content.len().saturating_mul(TABLES_EXPANSION_MAX).saturating_add(TABLES_BYTES_FREE);
    frame::decompress(WHAT, content, most.min(TABLES_BYTES_MAX))
}

fn malformed(reason: &str) -> CatalogError {
    CatalogError::malformed("index segment", reason)
}
