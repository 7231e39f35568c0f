//! From an entry to the records that carry it.

use super::{MapBuilder, NodeSink};
use crate::entry::{Entry, INLINE_EXTENTS_MAX};
use crate::error::MapError;
use crate::extent::{Extent, encode_extents};
use crate::key::MapKey;

/// Tag of the sub-keys of records that hold extents.
pub(super) const TAG_EXTENTS: u8 = 1;
/// Most extents in one sub-key record.
pub(super) const RECORD_EXTENTS_MAX: usize = 1024;
/// A record of extents does not end before this many …
const RECORD_EXTENTS_MIN: usize = 128;
/// … and then after the first chunk whose id is a multiple of this.
const RECORD_EXTENTS_MEAN: u64 = 256;

/// Pushes a whole entry: its head and, beyond 32 extents, the sub-key records with the others.
pub fn push_entry(
    builder: &mut MapBuilder,
    key: &MapKey,
    entry: &Entry,
    sink: &mut dyn NodeSink,
) -> Result<(), MapError> {
    for_each_record(key, entry, |key, value| builder.push(key, value, sink))
}

/// Calls `emit` with each record of a whole entry, in key order: what [`push_entry`] pushes, for whoever also needs the
/// bytes for a recipe.
///
/// Where extents are cut into records depends on the chunk ids around the cut, so a chunk more or less in the middle of
/// a long file changes a record or two, not all that follow. Fails, before it emits anything, on an entry that breaks a
/// rule of the format or is not whole.
pub fn for_each_record<E: From<MapError>>(
    key: &MapKey,
    entry: &Entry,
    mut emit: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    entry.check().map_err(|error| error.at(key))?;
    if entry.more_extents != 0 {
        return Err(MapError::Entry { what: "it is only a head" }.at(key).into());
    }
    let (inline, rest) = entry.content.split_at(entry.content.len().min(INLINE_EXTENTS_MAX));
    let records = u32::try_from(cut(rest).count());
    let records = records.map_err(|_| MapError::Entry { what: "it has too many extents" }.at(key))?;

    let mut value = Vec::with_capacity(256);
    entry.encode_head(inline, records, &mut value);
    emit(key.as_bytes(), &value)?;
    let mut offset = total_length(inline);
    for extents in cut(rest) {
        value.clear();
        encode_extents(extents, &mut value);
        emit(&key.sub_key(TAG_EXTENTS, offset), &value)?;
        offset += total_length(extents);
    }
    Ok(())
}

/// Cuts extents into the runs that share a record.
fn cut(mut rest: &[Extent]) -> impl Iterator<Item = &[Extent]> {
    std::iter::from_fn(move || {
        let longest = rest.len().min(RECORD_EXTENTS_MAX);
        let end = (RECORD_EXTENTS_MIN..longest).find(|&end| ends_record(&rest[end - 1])).unwrap_or(longest);
        let (record, after) = rest.split_at(end);
        rest = after;
        (end > 0).then_some(record)
    })
}

fn ends_record(extent: &Extent) -> bool {
    let start = extent.chunk().and_then(|id| id.as_bytes().first_chunk::<8>());
    start.is_some_and(|start| u64::from_le_bytes(*start).is_multiple_of(RECORD_EXTENTS_MEAN))
}

fn total_length(extents: &[Extent]) -> u64 {
    extents.iter().map(Extent::length).sum()
}
