//! The index: which pack, frame and offset hold a chunk (format §8).
//!
//! A *segment* is a sorted, signed run of entries. [`SegmentBuilder`] collects the entries of a session in memory;
//! [`SortedSegmentWriter`] streams an already sorted run, as [`merge`] makes it. [`Segment`] reads one, over any
//! [`ReadAt`]: a file, bytes, or a range-reading store. [`IndexSet`] answers for all segments of a repository at once,
//! small ones from memory and large ones through a filter and a bounded cache of blocks.
//!
//! **Invariant:** a block that does not match the hash in the signed tables is an error, never an answer.

mod block;
mod cache;
mod entry;
mod filter;
mod layout;
mod merge;
mod read_at;
mod segment;
mod set;
mod table;
mod writer;

pub use entry::{IndexEntry, PackRef, PackSet};
pub use merge::{LocatedEntry, MergedEntries, merge};
pub use read_at::ReadAt;
pub use segment::{Segment, SegmentEntries, VerifySegment};
pub use set::{IndexSet, Location};
pub use writer::{SegmentBuilder, SortedSegmentWriter};

#[cfg(test)]
mod tests;
