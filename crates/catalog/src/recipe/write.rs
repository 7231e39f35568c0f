//! Writing a recipe.

use std::io::{self, Write};

use super::{FRAME_PLAIN_BYTES, LEVEL, MAGIC, NO_FINGERPRINT};
use crate::error::{CatalogError, MapError};
use crate::key::display_raw;
use crate::map::{RECORD_KEY_BYTES_MAX, RECORD_VALUE_BYTES_MAX, shared_prefix};
use crate::varint::put_varint;

/// Writes a recipe front to back, in frames of about 256 KiB, which is also all the memory it takes.
/// ```
/// use keepwell_catalog::{Entry, EntryKind, MapKey, RecipeReader, RecipeWriter};
///
/// let (key, fingerprint) = (MapKey::from_components(["etc", "hosts"])?, [7; 16]);
/// let value = Entry::new(EntryKind::File).encode()?;
/// let mut writer = RecipeWriter::new(Vec::new())?;
/// writer.push(key.as_bytes(), &fingerprint, &value)?;
/// let stored = writer.finish()?;
///
/// // The next capture walks beside it: what has the same fingerprint need not be opened.
/// let mut reader = RecipeReader::new(stored.as_slice())?;
/// let known = reader.advance_to(key.as_bytes())?.expect("it was there");
/// assert_eq!(known.fingerprint, fingerprint);
/// assert_eq!(Entry::decode(known.value)?, Entry::new(EntryKind::File));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct RecipeWriter<W: Write> {
    out: W,
    compressor: zstd::bulk::Compressor<'static>,
    plain: Vec<u8>,
    last_key: Vec<u8>,
    records: u64,
}

impl<W: Write> RecipeWriter<W> {
    /// Starts an empty recipe. Writes nothing yet.
    pub fn new(out: W) -> Result<Self, CatalogError> {
        let mut compressor = zstd::bulk::Compressor::new(LEVEL).map_err(write_failed)?;
        compressor.include_checksum(true).map_err(write_failed)?;
        let mut plain = Vec::with_capacity(FRAME_PLAIN_BYTES + (64 << 10));
        plain.extend_from_slice(&MAGIC);
        Ok(Self { out, compressor, plain, last_key: Vec::new(), records: 0 })
    }

    /// Appends the record of an entry, as the map has it. Keys must ascend strictly, those of sub-keys included.
    pub fn push(&mut self, key: &[u8], fingerprint: &[u8; 16], value: &[u8]) -> Result<(), CatalogError> {
        self.check(key, value)?;
        let shared = shared_prefix(&self.last_key, key);
        put_varint(&mut self.plain, shared as u64);
        put_varint(&mut self.plain, (key.len() - shared) as u64);
        self.plain.extend_from_slice(&key[shared..]);
        self.plain.extend_from_slice(fingerprint);
        put_varint(&mut self.plain, value.len() as u64);
        self.plain.extend_from_slice(value);
        self.last_key.truncate(shared);
        self.last_key.extend_from_slice(&key[shared..]);
        self.records += 1;
        if self.plain.len() >= FRAME_PLAIN_BYTES { self.end_frame() } else { Ok(()) }
    }

    /// Appends a sub-key record of the entry before it.
    pub fn push_sub_record(&mut self, key: &[u8], value: &[u8]) -> Result<(), CatalogError> {
        self.push(key, &NO_FINGERPRINT, value)
    }

    /// Writes what is left and flushes. Without this call the recipe reads as cut short, or short of its last records.
    pub fn finish(mut self) -> Result<W, CatalogError> {
        if !self.plain.is_empty() {
            self.end_frame()?;
        }
        self.out.flush().map_err(write_failed)?;
        Ok(self.out)
    }

    fn check(&self, key: &[u8], value: &[u8]) -> Result<(), MapError> {
        for (bytes, maximum) in [(key.len(), RECORD_KEY_BYTES_MAX), (value.len(), RECORD_VALUE_BYTES_MAX)] {
            if bytes > maximum {
                return Err(MapError::RecordTooLarge { path: display_raw(key), bytes, maximum });
            }
        }
        if self.records > 0 && key <= self.last_key.as_slice() {
            return Err(MapError::OutOfOrder { path: display_raw(key) });
        }
        Ok(())
    }

    fn end_frame(&mut self) -> Result<(), CatalogError> {
        let frame = self.compressor.compress(&self.plain).map_err(write_failed)?;
        self.plain.clear();
        self.out.write_all(&frame).map_err(write_failed)
    }
}

impl<W: Write> std::fmt::Debug for RecipeWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecipeWriter").field("records", &self.records).finish_non_exhaustive()
    }
}

fn write_failed(source: io::Error) -> CatalogError {
    CatalogError::RecipeIo { operation: "write", source }
}
