//! The open block: WAL that was received and is not archived as a whole yet.

use bytes::Bytes;
use keepwell_catalog::wal::{WAL_PIECE_BYTES_MAX, WalHash, WalName, WalPlace};

use crate::lsn::{Lsn, Segment, SegmentSize, Timeline};

/// How long blocks are: a segment, or a part of a large one.
pub(super) fn block_bytes(size: SegmentSize) -> u32 {
    size.get().min(WAL_PIECE_BYTES_MAX as u32)
}

/// A stretch to be archived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub timeline: Timeline,
    pub place: WalPlace,
    pub bytes: Bytes,
    pub previous: Option<WalHash>,
    /// Where it ends in the log.
    pub end: Lsn,
}

/// What was received differs from what is archived; with the beginning of the stretch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Different(pub Lsn);

/// A block being filled.
#[derive(Debug)]
pub(super) struct Block {
    size: SegmentSize,
    timeline: Timeline,
    start: Lsn,
    buffer: Vec<u8>,
    /// Up to here, in the block, the bytes are archived or on their way.
    sent: usize,
    /// Hash of the last piece of this block.
    last: Option<WalHash>,
    /// Hash of the whole block before this one.
    before: Option<WalHash>,
    /// Pieces of this block that were archived earlier, to be compared with what comes, in order of their ends.
    archived: Vec<(usize, usize, WalHash)>,
    /// What else was archived earlier.
    names: Vec<WalName>,
}

impl Block {
    /// An empty block; `start` is a multiple of the block's length. `names` are archived already, here and in the blocks
    /// that follow.
    pub fn new(size: SegmentSize, timeline: Timeline, start: Lsn, names: &[WalName]) -> Self {
        let base = size.offset_of(start);
        let length = block_bytes(size);
        // An archive that ends with a file names that file's pieces, and the block is in the next one.
        let own = Segment { timeline, number: size.number_at(start) }.file_number(size);
        let mut archived: Vec<_> = names
            .iter()
            .filter_map(|name| match name.place {
                WalPlace::Bytes { file, from, to } if file == own && from >= base && to <= base + length => {
                    Some(((from - base) as usize, (to - base) as usize, name.hash))
                }
                _ => None,
            })
            .collect();
        archived.sort_by_key(|(from, to, _)| (*to, *from));
        let names = names.iter().filter(|name| match name.place {
            WalPlace::Bytes { file, to, .. } => file > own || (file == own && to > base + length),
            WalPlace::History => false,
        });
        let names = names.copied().collect();
        Self { size, timeline, start, buffer: Vec::new(), sent: 0, last: None, before: None, archived, names }
    }

    /// The block that follows a full one.
    pub fn next(&self, hash: WalHash) -> Self {
        let start = self.start.plus(block_bytes(self.size).into());
        Self { before: Some(hash), ..Self::new(self.size, self.timeline, start, &self.names) }
    }

    pub fn end(&self) -> Lsn {
        self.start.plus(self.buffer.len() as u64)
    }

    pub fn is_full(&self) -> bool {
        self.buffer.len() == block_bytes(self.size) as usize
    }

    /// Bytes that are neither archived nor on their way.
    pub fn unsent(&self) -> usize {
        self.buffer.len() - self.sent
    }

    /// Takes what fits of `data`, which continues the block, and says how much. Compares it with what is archived.
    pub fn take(&mut self, data: &[u8], hash: impl Fn(&[u8]) -> WalHash) -> Result<usize, Different> {
        let room = block_bytes(self.size) as usize - self.buffer.len();
        let taken = data.len().min(room);
        self.buffer.extend_from_slice(&data[..taken]);
        while let Some((from, to, expected)) = self.archived.first().copied() {
            if to > self.buffer.len() {
                break;
            }
            if hash(&self.buffer[from..to]) != expected {
                return Err(Different(self.start.plus(from as u64)));
            }
            self.archived.remove(0);
            if from <= self.sent && to > self.sent {
                self.sent = to;
                self.last = Some(expected);
            }
        }
        Ok(taken)
    }

    /// From `from` to the end of what is there.
    fn place(&self, from: usize) -> WalPlace {
        let base = self.size.offset_of(self.start);
        let segment = Segment { timeline: self.timeline, number: self.size.number_at(self.start) };
        let file = segment.file_number(self.size);
        WalPlace::Bytes { file, from: base + from as u32, to: base + self.buffer.len() as u32 }
    }

    /// What there is beyond the last tail; `None` when there is nothing.
    pub fn tail(&mut self, hash: impl Fn(&[u8]) -> WalHash) -> Option<Piece> {
        if self.unsent() == 0 {
            return None;
        }
        let from = self.sent;
        let bytes = Bytes::copy_from_slice(&self.buffer[from..]);
        let previous = if from == 0 { self.before } else { self.last };
        let piece = Piece {
            timeline: self.timeline,
            place: self.place(from),
            previous,
            end: self.end(),
            bytes: bytes.clone(),
        };
        self.sent = self.buffer.len();
        self.last = Some(hash(&bytes));
        Some(piece)
    }

    /// The full block as one piece. The buffer goes with it.
    pub fn whole(&mut self) -> Piece {
        let (place, end) = (self.place(0), self.end());
        let bytes = Bytes::from(std::mem::take(&mut self.buffer));
        Piece { timeline: self.timeline, place, bytes, previous: self.before, end }
    }
}
