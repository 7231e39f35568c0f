//! The trait that every store implements.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Control, Key, StorageError};

/// Most objects that one call of [`ObjectStore::list_page`] returns.
pub const LIST_PAGE_MAX: usize = 1000;

/// What a listing knows about an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectInfo {
    /// Its name.
    pub key: Key,
    /// Its length in bytes.
    pub size: u64,
    /// When it was stored, by the clock of the store, in nanoseconds since 1970; `None` where the store does not tell.
    /// Copying the store by other means may change it to something later. Evidence, never an authority.
    pub modified: Option<i64>,
}

/// A part of a listing, as [`ObjectStore::list_page`] returns it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Objects in byte order of their keys.
    pub objects: Vec<ObjectInfo>,
    /// Whether there may be objects after the last of these. A page with more to come has at least one object.
    pub more: bool,
}

/// What a store can promise beyond the minimum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Of several [`put_new`](ObjectStore::put_new) of one key, also from several hosts, exactly one succeeds.
    /// Without it, `put_new` is check-then-write, and only one maintainer may work on the repository at a time.
    pub conditional_create: bool,
}

/// A flat map from [`Key`] to bytes, whose objects are created once and never rewritten.
///
/// Every method may be called from many tasks at once. All reads see every write that returned before they began
/// (list after put included). Errors with [`StorageError::is_retryable`] may pass; after one, a write may or may
/// not have taken effect. A future that is dropped before it is done stops somewhere: the object of a `put_new` is
/// then there whole, or not at all, and may still appear a little later.
///
/// A key is either an object or the beginning of others: beside an object `a` a store may refuse `a/b`, and the
/// reverse, as `Invalid`, because a directory tree cannot hold both; it may go on refusing `a` when the last object
/// beneath is gone.
#[async_trait]
pub trait ObjectStore: Send + Sync + fmt::Debug {
    /// Stores a new object whole, or not at all.
    ///
    /// Name and content appear to readers in one step, and are durable when this returns. Fails with
    /// `AlreadyExists` if the key is taken; the object there is then whole, durable and untouched. A store
    /// that tries again by itself cannot tell its own object from an equal one, and may then report success: writers
    /// that compete for a key must make their bytes differ. On a failure that is not retryable nothing is left in the
    /// store, except that after `Suspect` the object may exist.
    async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), StorageError>;

    /// Returns the whole object, in memory: where its size is not known to be fair, use
    /// [`get_at_most`](Self::get_at_most).
    async fn get(&self, key: &Key) -> Result<Bytes, StorageError>;

    /// Returns the whole object if it has at most `most` bytes; a larger one is `TooLarge`.
    ///
    /// A store that fetches objects stops where that shows, so that no server, whatever it says of sizes, makes us hold
    /// more. A wrapper passes on what it wraps.
    async fn get_at_most(&self, key: &Key, most: u64) -> Result<Bytes, StorageError> {
        let body = self.get(key).await?;
        if body.len() as u64 > most { Err(StorageError::too_large(key, most)) } else { Ok(body) }
    }

    /// Returns exactly `range`; an object that ends before `range.end` is `OutOfRange`, never a short read.
    ///
    /// An empty range that starts at or before the end of the object is an empty answer.
    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StorageError>;

    /// Returns the object's size.
    async fn head(&self, key: &Key) -> Result<ObjectInfo, StorageError>;

    /// Lists objects whose key starts with `prefix` and is greater than `after`, in byte order of their keys.
    ///
    /// `prefix` is empty or ends in `/`. At most [`LIST_PAGE_MAX`] objects; the end is where [`Page::more`] is false,
    /// and what fits into one page comes as one, so that a short listing costs one request. Pass the last key of a
    /// page as `after` to go on. Objects created or deleted between two pages may or may not appear; all others
    /// appear exactly once.
    async fn list_page(&self, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError>;

    /// Removes an object for good; one that is absent is fine.
    async fn delete(&self, key: &Key) -> Result<(), StorageError>;

    /// What this store can promise; constant during its life.
    fn capabilities(&self) -> Capabilities;

    /// Where the store is, for messages; never with credentials.
    fn describe(&self) -> String;

    /// Requests beyond these, where the store knows some. A wrapper passes on what it wraps.
    fn control(&self) -> Option<Arc<dyn Control>> {
        None
    }
}

/// Lists every object under `prefix`, in byte order.
///
/// Costs a request per page. Holds all of them in memory; page by hand where there may be millions.
pub async fn list_all(store: &dyn ObjectStore, prefix: &str) -> Result<Vec<ObjectInfo>, StorageError> {
    let mut all: Vec<ObjectInfo> = Vec::new();
    loop {
        let page = store.list_page(prefix, all.last().map(|info| &info.key)).await?;
        all.extend(page.objects);
        if !page.more {
            return Ok(all);
        }
    }
}

/// Refuses prefixes that are neither empty nor a key followed by `/`.
pub(crate) fn check_prefix(prefix: &str) -> Result<(), StorageError> {
    let Some(directory) = prefix.strip_suffix('/') else {
        return if prefix.is_empty() {
            Ok(())
        } else {
            Err(invalid_prefix(prefix, "it does not end in `/`"))
        };
    };
    Key::new(directory).map(|_| ()).map_err(|error| invalid_prefix(prefix, error.reason))
}

fn invalid_prefix(prefix: &str, reason: &str) -> StorageError {
    let message = format!("not a prefix of keys: {reason}");
    StorageError::new(crate::StorageErrorKind::Invalid, "list", prefix.escape_debug(), message)
}

#[async_trait]
impl<S: ObjectStore + ?Sized> ObjectStore for Arc<S> {
    async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), StorageError> {
        (**self).put_new(key, body).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StorageError> {
        (**self).get(key).await
    }

    async fn get_at_most(&self, key: &Key, most: u64) -> Result<Bytes, StorageError> {
        (**self).get_at_most(key, most).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StorageError> {
        (**self).get_range(key, range).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo, StorageError> {
        (**self).head(key).await
    }

    async fn list_page(&self, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError> {
        (**self).list_page(prefix, after).await
    }

    async fn delete(&self, key: &Key) -> Result<(), StorageError> {
        (**self).delete(key).await
    }

    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }

    fn describe(&self) -> String {
        (**self).describe()
    }

    fn control(&self) -> Option<Arc<dyn Control>> {
        (**self).control()
    }
}
