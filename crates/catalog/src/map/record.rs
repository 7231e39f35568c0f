//! Looking into one record of a map without reading its entry as a whole.

use super::split::{RECORD_EXTENTS_MAX, TAG_EXTENTS};
use crate::cbor::Reader;
use crate::entry::Entry;
use crate::error::MapError;
use crate::extent::{Extent, decode_extents};
use crate::key::split_sub_key;

/// The extents that one raw record holds: those at the head of an entry, or those of a sub-key record.
///
/// For whoever visits every record, as a mark phase does. Records with an unknown sub-key tag have none.
pub fn record_extents(raw_key: &[u8], value: &[u8]) -> Result<Vec<Extent>, MapError> {
    match split_sub_key(raw_key).1 {
        None => Ok(Entry::decode(value)?.content),
        Some((TAG_EXTENTS, _)) => {
            let mut extents = Vec::new();
            let mut reader = Reader::new(value);
            decode_extents(&mut reader, RECORD_EXTENTS_MAX, &mut extents)?;
            reader.finish()?;
            Ok(extents)
        }
        Some(_) => Ok(Vec::new()),
    }
}
