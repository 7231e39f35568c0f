//! An open repository: its store, its keys, its index.

mod access;
mod bounded;
mod create;
mod ends;
mod fetch;
mod index;
mod open;
mod plans;
mod ranges;
#[cfg(test)]
mod ranges_tests;
mod records;
mod seen;
mod snapshots;
mod standing;
mod stored_segment;
#[cfg(test)]
mod tests;
mod trust;

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use bytes::Bytes;
use keepwell_catalog::{ContentName, PackSet, SegmentBuilder, names};
use keepwell_crypto::keyring::DomainKeys;
use keepwell_crypto::trust::{Chain, Roles};
use keepwell_crypto::{
    DomainId, GroupId, IdKey, Identity, MemberId, RepositoryId, Signed, SigningKey, StoreId,
};
use keepwell_storage::{Key, ObjectStore, list_all};

pub use access::Access;
pub use create::{CreateOptions, Created};
pub use open::{Builder, RepositoryHint};
pub(crate) use snapshots::in_order;
pub use snapshots::{Snapshot, SnapshotState};

pub(crate) use bounded::{fetch_at_most, fetch_bounded, fetch_listed};
pub(crate) use create::seal_keyring;
pub(crate) use ends::{
    Before, End, OwnEnds, read_before, read_ends, read_ends_anew, read_own_ends, verify_end,
};
pub(crate) use plans::{Plans, may_be_condemned, read_plans, read_plans_anew, read_verdict};
pub(crate) use trust::{
    HEAD, advance_chain, read_chain, read_erasable, read_keyring, reading_keyring, remember_head,
};

use crate::Error;
use crate::cache::Cache;
use crate::cancel::Cancel;
use crate::env::{Clock, Rng, Timestamp};
use crate::monitor::Monitor;
use crate::planted::planted;
use crate::read::CopySet;

/// How much the engine may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Threads that compress, encrypt and hash; at least 1.
    pub threads: usize,
    /// What the engine may keep in memory at once, in bytes; at least 64 MiB. Sizes packs and caches.
    pub memory_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { threads: std::thread::available_parallelism().map_or(2, usize::from), memory_bytes: 256 << 20 }
    }
}

/// The number for a new object, if there is one: whoever may write into the store may have given away the last.
pub(crate) fn free_number(prefix: &str, next: u64) -> Result<u64, Error> {
    if next <= names::NUMBER_MAX {
        return Ok(next);
    }
    Err(Error::damaged(
        prefix,
        "an object there has the largest number of all, so that no further one can be made",
    ))
}

/// An open repository. Cheap to clone; all clones share keys, index and cache.
#[derive(Clone)]
pub struct Repository(Arc<Inner>);

struct Inner {
    store: Arc<dyn ObjectStore>,
    store_id: StoreId,
    chain: RwLock<Chain>,
    access: access::Accesses,
    index: RwLock<index::HeldIndex>,
    /// Packs that were found missing: the index may list them for a while yet, and other places are tried first.
    gone: RwLock<PackSet>,
    cache: Cache,
    /// What was said of a cache that is of no use.
    cache_notes: Mutex<HashSet<&'static str>>,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    monitor: Arc<dyn Monitor>,
    limits: Limits,
    copies: CopySet,
    cancel: Cancel,
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository")
            .field("id", &self.id())
            .field("store", &self.0.store)
            .finish_non_exhaustive()
    }
}

impl Repository {
    /// The repository's id, the same in every copy of it.
    pub fn id(&self) -> RepositoryId {
        self.access().repository
    }

    /// The id of this one store.
    pub fn store_id(&self) -> StoreId {
        self.0.store_id
    }

    /// The store beneath.
    pub fn store(&self) -> &dyn ObjectStore {
        &*self.0.store
    }

    /// What the credential may do, as of when the keys were last read: on opening, and before a copy.
    pub fn access(&self) -> &Access {
        self.0.access.newest()
    }

    /// The trust chain as read when the repository was opened, with what was appended since.
    pub fn chain(&self) -> Chain {
        self.0.chain.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Whether an owner has destroyed the keys of a domain.
    pub fn is_erased(&self, domain: DomainId) -> bool {
        self.0.chain.read().unwrap_or_else(std::sync::PoisonError::into_inner).is_erased(&domain)
    }

    fn renew_access(&self, access: Access) {
        self.0.access.renew(access);
    }

    pub(crate) fn chain_lock(&self) -> &RwLock<Chain> {
        &self.0.chain
    }

    /// Limits in force.
    pub fn limits(&self) -> Limits {
        self.0.limits
    }

    /// Where progress goes.
    pub fn monitor(&self) -> &dyn Monitor {
        &*self.0.monitor
    }

    fn downgrade(&self) -> Weak<Inner> {
        Arc::downgrade(&self.0)
    }

    pub(crate) fn copy_set(&self) -> &CopySet {
        &self.0.copies
    }

    /// Where this store's cache is, if it is on the disk: for what a source wants to find again there and may lose.
    pub fn cache_path(&self) -> Option<&std::path::Path> {
        self.cache().path()
    }

    pub(crate) fn cancel(&self) -> &Cancel {
        &self.0.cancel
    }

    pub(crate) fn cache(&self) -> &Cache {
        &self.0.cache
    }

    /// Says what it means that the cache cannot be used: once, however many files were to go there.
    pub(crate) fn note_useless_cache(&self, what: &'static str, error: &Error) {
        if self.0.cache_notes.lock().unwrap_or_else(PoisonError::into_inner).insert(what) {
            self.monitor().note(&format!("{what} ({})", crate::error::one_line(error)));
        }
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.0.clock
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    pub(crate) fn random_suffix(&self) -> [u8; 4] {
        if planted("same-suffix") { [7; 4] } else { self.random() }
    }

    pub(crate) fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.rng.fill(&mut bytes);
        bytes
    }

    /// The group that new snapshots belong to.
    pub(crate) fn group(&self) -> GroupId {
        self.access().group().id
    }

    pub(crate) fn domain(&self) -> &DomainKeys {
        self.access().domain()
    }

    /// The keys of a domain; [`Error::Erased`] if nobody has them any more.
    pub(crate) fn domain_keys(&self, domain: DomainId) -> Result<&DomainKeys, Error> {
        let found = self.access().domain_keys(domain);
        if found.is_err() && self.is_erased(domain) { Err(Error::Erased { domain }) } else { found }
    }

    /// The key that names the chunks of a domain.
    pub(crate) fn id_key(&self, domain: DomainId) -> Result<&IdKey, Error> {
        self.domain_keys(domain).map(|d| &d.id_key)
    }

    /// What opens the packs of a domain; an error for a credential that cannot decrypt.
    pub(crate) fn data_identities(&self, domain: DomainId) -> Result<&[Identity], Error> {
        let keys = self.domain_keys(domain)?;
        if keys.identities.is_empty() {
            Err(self.access().cannot("decrypt what it backs up"))
        } else {
            Ok(&keys.identities)
        }
    }

    /// Whether the credential can decrypt at all.
    pub fn can_read(&self) -> bool {
        !self.domain().identities.is_empty()
    }

    pub(crate) fn signer(&self, action: &'static str) -> Result<&SigningKey, Error> {
        self.access().signing.as_ref().ok_or_else(|| self.access().cannot(action))
    }

    /// The member that commits, if this credential may.
    pub(crate) fn writer(&self) -> Result<MemberId, Error> {
        const ACTION: &str = "back up";
        let writer = self.signer(ACTION)?.member_id();
        if !self.access().roles().is_some_and(|roles| roles.intersects(Roles::WRITER | Roles::KEEPER)) {
            return Err(self.access().cannot(ACTION));
        }
        match self.chain().revoked_from(&writer) {
            Some(_) => Err(Error::WrongKey(format!("member {writer} was revoked"))),
            None => Ok(writer),
        }
    }

    /// Signs a record and encodes its envelope.
    pub(crate) fn sign(&self, kind: &str, payload: Vec<u8>) -> Result<Vec<u8>, Error> {
        Ok(Signed::sign(self.signer("sign")?, self.id(), kind, payload).to_bytes())
    }

    pub(crate) async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), Error> {
        Ok(self.store().put_new(key, body).await?)
    }

    /// Creates an object whose name others may compete for. `false` when somebody else was first; our own bytes under
    /// the name (a response was lost) count as success.
    pub(crate) async fn put_own(&self, key: &Key, body: impl Into<Bytes>) -> Result<bool, Error> {
        let body: Bytes = body.into();
        bounded::check_fits(key, &body)?;
        match self.store().put_new(key, body.clone()).await {
            Ok(()) => Ok(true),
            Err(error) if error.is_already_exists() && !planted("own-412-fails") => {
                match fetch_bounded(self.store(), key).await {
                    Err(Error::Damaged { .. }) => Ok(false),
                    found => Ok(found? == body || planted("own-412-is-ours")),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Stores a content object under a fresh name.
    pub(crate) async fn put_content(
        &self,
        key: impl Fn(&ContentName) -> Key,
        body: Vec<u8>,
    ) -> Result<(ContentName, Key), Error> {
        let name = crate::write::name_of(&body, self.random_suffix());
        let key = key(&name);
        self.put_new(&key, Bytes::from(body)).await?;
        Ok((name, key))
    }

    /// The next session number of a writer that no listing shows as taken, `after` being taken already.
    pub(crate) async fn next_session(&self, writer: MemberId, after: u64) -> Result<u64, Error> {
        let mut next = after + 1;
        let mut last = Some(names::session_key(writer, after, names::NUMBER_MAX));
        loop {
            let page = self.store().list_page(&format!("sessions/{writer}/"), last.as_ref()).await?;
            for info in &page.objects {
                if let Ok(names::ObjectName::Session { n, .. }) = info.key.as_str().parse() {
                    next = next.max(n + 1);
                }
            }
            match page.objects.last() {
                Some(end) if page.more => last = Some(end.key.clone()),
                _ => return free_number("sessions", next),
            }
        }
    }

    /// Signs and seals a segment; gives its plain and its stored bytes. `inputs` are the segments merged into it.
    pub(crate) fn seal_segment(
        &self,
        builder: SegmentBuilder,
        inputs: Vec<String>,
    ) -> Result<(Bytes, Bytes), Error> {
        let plain = builder.finish(self.id(), self.signer("write an index")?, inputs)?;
        let sealed = keepwell_crypto::seal(&[self.access().index_recipient()?], &plain)?;
        Ok((plain.into(), sealed.into()))
    }

    pub(crate) fn index_name(&self, sealed: &[u8], suffix: [u8; 4]) -> (ContentName, Key) {
        let name = crate::write::name_of(sealed, suffix);
        (name, names::index_key(self.group(), &name))
    }

    pub(crate) async fn exists(&self, key: &Key) -> Result<bool, Error> {
        match self.store().head(key).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) async fn list(&self, prefix: &str) -> Result<Vec<keepwell_storage::ObjectInfo>, Error> {
        Ok(list_all(self.store(), prefix).await?)
    }
}
