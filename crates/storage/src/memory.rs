//! A store in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Bound, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use crate::store::check_prefix;
use crate::{
    Capabilities, Key, LIST_PAGE_MAX, ObjectInfo, ObjectStore, Page, StorageError, StorageErrorKind,
};

/// A store in memory, for tests and examples.
///
/// Keeps the whole contract except that it dies with the process. A clone is a second handle to the same objects;
/// [`snapshot`](Self::snapshot) is a copy with a life of its own.
///
/// ```
/// use keepwell_storage::{Memory, ObjectStore};
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let store = Memory::new();
/// store.put_new(&"a".parse()?, "1".into()).await?;
/// let before = store.snapshot();
/// store.put_new(&"b".parse()?, "2".into()).await?;
/// assert_eq!((store.len(), before.len()), (2, 1));
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone, Default)]
pub struct Memory {
    objects: Arc<Mutex<BTreeMap<Key, Bytes>>>,
}

impl Memory {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// A copy that later changes to `self` do not reach; bytes are shared, since objects never change.
    pub fn snapshot(&self) -> Self {
        Self { objects: Arc::new(Mutex::new(self.objects().clone())) }
    }

    /// The number of objects.
    pub fn len(&self) -> usize {
        self.objects().len()
    }

    /// Whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.objects().is_empty()
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<Key, Bytes>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, operation: &'static str, key: &Key) -> Result<Bytes, StorageError> {
        self.objects().get(key).cloned().ok_or_else(|| StorageError::not_found(operation, key))
    }
}

/// An object that stands where a directory tree would need a directory, or the reverse: the same refusal as
/// `LocalFs`, so that tests on memory find such layouts.
fn tree_conflict(objects: &BTreeMap<Key, Bytes>, key: &Key) -> Option<String> {
    let text = key.as_str();
    let above =
        text.match_indices('/').map(|(end, _)| &text[..end]).find(|parent| objects.contains_key(*parent));
    if let Some(parent) = above {
        return Some(format!("`{parent}` is an object, so nothing can be stored beneath it"));
    }
    let beneath = format!("{text}/");
    let next = objects.range::<str, _>((Bound::Excluded(beneath.as_str()), Bound::Unbounded)).next();
    next.filter(|(other, _)| other.as_str().starts_with(&beneath))
        .map(|(other, _)| format!("there are objects beneath it, such as `{other}`"))
}

#[async_trait]
impl ObjectStore for Memory {
    async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), StorageError> {
        let mut objects = self.objects();
        if objects.contains_key(key) {
            return Err(StorageError::already_exists(key));
        }
        if let Some(conflict) = tree_conflict(&objects, key) {
            return Err(StorageError::new(StorageErrorKind::Invalid, "put", key, conflict));
        }
        objects.insert(key.clone(), body);
        Ok(())
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StorageError> {
        self.find("get", key)
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StorageError> {
        let body = self.find("get range", key)?;
        if range.start > range.end || range.end > body.len() as u64 {
            return Err(StorageError::out_of_range(key, &range, body.len() as u64));
        }
        Ok(body.slice(range.start as usize..range.end as usize)) // both fit: they are at most `body.len()`
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo, StorageError> {
        let size = self.find("head", key)?.len() as u64;
        Ok(ObjectInfo { key: key.clone(), size, modified: None })
    }

    async fn list_page(&self, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError> {
        check_prefix(prefix)?;
        let start = after.map_or("", Key::as_str).max(prefix); // no key equals a prefix, so both bounds exclude
        let objects = self.objects();
        let mut found = objects
            .range::<str, _>((Bound::Excluded(start), Bound::Unbounded))
            .take_while(|(key, _)| key.as_str().starts_with(prefix))
            .map(|(key, body)| ObjectInfo { key: key.clone(), size: body.len() as u64, modified: None });
        let page = found.by_ref().take(LIST_PAGE_MAX).collect();
        Ok(Page { objects: page, more: found.next().is_some() })
    }

    async fn delete(&self, key: &Key) -> Result<(), StorageError> {
        self.objects().remove(key);
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { conditional_create: true }
    }

    fn describe(&self) -> String {
        "memory".into()
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Memory({} objects)", self.len())
    }
}
