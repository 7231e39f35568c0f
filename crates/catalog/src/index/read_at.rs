//! Reading at a position, from wherever a segment lies.

use std::fs::File;
use std::os::unix::fs::FileExt;

use bytes::Bytes;

use crate::error::CatalogError;

/// Random access to bytes that do not change. Called from several threads at once.
#[expect(clippy::len_without_is_empty, reason = "nothing readable is empty: a segment has a trailer")]
pub trait ReadAt: Send + Sync {
    /// Total length in bytes.
    fn len(&self) -> Result<u64, CatalogError>;

    /// Exactly `len` bytes from `offset` on; an error when they reach past the end.
    fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, CatalogError>;

    /// Called when bytes that were read are not what they were written as: gets the whole anew from where it came from,
    /// if there is such a place. `false` means that there is none, and what was read stays damaged.
    fn renew(&self) -> Result<bool, CatalogError> {
        Ok(false)
    }

    /// Whether every read costs a request to a store. Of such a segment no more is read than an answer needs; one that is
    /// far may come near later, never the reverse.
    fn is_far(&self) -> bool {
        false
    }
}

impl ReadAt for Bytes {
    fn len(&self) -> Result<u64, CatalogError> {
        Ok(self.as_ref().len() as u64)
    }

    fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, CatalogError> {
        let start = usize::try_from(offset).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(len)?));
        match range {
            Some(range) if range.end <= self.as_ref().len() => Ok(self.slice(range)),
            _ => Err(CatalogError::ReadSegment { offset, len, source: "it ends before".into() }),
        }
    }
}

impl ReadAt for File {
    fn len(&self) -> Result<u64, CatalogError> {
        let read =
            |source: std::io::Error| CatalogError::ReadSegment { offset: 0, len: 0, source: source.into() };
        Ok(self.metadata().map_err(read)?.len())
    }

    fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, CatalogError> {
        let mut buffer = vec![0; len];
        self.read_exact_at(&mut buffer, offset).map_err(|source| CatalogError::ReadSegment {
            offset,
            len,
            source: source.into(),
        })?;
        Ok(buffer.into())
    }
}
