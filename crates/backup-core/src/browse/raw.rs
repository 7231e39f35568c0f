//! Going through a map entry by entry with the bytes of its records.

use keepwell_catalog::{MapKey, MapReader};

use crate::Error;

/// A record of a map.
pub(crate) enum Raw<'r> {
    /// The record of an entry.
    Entry { key: &'r MapKey, value: &'r [u8] },
    /// A record that belongs to the entry before it, under its raw key.
    More { key: &'r [u8], value: &'r [u8] },
}

/// How to go on after a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Next,
    /// Pass over the other records of this entry and everything below it, without fetching it.
    SkipBelow,
    Stop,
}

/// Visits every record of a map in key order.
pub(crate) fn for_each_raw(
    reader: &MapReader<'_>,
    mut visit: impl FnMut(Raw<'_>) -> Result<Step, Error>,
) -> Result<(), Error> {
    let mut cursor = reader.cursor()?;
    let mut current: Option<MapKey> = None;
    while let Some((raw, value)) = cursor.next_record()? {
        let step = match &current {
            Some(owner) if is_sub_record(owner, raw) => visit(Raw::More { key: raw, value })?,
            _ => {
                let key = current.insert(MapKey::from_bytes(raw)?);
                visit(Raw::Entry { key, value })?
            }
        };
        match (step, &current) {
            (Step::Next, _) => {}
            (Step::SkipBelow, Some(key)) => match key.after_subtree() {
                Some(after) => cursor.seek(&after),
                None => return Ok(()),
            },
            (Step::SkipBelow | Step::Stop, _) => return Ok(()),
        }
    }
    Ok(())
}

/// A sub-key is the entry's key with a zero byte, a tag and a number behind it (format §9).
fn is_sub_record(owner: &MapKey, raw: &[u8]) -> bool {
    let owner = owner.as_bytes();
    raw.starts_with(owner) && raw.get(owner.len()) == Some(&0)
}
