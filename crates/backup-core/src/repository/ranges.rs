//! A sealed object in the store, of which only parts are fetched.

use std::io::{Read, Seek, SeekFrom};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use keepwell_crypto::{
    Identity, MAX_HEADER_BYTES, NONCE_BYTES, OpenReader, Parts, header_len, plain_len, sealed_range,
};
use keepwell_storage::{Key, ObjectStore, StorageError};

use crate::Error;

/// Whatever the header is.
const HEAD_BYTES: u64 = (MAX_HEADER_BYTES + NONCE_BYTES) as u64;
/// So much of the end comes with the first answer: the trailer of an index segment, and the tables of most.
const TAIL_BYTES: u64 = 128 << 10;
/// After so many requests …
const REQUESTS_MAX: u64 = 128;
/// … or such a part of its bytes, the whole of it would have been the better choice.
const SHARE_MAX: u64 = 4;

/// The plaintext of a sealed object by ranges. Each byte that it gives was sealed as part of that object, at that place,
/// by somebody; whether the object is the one that its name says shows only in the whole of it.
#[derive(Debug)]
pub(super) struct Ranges {
    key: Key,
    size: u64,
    header_len: usize,
    plain_len: u64,
    head: Bytes,
    tail: Bytes,
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Ranges {
    /// Fetches the two ends of an object of this size, at the same time.
    pub async fn open(store: &dyn ObjectStore, key: Key, size: u64) -> Result<Self, Error> {
        let (head, tail) = (0..HEAD_BYTES.min(size), size.saturating_sub(TAIL_BYTES)..size);
        let fetched = tokio::try_join!(store.get_range(&key, head), store.get_range(&key, tail));
        let (head, tail) = fetched?;
        let damaged = |error| Error::damaged(&key, error);
        let header_len = header_len(&head).map_err(damaged)?;
        let plain_len = plain_len(header_len, size).map_err(damaged)?;
        let bytes = AtomicU64::new((head.len() + tail.len()) as u64);
        Ok(Self { key, size, header_len, plain_len, head, tail, requests: AtomicU64::new(2), bytes })
    }

    /// Length of the plaintext, as the size of the object implies it.
    pub fn len(&self) -> u64 {
        self.plain_len
    }

    /// Stored bytes of the object.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether so much was fetched that the whole should be.
    pub fn are_spent(&self) -> bool {
        self.requests.load(Ordering::Relaxed) >= REQUESTS_MAX
            || self.bytes.load(Ordering::Relaxed) >= self.size / SHARE_MAX
    }

    /// Exactly `len` bytes of the plaintext; at most one request.
    pub async fn read(
        &self,
        store: &dyn ObjectStore,
        identities: &[Identity],
        offset: u64,
        len: usize,
    ) -> Result<Bytes, Error> {
        let end = offset.saturating_add(len as u64);
        if end > self.plain_len {
            return Err(Error::damaged(&self.key, "it is shorter than it says"));
        }
        let sealed = sealed_range(self.header_len, offset..end);
        let (start, bytes) = self.fetch(store, sealed.start..sealed.end.min(self.size)).await?;
        let parts = Parts::new(self.size).with(0, self.head.clone()).with(start, bytes);
        let damaged = |error: &dyn std::fmt::Display| Error::damaged(&self.key, error);
        let mut reader = OpenReader::new(identities, parts).map_err(|error| damaged(&error))?;
        let mut plain = vec![0; len];
        let read = reader.seek(SeekFrom::Start(offset)).and_then(|_| reader.read_exact(&mut plain));
        read.map_err(|error| damaged(&error))?;
        Ok(plain.into())
    }

    /// Stored bytes that hold this range, and where they begin.
    async fn fetch(
        &self,
        store: &dyn ObjectStore,
        range: std::ops::Range<u64>,
    ) -> Result<(u64, Bytes), StorageError> {
        let tail_start = self.size - self.tail.len() as u64;
        if range.start >= tail_start {
            return Ok((tail_start, self.tail.clone()));
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        let bytes = store.get_range(&self.key, range.clone()).await?;
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok((range.start, bytes))
    }
}
