//! Small records that never change: fetched from the store once, read from the local cache afterwards.
//!
//! What is cached is the stored object, byte for byte, and it is proved anew whenever it is read, as if it came from the
//! store. That an object *exists* is never concluded from the cache: whoever needs to know lists the store.

use bytes::Bytes;
use keepwell_storage::{Key, ObjectInfo, ObjectStore};

use super::{Repository, fetch_bounded, fetch_listed};
use crate::Error;
use crate::cache::Cache;

const DIRECTORY: &str = "records";

/// A store, with the cache of its records.
#[derive(Clone, Copy)]
pub(crate) struct Records<'a> {
    pub store: &'a dyn ObjectStore,
    pub cache: &'a Cache,
}

impl Records<'_> {
    /// What `prove` makes of a record. A cached one that it refuses is dropped and fetched anew.
    pub async fn get<T>(self, key: &Key, prove: impl Fn(&[u8]) -> Result<T, Error>) -> Result<T, Error> {
        if let Some(found) = self.cached(key, &prove) {
            return Ok(found);
        }
        let bytes = fetch_bounded(self.store, key).await?;
        self.proved(key, &bytes, prove)
    }

    /// The same of one that was listed, and is not fetched if it is too large by that.
    pub async fn get_listed<T>(
        self,
        info: &ObjectInfo,
        prove: impl Fn(&[u8]) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if let Some(found) = self.cached(&info.key, &prove) {
            return Ok(found);
        }
        self.fetch(info, prove).await
    }

    /// Whether the cache has something under this name.
    pub fn holds(self, key: &Key) -> bool {
        self.cache.open(&format!("{DIRECTORY}/{key}")).is_some()
    }

    /// The same of one that was listed, from the store, whatever is cached.
    pub async fn fetch<T>(
        self,
        info: &ObjectInfo,
        prove: impl Fn(&[u8]) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let bytes = fetch_listed(self.store, info).await?;
        self.proved(&info.key, &bytes, prove)
    }

    fn proved<T>(
        self,
        key: &Key,
        bytes: &[u8],
        prove: impl Fn(&[u8]) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let proved = prove(bytes)?;
        self.keep(key, bytes);
        Ok(proved)
    }

    /// The same without a request: nothing where the cache has it not, or damaged.
    pub fn cached<T>(self, key: &Key, prove: impl FnOnce(&[u8]) -> Result<T, Error>) -> Option<T> {
        let name = format!("{DIRECTORY}/{key}");
        let proved = prove(&self.cache.read(&name)?);
        if proved.is_err() {
            self.cache.remove(&name);
        }
        proved.ok()
    }

    /// Forgets what is cached under a name.
    pub fn drop_cached(self, name: &str) {
        self.cache.remove(&format!("{DIRECTORY}/{name}"));
    }

    /// Takes in a record that is in the store with these bytes. A cache that cannot be written costs requests, no more.
    pub fn keep(self, key: &Key, bytes: &[u8]) {
        let _ = self.cache.store(&format!("{DIRECTORY}/{key}"), bytes);
    }
}

impl Repository {
    pub(crate) fn records(&self) -> Records<'_> {
        Records { store: self.store(), cache: self.cache() }
    }

    /// Drops cached records of history, so that a check sees what the store holds. What the trust chain names by its
    /// hash is compared with the store instead.
    pub(crate) fn forget_records(&self) {
        for top in ["commits", "manifests", "retired", "gc"] {
            self.cache().remove_below(&format!("{DIRECTORY}/{top}"));
        }
    }

    /// Drops cached records directly below a prefix that a listing shows no more.
    pub(super) fn keep_records(&self, prefix: &str, is_listed: impl Fn(&str) -> bool) {
        let directory = format!("{DIRECTORY}/{prefix}");
        for name in self.cache().list(&directory) {
            if !is_listed(&format!("{prefix}/{name}")) {
                self.cache().remove(&format!("{directory}/{name}"));
            }
        }
    }

    /// Stores a record under a name that others may compete for, as [`Repository::put_own`] does, and keeps it.
    pub(crate) async fn put_record(&self, key: &Key, body: Vec<u8>) -> Result<bool, Error> {
        let body = Bytes::from(body);
        let ours = self.put_own(key, body.clone()).await?;
        if ours {
            self.records().keep(key, &body);
        }
        Ok(ours)
    }
}
