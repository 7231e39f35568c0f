//! Transfer limits.

use std::fmt;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use crate::{Capabilities, Control, Key, ObjectInfo, ObjectStore, Page, StorageError};

/// Transfers up to this size are charged but not delayed, so that a large object cannot hold up the small ones that
/// keep a session alive.
const UNDELAYED_BYTES: u64 = 64 * 1024;

/// Least part of a range that is fetched at once, where a second's worth is less.
const PIECE_BYTES_MIN: u64 = 256 * 1024;

/// Limits of the rate of transfers; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Bytes per second to the store.
    pub upload_bytes_per_second: Option<NonZeroU64>,
    /// Bytes per second from the store.
    pub download_bytes_per_second: Option<NonZeroU64>,
}

/// A store whose transfers are held below a rate, on average and in all: parallel transfers share it.
///
/// Each transfer waits until its bytes fit: a put before it starts, a get after it, because only then is known how
/// much came. A range is fetched in pieces of what the limit allows in a second (at least 256 KiB), each of which waits,
/// so that a large one leaves the line to others meanwhile; a put and a whole object are bursts. Transfers up to 64 KiB
/// never wait; their bytes count against the next larger one. Waiting is on tokio's clock. Names and listings are not
/// counted.
/// ```
/// use std::num::NonZeroU64;
/// use keepwell_storage::{Memory, ObjectStore, RateLimits, Throttled};
/// use tokio::time::{Instant, pause};
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// # pause();
/// let limits = RateLimits { upload_bytes_per_second: NonZeroU64::new(1 << 20), ..RateLimits::default() };
/// let store = Throttled::new(Memory::new(), limits);
/// let begun = Instant::now();
/// store.put_new(&"data/pack".parse()?, vec![0; 4 << 20].into()).await?;
/// assert_eq!(begun.elapsed().as_secs(), 4);
/// store.get(&"data/pack".parse()?).await?; // at once: only uploads have a limit here
/// assert_eq!(begun.elapsed().as_secs(), 4);
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
pub struct Throttled<S> {
    inner: S,
    upload: Option<Bucket>,
    download: Option<Bucket>,
}

impl<S: ObjectStore> Throttled<S> {
    /// Wraps a store.
    pub fn new(inner: S, limits: RateLimits) -> Self {
        let bucket = |rate: Option<NonZeroU64>| rate.map(Bucket::new);
        let upload = bucket(limits.upload_bytes_per_second);
        Self { inner, upload, download: bucket(limits.download_bytes_per_second) }
    }
}

/// A queue of transfers, each of which takes its bytes' share of time.
struct Bucket {
    bytes_per_second: NonZeroU64,
    /// When everything charged so far has passed.
    free_at: Mutex<Option<Instant>>,
}

impl Bucket {
    fn new(bytes_per_second: NonZeroU64) -> Self {
        Self { bytes_per_second, free_at: Mutex::new(None) }
    }

    fn charge(&self, bytes: u64) -> Instant {
        let now = Instant::now();
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let start = free_at.map_or(now, |free_at| free_at.max(now));
        *free_at.insert(start + self.time_for(bytes))
    }

    fn piece_bytes(&self) -> u64 {
        self.bytes_per_second.get().max(PIECE_BYTES_MIN)
    }

    fn time_for(&self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second.get());
        // Bounded by a year, so that adding it to an instant cannot overflow.
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).min(Duration::from_secs(365 * 86_400))
    }
}

impl<S: ObjectStore> Throttled<S> {
    async fn get_piece(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StorageError> {
        let body = self.inner.get_range(key, range).await?;
        pass(self.download.as_ref(), body.len() as u64).await;
        Ok(body)
    }
}

async fn pass(bucket: Option<&Bucket>, bytes: u64) {
    let Some(bucket) = bucket else { return };
    let until = bucket.charge(bytes);
    if bytes > UNDELAYED_BYTES {
        tokio::time::sleep_until(until).await;
    }
}

#[async_trait]
impl<S: ObjectStore> ObjectStore for Throttled<S> {
    async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), StorageError> {
        pass(self.upload.as_ref(), body.len() as u64).await;
        self.inner.put_new(key, body).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StorageError> {
        let body = self.inner.get(key).await?;
        pass(self.download.as_ref(), body.len() as u64).await;
        Ok(body)
    }

    async fn get_at_most(&self, key: &Key, most: u64) -> Result<Bytes, StorageError> {
        let body = self.inner.get_at_most(key, most).await?;
        pass(self.download.as_ref(), body.len() as u64).await;
        Ok(body)
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StorageError> {
        let piece = self.download.as_ref().map_or(u64::MAX, Bucket::piece_bytes);
        let length = range.end.saturating_sub(range.start);
        if length <= piece {
            return self.get_piece(key, range).await;
        }
        let mut body = BytesMut::with_capacity(usize::try_from(length).unwrap_or(0).min(64 << 20));
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start.saturating_add(piece));
            body.extend_from_slice(&self.get_piece(key, start..end).await?);
            start = end;
        }
        Ok(body.freeze())
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo, StorageError> {
        self.inner.head(key).await
    }

    async fn list_page(&self, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError> {
        self.inner.list_page(prefix, after).await
    }

    async fn delete(&self, key: &Key) -> Result<(), StorageError> {
        self.inner.delete(key).await
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn control(&self) -> Option<Arc<dyn Control>> {
        self.inner.control()
    }
}

impl<S: ObjectStore> fmt::Debug for Throttled<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Throttled({:?})", self.inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Memory, Operation, Recording};

    const MIB: u64 = 1 << 20;

    fn limited(upload: u64, download: u64) -> Throttled<Memory> {
        let limits = RateLimits {
            upload_bytes_per_second: NonZeroU64::new(upload),
            download_bytes_per_second: NonZeroU64::new(download),
        };
        Throttled::new(Memory::new(), limits)
    }

    fn key(number: u64) -> Key {
        format!("k/{number}").parse().unwrap()
    }

    fn body(bytes: u64) -> Bytes {
        vec![7; bytes as usize].into()
    }

    #[tokio::test(start_paused = true)]
    async fn parallel_uploads_share_the_rate_and_downloads_have_their_own() {
        let store = std::sync::Arc::new(limited(MIB, 2 * MIB));
        let start = Instant::now();
        let mut puts = tokio::task::JoinSet::new();
        for number in 0..4 {
            let store = store.clone();
            puts.spawn(async move { store.put_new(&key(number), body(2 * MIB)).await });
        }
        assert!(puts.join_all().await.into_iter().all(|result| result.is_ok()));
        assert_eq!(start.elapsed().as_secs(), 8);

        let start = Instant::now();
        store.get(&key(0)).await.unwrap();
        store.get_range(&key(1), 0..2 * MIB).await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_range_is_fetched_at_the_rate_and_not_at_once() {
        let store = Throttled::new(
            Recording::new(Memory::new()),
            RateLimits { download_bytes_per_second: NonZeroU64::new(MIB), ..RateLimits::default() },
        );
        let expected = body(4 * MIB + 100);
        store.put_new(&key(0), expected.clone()).await.unwrap();
        let start = Instant::now();
        let fetched = store.get_range(&key(0), 10..4 * MIB + 50).await.unwrap();
        assert!(fetched == expected.slice(10..(4 * MIB + 50) as usize));
        assert_eq!(store.inner.snapshot().calls(Operation::GetRange), 5);
        assert_eq!(start.elapsed().as_secs(), 4);
        let refused = store.get_range(&key(0), 0..5 * MIB).await.unwrap_err();
        assert_eq!(refused.kind, crate::StorageErrorKind::OutOfRange);
    }

    #[tokio::test(start_paused = true)]
    async fn small_objects_do_not_wait_but_are_charged() {
        let store = limited(64 * 1024, 1);
        let start = Instant::now();
        for number in 0..10 {
            store.put_new(&key(number), body(64 * 1024)).await.unwrap();
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        store.put_new(&key(10), body(128 * 1024)).await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 12);
    }

    #[tokio::test(start_paused = true)]
    async fn a_range_that_does_not_exist_costs_nothing() {
        let store = limited(MIB, 1);
        store.put_new(&key(0), body(10)).await.unwrap();
        let start = Instant::now();
        store.get_range(&key(0), 0..u64::MAX).await.unwrap_err();
        store.get(&key(1)).await.unwrap_err();
        store.get_range(&key(0), 0..10).await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn without_limits_nothing_waits() {
        let store = Throttled::new(Memory::new(), RateLimits::default());
        let start = Instant::now();
        store.put_new(&key(0), body(MIB)).await.unwrap();
        store.get(&key(0)).await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
