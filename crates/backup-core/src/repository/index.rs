//! The index of a repository: fetched once and kept in the local cache or, for a few lookups, left where it is and read by
//! ranges; looked up without reading it whole.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLockWriteGuard};

use bytes::Bytes;
use keepwell_catalog::names::ObjectName;
use keepwell_catalog::{
    CatalogError, ContentName, IndexSet, Location, PackClass, PackSet, ReadAt, Segment, names,
};
use keepwell_crypto::ChunkId;
use keepwell_crypto::trust::Roles;
use tokio::runtime::Handle;

use super::Repository;
use super::ranges::Ranges;
use super::stored_segment::{StoredSegment, wait};
use crate::Error;
use crate::cache::{Cache, CachedFile};
use crate::parallel;
use crate::planted::planted;

/// Where the cache has them.
pub(super) const DIRECTORY: &str = "index";
/// How often a listing of the index is begun anew because a segment was merged while it was read.
const ATTEMPTS: usize = 10;
/// Segments up to this size are fetched several at a time, as a repository has many that nobody has merged yet …
const SMALL_BYTES_MAX: u64 = 1 << 20;
/// … so many.
const SMALL_AT_ONCE: usize = 16;
/// For a few lookups, larger ones than this are read by ranges: the first costs two requests and 150 KB, and each further
/// one mostly 64 KiB.
const NEAR_BYTES_MAX: u64 = 4 << 20;
/// Of the memory limit, this part is for the index: segments held decoded, about 60,000 entries with 256 MiB, and blocks of
/// the others. A larger part would make lookups faster, and memory follow the number of chunks for longer.
const MEMORY_SHARE: usize = 24;

/// The index as last read.
pub(super) struct HeldIndex {
    set: Arc<IndexSet>,
    /// That parts of it were left in the store, and what waits for them. It stays so when all of it has come: what was
    /// opened by ranges is not proved by the name of the object.
    by_ranges: Option<Handle>,
}

/// How much of the index is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fetch {
    All,
    /// Large segments are left where they are, unless everything is here already.
    AsNeeded,
}

impl HeldIndex {
    /// An index that holds nothing, with a repository's share of memory.
    pub fn empty(memory_bytes: usize) -> Self {
        Self { set: empty_index(memory_bytes), by_ranges: None }
    }
}

fn empty_index(memory_bytes: usize) -> Arc<IndexSet> {
    Arc::new(IndexSet::new((memory_bytes / MEMORY_SHARE) as u64))
}

impl Repository {
    /// The index as last read.
    pub(crate) fn index(&self) -> Arc<IndexSet> {
        Arc::clone(&self.held_index().0)
    }

    fn held_index(&self) -> (Arc<IndexSet>, Option<Handle>) {
        let held = self.0.index.read().unwrap_or_else(PoisonError::into_inner);
        (Arc::clone(&held.set), held.by_ranges.clone())
    }

    fn index_lock(&self) -> RwLockWriteGuard<'_, HeldIndex> {
        self.0.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every place that the index knows for a chunk of content; packs that were found missing come last. See
    /// [`Repository::locate_in`].
    pub(crate) fn locate(&self, id: &ChunkId) -> Result<Vec<Location>, Error> {
        self.locate_in(PackClass::Data, id)
    }

    /// The places of a chunk that is expected in packs of this class.
    ///
    /// After [`Repository::refresh_index`] these are all that there are, and at hand. After
    /// [`Repository::refresh_index_as_needed`] it may wait for the store, and gives those of one segment; before it gives
    /// none, it reads the whole index: from a segment that is read by ranges nothing follows but what it holds.
    pub(crate) fn locate_in(&self, class: PackClass, id: &ChunkId) -> Result<Vec<Location>, Error> {
        let (index, by_ranges) = self.held_index();
        let mut found = match by_ranges {
            None => index.find(id)?,
            Some(handle) => self.locate_by_ranges(&index, &handle, class, id)?,
        };
        let gone = self.0.gone.read().unwrap_or_else(PoisonError::into_inner);
        if planted("reader-skips-doomed") {
            found.retain(|location| !gone.contains(location.class, &location.pack.name));
        }
        if found.len() > 1 && !gone.is_empty() {
            found.sort_by_key(|location| gone.contains(location.class, &location.pack.name));
        }
        Ok(found)
    }

    fn locate_by_ranges(
        &self,
        index: &IndexSet,
        handle: &Handle,
        class: PackClass,
        id: &ChunkId,
    ) -> Result<Vec<Location>, Error> {
        if self.is_silent() {
            return Ok(Vec::new()); // copies have the word
        }
        let found = match index.find_nearest(id, class).map_err(cause) {
            Ok(found) if !found.is_empty() => Ok(found),
            Err(Error::Cancelled) => Err(Error::Cancelled),
            Err(Error::Storage(error)) if !error.is_not_found() => Err(Error::Storage(error)),
            _ => {
                let refreshed = wait(handle, self.refresh_index());
                refreshed.and_then(|_| self.index().find(id).map_err(Error::from))
            }
        };
        found.or_else(|error| {
            self.note_failure(&error);
            if self.is_silent() { Ok(Vec::new()) } else { Err(error) }
        })
    }

    /// Whether a pack was found missing.
    pub(crate) fn is_gone(&self, class: PackClass, pack: &ContentName) -> bool {
        self.0.gone.read().unwrap_or_else(PoisonError::into_inner).contains(class, pack)
    }

    /// Remembers that a pack is not in the store any more; `false` if that was known.
    pub(crate) fn note_gone(&self, class: PackClass, pack: ContentName) -> bool {
        let mut gone = self.0.gone.write().unwrap_or_else(PoisonError::into_inner);
        let news = !gone.contains(class, &pack);
        gone.insert(class, pack);
        news
    }

    /// Learns from decided prune plans which packs are gone, so that no request is spent on them. A matter of speed
    /// only: readers never rely on plans.
    pub(crate) async fn note_dead_packs(&self) {
        // Plans that cannot be read cost time here, nothing else; whoever relies on them reports them.
        if let Ok(plans) = super::read_plans(self).await {
            *self.0.gone.write().unwrap_or_else(PoisonError::into_inner) = if planted("reader-skips-doomed") {
                plans.doomed_packs()
            } else {
                PackSet::from_keys(plans.dead())
            };
        }
    }

    /// Reads the index anew: exactly the segments that a listing shows now. `true` if that changed anything.
    ///
    /// Costs a listing, and one request per segment that is not in the local cache.
    pub(crate) async fn refresh_index(&self) -> Result<bool, Error> {
        let monitor = self.monitor();
        self.read_index(Fetch::All, &mut |name, reason| monitor.problem(name, reason)).await
    }

    /// The same for whoever reads a little: segments above 4 MiB that are not in the cache are left where they are, and
    /// read by ranges as lookups need them. Whoever writes or removes anything, or says what is there and what is not, must
    /// not rely on such an index.
    ///
    /// Costs a listing and, per segment that is not in the cache, one request, or two for a large one. Does no more than
    /// [`Repository::refresh_index`] where that was done.
    pub(crate) async fn refresh_index_as_needed(&self) -> Result<(), Error> {
        let monitor = self.monitor();
        let report = &mut |name: &str, reason: &str| monitor.problem(name, reason);
        self.read_index(Fetch::AsNeeded, report).await.map(|_| ())
    }

    /// Reads every segment anew from the store, whatever the cache holds; damaged ones are handed to `damaged`.
    pub(crate) async fn reload_index(
        &self,
        damaged: &mut (dyn FnMut(&str, &str) + Send),
    ) -> Result<(), Error> {
        for name in self.cache().list(DIRECTORY) {
            self.cache().remove(&format!("{DIRECTORY}/{name}"));
        }
        *self.index_lock() = HeldIndex::empty(self.limits().memory_bytes);
        self.read_index(Fetch::All, damaged).await.map(|_| ())
    }

    async fn read_index(
        &self,
        fetch: Fetch,
        damaged: &mut (dyn FnMut(&str, &str) + Send),
    ) -> Result<bool, Error> {
        let mut error = None;
        for _ in 0..ATTEMPTS {
            match self.try_read_index(fetch, damaged).await {
                Err(Error::Storage(e)) if e.is_not_found() => error = Some(Error::Storage(e)),
                other => return other,
            }
        }
        Err(error.unwrap_or(Error::Cancelled))
    }

    /// Fails with "not found" when a segment was merged while it was on the way.
    async fn try_read_index(
        &self,
        fetch: Fetch,
        damaged: &mut (dyn FnMut(&str, &str) + Send),
    ) -> Result<bool, Error> {
        let (mut listed, mut sizes) = (BTreeSet::new(), HashMap::new());
        for info in self.list(&format!("index/{}/", self.group())).await? {
            if let Ok(ObjectName::Index(_, name)) = info.key.as_str().parse() {
                listed.insert(name);
                sizes.insert(name, info.size);
            }
        }
        let (current, by_ranges) = self.held_index();
        let held: BTreeSet<ContentName> = segment_names(&current);
        let suits = fetch == Fetch::AsNeeded || by_ranges.is_none();
        if suits && held == listed {
            return Ok(false);
        }
        // Segments that only came on top are added; a vanished one means starting over. An empty index may be somebody's
        // who will write by it.
        let fresh = match suits && held.is_subset(&listed) && !held.is_empty() {
            true => Arc::clone(&current),
            false => empty_index(self.limits().memory_bytes),
        };
        // An index that is at hand remains so: others may write by it.
        let may_stay = fetch == Fetch::AsNeeded && (by_ranges.is_some() || held.is_empty());
        let have: BTreeSet<ContentName> = segment_names(&fresh);
        let (mut small, mut large, mut far) = (Vec::new(), Vec::new(), Vec::new());
        for name in listed.difference(&have) {
            match sizes.get(name).copied().unwrap_or(u64::MAX) {
                _ if self.load_cached(name, &fresh) => {}
                size if may_stay && size > NEAR_BYTES_MAX => far.push((*name, size)),
                size if size > SMALL_BYTES_MAX => large.push((*name, size)),
                size => small.push((*name, size)),
            }
        }
        let some_stay = !far.is_empty();
        for segments in small.chunks(SMALL_AT_ONCE) {
            self.fetch_segments(segments.to_vec(), &fresh, damaged).await?;
        }
        large.extend(self.open_far(far, &fresh).await?);
        for segment in large {
            self.fetch_segments(vec![segment], &fresh, damaged).await?;
        }
        let by_ranges = by_ranges.filter(|_| fetch == Fetch::AsNeeded);
        let by_ranges = by_ranges.or_else(|| some_stay.then(Handle::current));
        let mut held = self.index_lock();
        // Meanwhile another may have read all of it.
        if by_ranges.is_none() || held.by_ranges.is_some() || held.set.segments().is_empty() {
            *held = HeldIndex { set: fresh, by_ranges };
        }
        drop(held);
        self.drop_stale_segments(&listed);
        Ok(true)
    }

    /// Takes segments into an index of which only the ends are fetched, and gives those that must be fetched whole to see
    /// what is wrong with them. Fails with "not found" when one was merged meanwhile.
    async fn open_far(
        &self,
        segments: Vec<(ContentName, u64)>,
        index: &IndexSet,
    ) -> Result<Vec<(ContentName, u64)>, Error> {
        let opening = segments.into_iter().map(|(name, size)| {
            let repository = self.clone();
            async move { Ok((name, size, repository.open_far_segment(name, size).await)) }
        });
        let mut others = Vec::new();
        for (name, size, opened) in parallel::all(opening).await? {
            match opened {
                Ok(segment) => {
                    index.add(&name.to_string(), segment)?;
                }
                Err(Error::Storage(error)) if error.is_not_found() => return Err(Error::Storage(error)),
                Err(_) => others.push((name, size)),
            }
        }
        Ok(others)
    }

    async fn open_far_segment(&self, name: ContentName, size: u64) -> Result<Segment, Error> {
        let ranges = Ranges::open(self.store(), names::index_key(self.group(), &name), size).await?;
        let (repository, segment) = (self.clone(), StoredSegment::far(self, name, ranges));
        let task = tokio::task::spawn_blocking(move || repository.open_segment(Box::new(segment)));
        task.await.map_err(|e| Error::Task(e.to_string()))?
    }

    /// A damaged segment hides chunks; that must not stop what does not need them, but it must be seen.
    fn report_segment(
        &self,
        name: &ContentName,
        error: &Error,
        damaged: &mut (dyn FnMut(&str, &str) + Send),
    ) -> Result<(), Error> {
        match error {
            Error::Damaged { .. } | Error::Catalog(_) | Error::Crypto(_) => {
                let key = names::index_key(self.group(), name);
                damaged(key.as_str(), &crate::error::one_line(error));
                Ok(())
            }
            _ => Err(error.clone()),
        }
    }

    /// Takes a segment into an index, if the cache has it and it is sound.
    fn load_cached(&self, name: &ContentName, index: &IndexSet) -> bool {
        let Some(file) = self.cache().open(&format!("{DIRECTORY}/{name}")) else { return false };
        let segment = self.open_segment(Box::new(StoredSegment::cached(self, *name, file)));
        segment.is_ok_and(|segment| index.add(&name.to_string(), segment).is_ok())
    }

    /// Takes segments into an index from the store, all of them at the same time. Fails with "not found" when one was
    /// merged meanwhile.
    async fn fetch_segments(
        &self,
        segments: Vec<(ContentName, u64)>,
        index: &IndexSet,
        damaged: &mut (dyn FnMut(&str, &str) + Send),
    ) -> Result<(), Error> {
        let turn = Arc::new(tokio::sync::Mutex::new(()));
        let fetches = segments.into_iter().map(|(name, size)| {
            let (repository, turn) = (self.clone(), Arc::clone(&turn));
            async move { Ok((name, repository.fetch_segment(&name, size, &turn).await)) }
        });
        for (name, fetched) in parallel::all(fetches).await? {
            match fetched.and_then(|file| self.add_segment(&name, file, index)) {
                Ok(()) => {}
                Err(Error::Storage(error)) if error.is_not_found() => return Err(Error::Storage(error)),
                Err(error) => self.report_segment(&name, &error, damaged)?,
            }
        }
        Ok(())
    }

    pub(crate) fn open_segment(&self, reader: Box<dyn ReadAt>) -> Result<Segment, Error> {
        let chain = || self.chain_lock().read().unwrap_or_else(PoisonError::into_inner);
        let verify = |signer: &keepwell_crypto::MemberId, tables: &[u8], signature: &[u8; 64]| {
            let may_write = Roles::WRITER | Roles::KEEPER;
            let chain = chain();
            chain
                .verify_detached(*signer, "index", may_write, tables, signature)
                .map(|_| ())
                .map_err(Into::into)
        };
        // The chain is not held meanwhile: opening may wait for the store.
        let segment = Segment::open(reader, &verify).map_err(cause)?;
        // Anybody can seal to a group; only its own members, and keepers, say where its chunks lie.
        let of_group = |member: &keepwell_crypto::trust::Member| {
            member.group == self.group() || member.roles.contains(Roles::KEEPER)
        };
        let signed_by_group = chain().member(&segment.signer()).is_some_and(of_group);
        if segment.group() != self.group() || !signed_by_group {
            return Err(Error::damaged(
                "index",
                "a segment is of another group, or signed by a member of one",
            ));
        }
        Ok(segment)
    }

    /// Takes a segment of our own into the cache and into an index.
    pub(crate) fn adopt_segment(
        &self,
        name: &ContentName,
        plain: Bytes,
        index: &IndexSet,
    ) -> Result<(), Error> {
        self.add_segment(name, self.cache_segment(name, plain), index)
    }

    /// Takes a segment that lies in the cache into an index.
    fn add_segment(&self, name: &ContentName, file: CachedFile, index: &IndexSet) -> Result<(), Error> {
        let segment = self.open_segment(Box::new(StoredSegment::cached(self, *name, file)))?;
        index.add(&name.to_string(), segment)?;
        Ok(())
    }

    fn drop_stale_segments(&self, listed: &BTreeSet<ContentName>) {
        let cache: &Cache = self.cache();
        for name in cache.list(DIRECTORY) {
            if name.parse::<ContentName>().is_ok_and(|n| !listed.contains(&n)) {
                cache.remove(&format!("{DIRECTORY}/{name}"));
            }
        }
    }
}

/// What a request for a part of a segment failed with; any other failure as it is.
fn cause(error: CatalogError) -> Error {
    match error {
        CatalogError::ReadSegment { offset, len, source } => match source.downcast::<Error>() {
            Ok(error) => *error,
            Err(source) => CatalogError::ReadSegment { offset, len, source }.into(),
        },
        error => error.into(),
    }
}

fn segment_names(index: &IndexSet) -> BTreeSet<ContentName> {
    index.segments().iter().filter_map(|(name, _)| name.parse().ok()).collect()
}
