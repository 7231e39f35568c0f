//! Writing segments: from entries in any order, or as a stream that is already sorted.

use std::collections::HashMap;
use std::io::Write;

use keepwell_crypto::{GroupId, RepositoryId, SigningKey, sign_detached};

use super::block::BlockBuilder;
use super::entry::{IndexEntry, PackRef};
use super::filter::Filter;
use super::layout::{BlockRef, FILTER_MAGIC, SIGNED_KIND, TABLES_MAGIC, Tables, Trailer, hash16};
use super::merge::LocatedEntry;
use crate::error::CatalogError;
use crate::frame;
use crate::names::PackClass;

/// Ids do not compress; the numbers beside them do at any level.
const BLOCK_LEVEL: i32 = 1;
const TABLES_LEVEL: i32 = 3;

/// Collects the entries of a session in memory (52 bytes each) and writes them as one segment.
#[derive(Debug)]
pub struct SegmentBuilder {
    group: GroupId,
    class: PackClass,
    packs: Vec<PackRef>,
    entries: Vec<IndexEntry>,
}

impl SegmentBuilder {
    /// An empty segment of this group and class.
    pub fn new(group: GroupId, class: PackClass) -> Self {
        SegmentBuilder { group, class, packs: Vec::new(), entries: Vec::new() }
    }

    /// Adds a pack and returns its ordinal, for the entries in it. Add each pack once.
    pub fn add_pack(&mut self, pack: PackRef) -> u32 {
        self.packs.push(pack);
        self.packs.len() as u32 - 1
    }

    /// Makes room for so many entries more. A list that grows holds them up to three times for a moment.
    pub fn reserve(&mut self, entries: usize) {
        self.entries.reserve_exact(entries);
    }

    /// Adds an entry; any order will do, and what is added twice is written once.
    pub fn add(&mut self, entry: IndexEntry) {
        self.entries.push(entry);
    }

    /// Entries so far.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The plaintext of the segment, signed; the caller seals it to the group's index recipient.
    ///
    /// `inputs` names the segments that it replaces, none for a new one. Fails only if an entry names a pack that
    /// was not added.
    pub fn finish(
        mut self,
        repository: RepositoryId,
        key: &SigningKey,
        inputs: Vec<String>,
    ) -> Result<Vec<u8>, CatalogError> {
        self.entries.sort_unstable();
        self.entries.dedup();
        let count = self.entries.len();
        let output = Vec::with_capacity(count * 48 + self.packs.len() * 96 + 4096);
        let mut writer = SortedSegmentWriter::new(output, self.group, self.class, count as u64)?;
        for pack in self.packs {
            writer.packs.push(pack);
        }
        for entry in self.entries {
            writer.push(entry)?;
        }
        writer.finish(repository, key, inputs)
    }
}

/// Writes a segment from entries that come in order of their ids, without holding them.
///
/// Memory: the filter (10 bits per expected entry), the table of packs, and one block.
pub struct SortedSegmentWriter<W: Write> {
    output: W,
    written: u64,
    group: GroupId,
    class: PackClass,
    packs: Vec<PackRef>,
    ordinals: HashMap<PackRef, u32>,
    blocks: Vec<BlockRef>,
    filter: Filter,
    /// Entries of the newest id: they are ordered by pack before they are written.
    same_id: Vec<IndexEntry>,
    block: BlockBuilder,
    plain: Vec<u8>,
    compressor: zstd::bulk::Compressor<'static>,
    entries: u64,
}

impl<W: Write> SortedSegmentWriter<W> {
    /// Begins a segment. `expected_entries` sizes the filter: with more entries than that it lets more ids pass.
    pub fn new(
        output: W,
        group: GroupId,
        class: PackClass,
        expected_entries: u64,
    ) -> Result<Self, CatalogError> {
        let compressor =
            zstd::bulk::Compressor::new(BLOCK_LEVEL).map_err(|source| CatalogError::Compress { source })?;
        Ok(SortedSegmentWriter {
            output,
            written: 0,
            group,
            class,
            packs: Vec::new(),
            ordinals: HashMap::new(),
            blocks: Vec::new(),
            filter: Filter::for_entries(expected_entries),
            same_id: Vec::new(),
            block: BlockBuilder::default(),
            plain: Vec::new(),
            compressor,
            entries: 0,
        })
    }

    /// The ordinal of a pack, for the entries in it; a pack that is new is added to the table. Segments that do not agree
    /// about a pack stay apart: what one says falsely harms no entry of another.
    pub fn add_pack(&mut self, pack: PackRef) -> u32 {
        *self.ordinals.entry(pack).or_insert_with(|| {
            self.packs.push(pack);
            self.packs.len() as u32 - 1
        })
    }

    /// Writes an entry. Its id must not be below the one before; entries of one id may come in any order.
    pub fn push(&mut self, entry: IndexEntry) -> Result<(), CatalogError> {
        if entry.pack as usize >= self.packs.len() {
            return Err(self.bad_entry("its pack was not added"));
        }
        match self.same_id.last() {
            Some(last) if last.id > entry.id => return Err(self.bad_entry("its id comes out of order")),
            Some(last) if last.id != entry.id => self.write_same_id()?,
            _ => {}
        }
        self.same_id.push(entry);
        Ok(())
    }

    /// Writes an entry of another segment, with the pack that it lies in.
    pub fn push_located(&mut self, located: &LocatedEntry) -> Result<(), CatalogError> {
        let pack = self.add_pack(located.pack);
        self.push(IndexEntry { pack, ..located.entry })
    }

    /// Entries so far.
    pub fn entries(&self) -> u64 {
        self.entries + self.same_id.len() as u64
    }

    /// Writes filter, tables and trailer, and gives the output back. It is not flushed.
    pub fn finish(
        mut self,
        repository: RepositoryId,
        key: &SigningKey,
        inputs: Vec<String>,
    ) -> Result<W, CatalogError> {
        self.write_same_id()?;
        self.write_block()?;
        let filter_offset = self.written;
        let filter_header = frame::skippable_header(FILTER_MAGIC, frame_len(self.filter.as_bytes().len())?);
        let filter_frame = [&filter_header[..], self.filter.as_bytes()].concat();
        self.write(&filter_frame)?;
        let tables = Tables {
            group: self.group,
            class: self.class,
            entries: self.entries,
            packs: std::mem::take(&mut self.packs),
            blocks: std::mem::take(&mut self.blocks),
            filter_hash: hash16(&filter_frame),
            inputs,
        }
        .encode();
        let signature = sign_detached(key, repository, SIGNED_KIND, &tables);
        let tables_offset = self.written;
        let tables = frame::compress(&tables, TABLES_LEVEL)?;
        self.write(&frame::skippable_header(TABLES_MAGIC, frame_len(tables.len())?))?;
        self.write(&tables)?;
        let trailer = Trailer {
            tables_offset,
            tables_len: frame_len((self.written - tables_offset) as usize)?,
            filter_offset,
            filter_len: frame_len(filter_frame.len())?,
            signature,
            signer: key.member_id(),
        };
        self.write(&trailer.encode())?;
        Ok(self.output)
    }

    fn bad_entry(&self, reason: &'static str) -> CatalogError {
        CatalogError::BadEntry { entry: self.entries(), reason }
    }

    fn write_same_id(&mut self) -> Result<(), CatalogError> {
        let mut same_id = std::mem::take(&mut self.same_id);
        if same_id.len() > 1 {
            same_id.sort_unstable();
            same_id.dedup();
        }
        if let Some(entry) = same_id.first() {
            self.filter.insert(&entry.id);
        }
        for entry in &same_id {
            if !self.block.has_room() {
                self.write_block()?;
            }
            self.block.push(entry);
        }
        self.entries += same_id.len() as u64;
        same_id.clear();
        self.same_id = same_id;
        Ok(())
    }

    fn write_block(&mut self) -> Result<(), CatalogError> {
        let entries = self.block.count();
        let Some(first) = self.block.first() else { return Ok(()) };
        self.block.take(&mut self.plain);
        let stored =
            self.compressor.compress(&self.plain).map_err(|source| CatalogError::Compress { source })?;
        self.blocks.push(BlockRef {
            first,
            offset: self.written,
            stored_len: frame_len(stored.len())?,
            entries,
            first_ordinal: 0,
            hash: hash16(&stored),
        });
        self.write(&stored)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), CatalogError> {
        self.output.write_all(bytes).map_err(|source| CatalogError::WriteSegment { source })?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

/// Lengths in a segment are 32 bits wide.
fn frame_len(len: usize) -> Result<u32, CatalogError> {
    u32::try_from(len)
        .map_err(|_| CatalogError::TooLarge { what: "index segment", limit_bytes: u32::MAX as usize })
}

/// The writer shows where it stands, not what it holds.
impl<W: Write> std::fmt::Debug for SortedSegmentWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SortedSegmentWriter")
            .field("group", &self.group)
            .field("entries", &self.entries())
            .finish()
    }
}
