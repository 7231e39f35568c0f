//! The index of a repository: fetched once, kept in the local cache, looked up without reading it whole.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use keepwell_catalog::names::ObjectName;
use keepwell_catalog::{ContentName, IndexSet, Location, PackSet, ReadAt, Segment, names};
use keepwell_crypto::ChunkId;
use keepwell_crypto::trust::Roles;

use super::Repository;
use super::cached_segment::CachedSegment;
use crate::Error;
use crate::cache::{Cache, CachedFile};
use crate::parallel;
use crate::planted::planted;

const DIRECTORY: &str = "index";
/// How often a listing of the index is begun anew because a segment was merged while it was read.
const ATTEMPTS: usize = 10;
/// Segments up to this size are fetched several at a time, as a repository has many that nobody has merged yet …
const SMALL_BYTES_MAX: u64 = 1 << 20;
/// … so many.
const SMALL_AT_ONCE: usize = 16;
/// Of the memory limit, this part is for index segments held decoded.
const MEMORY_SHARE: usize = 8;

impl Repository {
    /// The index as last read.
    pub(crate) fn index(&self) -> Arc<IndexSet> {
        Arc::clone(&self.0.index.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Every place that the index knows for a chunk; packs that were found missing come last.
    pub(crate) fn locate(&self, id: &ChunkId) -> Result<Vec<Location>, Error> {
        let mut found = self.index().find(id)?;
        let gone = self.0.gone.read().unwrap_or_else(PoisonError::into_inner);
        if planted("reader-skips-doomed") {
            found.retain(|location| !gone.contains(&location.pack.name));
        }
        if found.len() > 1 && !gone.is_empty() {
            found.sort_by_key(|location| gone.contains(&location.pack.name));
        }
        Ok(found)
    }

    /// Whether a pack was found missing.
    pub(crate) fn is_gone(&self, pack: &ContentName) -> bool {
        self.0.gone.read().unwrap_or_else(PoisonError::into_inner).contains(pack)
    }

    /// Remembers that a pack is not in the store any more; `false` if that was known.
    pub(crate) fn note_gone(&self, pack: ContentName) -> bool {
        let mut gone = self.0.gone.write().unwrap_or_else(PoisonError::into_inner);
        let news = !gone.contains(&pack);
        gone.insert(pack);
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

    /// An index that holds nothing, with this repository's share of memory.
    pub(super) fn empty_index(memory_bytes: usize) -> Arc<IndexSet> {
        Arc::new(IndexSet::new((memory_bytes / MEMORY_SHARE) as u64))
    }

    /// Reads the index anew: exactly the segments that a listing shows now. `true` if that changed anything.
    ///
    /// Costs a listing, and one request per segment that is not in the local cache.
    pub(crate) async fn refresh_index(&self) -> Result<bool, Error> {
        let monitor = self.monitor();
        self.read_index(&mut |name, reason| monitor.problem(name, reason)).await
    }

    /// Reads every segment anew from the store, whatever the cache holds; damaged ones are handed to `damaged`.
    pub(crate) async fn reload_index(
        &self,
        damaged: &mut (dyn FnMut(&str, &str) + Send),
    ) -> Result<(), Error> {
        for name in self.cache().list(DIRECTORY) {
            self.cache().remove(&format!("{DIRECTORY}/{name}"));
        }
        *self.0.index.write().unwrap_or_else(PoisonError::into_inner) =
            Self::empty_index(self.limits().memory_bytes);
        self.read_index(damaged).await.map(|_| ())
    }

    async fn read_index(&self, damaged: &mut (dyn FnMut(&str, &str) + Send)) -> Result<bool, Error> {
        let mut error = None;
        for _ in 0..ATTEMPTS {
            match self.try_read_index(damaged).await {
                Err(Error::Storage(e)) if e.is_not_found() => error = Some(Error::Storage(e)),
                other => return other,
            }
        }
        Err(error.unwrap_or(Error::Cancelled))
    }

    /// Fails with "not found" when a segment was merged while it was on the way.
    async fn try_read_index(&self, damaged: &mut (dyn FnMut(&str, &str) + Send)) -> Result<bool, Error> {
        let (mut listed, mut sizes) = (BTreeSet::new(), HashMap::new());
        for info in self.list(&format!("index/{}/", self.group())).await? {
            if let Ok(ObjectName::Index(_, name)) = info.key.as_str().parse() {
                listed.insert(name);
                sizes.insert(name, info.size);
            }
        }
        let current = self.index();
        let held: BTreeSet<ContentName> = segment_names(&current);
        if held == listed {
            return Ok(false);
        }
        // Segments that only came on top are added; a vanished one means starting over.
        let fresh = if held.is_subset(&listed) {
            Arc::clone(&current)
        } else {
            Self::empty_index(self.limits().memory_bytes)
        };
        let have: BTreeSet<ContentName> = segment_names(&fresh);
        let mut small = Vec::new();
        for name in listed.difference(&have) {
            if self.load_cached(name, &fresh) {
                continue;
            }
            if sizes.get(name).is_none_or(|size| *size > SMALL_BYTES_MAX) {
                self.fetch_segments(vec![*name], &fresh, damaged).await?;
                continue;
            }
            small.push(*name);
            if small.len() == SMALL_AT_ONCE {
                self.fetch_segments(std::mem::take(&mut small), &fresh, damaged).await?;
            }
        }
        self.fetch_segments(small, &fresh, damaged).await?;
        *self.0.index.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        self.drop_stale_segments(&listed);
        Ok(true)
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
        let segment = self.open_segment(Box::new(CachedSegment::new(self, *name, file)));
        segment.is_ok_and(|segment| index.add(&name.to_string(), segment).is_ok())
    }

    /// Takes segments into an index from the store, all of them at the same time. Fails with "not found" when one was
    /// merged meanwhile.
    async fn fetch_segments(
        &self,
        names: Vec<ContentName>,
        index: &IndexSet,
        damaged: &mut (dyn FnMut(&str, &str) + Send),
    ) -> Result<(), Error> {
        let fetches = names.into_iter().map(|name| {
            let repository = self.clone();
            async move { Ok((name, repository.fetch_segment(&name).await)) }
        });
        for (name, fetched) in parallel::all(fetches).await? {
            match fetched.and_then(|plain| self.adopt_segment(&name, plain, index)) {
                Ok(()) => {}
                Err(Error::Storage(error)) if error.is_not_found() => return Err(Error::Storage(error)),
                Err(error) => self.report_segment(&name, &error, damaged)?,
            }
        }
        Ok(())
    }

    /// Fetches and decrypts a segment, proving that it has the bytes its name says.
    pub(crate) async fn fetch_segment(&self, name: &ContentName) -> Result<Bytes, Error> {
        let key = names::index_key(self.group(), name);
        let sealed = self.store().get(&key).await?;
        if keepwell_crypto::Digest::of(&sealed) != name.digest() {
            return Err(Error::damaged(&key, "its bytes do not have the hash in its name"));
        }
        let plain = keepwell_crypto::open(self.access().index_identities(), &sealed, sealed.len() as u64)
            .map_err(|e| Error::damaged(&key, e))?;
        Ok(Bytes::from(plain))
    }

    pub(crate) fn open_segment(&self, reader: Box<dyn ReadAt>) -> Result<Segment, Error> {
        let chain = self.0.chain.read().unwrap_or_else(PoisonError::into_inner);
        let verify = |signer: &keepwell_crypto::MemberId, tables: &[u8], signature: &[u8; 64]| {
            let may_write = Roles::WRITER | Roles::KEEPER;
            chain
                .verify_detached(*signer, "index", may_write, tables, signature)
                .map(|_| ())
                .map_err(Into::into)
        };
        let segment = Segment::open(reader, &verify)?;
        // Anybody can seal to a group; only its own members, and keepers, say where its chunks lie.
        let of_group = |member: &keepwell_crypto::trust::Member| {
            member.group == self.group() || member.roles.contains(Roles::KEEPER)
        };
        let signed_by_group = chain.member(&segment.signer()).is_some_and(of_group);
        if segment.group() != self.group() || !signed_by_group {
            return Err(Error::damaged(
                "index",
                "a segment is of another group, or signed by a member of one",
            ));
        }
        Ok(segment)
    }

    /// Takes a segment into the cache and into an index.
    pub(crate) fn adopt_segment(
        &self,
        name: &ContentName,
        plain: Bytes,
        index: &IndexSet,
    ) -> Result<(), Error> {
        let file = self.cache_segment(name, plain);
        let segment = self.open_segment(Box::new(CachedSegment::new(self, *name, file)))?;
        index.add(&name.to_string(), segment)?;
        Ok(())
    }

    /// Takes a segment into the cache; where that cannot be written it stays in memory.
    pub(super) fn cache_segment(&self, name: &ContentName, plain: Bytes) -> CachedFile {
        let cached = format!("{DIRECTORY}/{name}");
        if let Err(error) = self.cache().store(&cached, &plain) {
            let reason = crate::error::one_line(&error);
            self.monitor()
                .note(&format!("the index is held in memory: the local cache is of no use ({reason})"));
            self.cache().remove(&cached);
        }
        self.cache().open(&cached).unwrap_or(CachedFile::Memory(plain))
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

fn segment_names(index: &IndexSet) -> BTreeSet<ContentName> {
    index.segments().iter().filter_map(|(name, _)| name.parse().ok()).collect()
}
