//! Chunks of content for whoever reads files one after another: neighbours in a pack are fetched together, and a frame
//! that several chunks share is decoded once.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use keepwell_catalog::{ContentName, Location, PackClass, PackRef};
use keepwell_crypto::{ChunkId, ChunkKind, plain_len};
use tokio::runtime::Handle;

use super::claims::TRIED_MAX;
use super::{fetch_frames, read_chunk};
use crate::Error;
use crate::pack::{PackError, chunk_from_frame, decode_frame};
use crate::repository::Repository;

/// Of the memory limit, this part is for runs of packs as stored, and as much again for decoded frames.
const MEMORY_SHARE: usize = 8;
/// Chunks that are read again and again, piece by piece, may take this part.
const AGAIN_SHARE: usize = 16;
/// The second read in a row from the same pack fetches this much ahead; each further one four times as much …
const AHEAD_BYTES_MIN: u32 = 2 << 20;
/// … up to this. Scattered reads fetch what they need and no more.
const AHEAD_BYTES_MAX: u32 = 8 << 20;
/// A read counts as the next in a row if it skips at most this much.
const SKIP_BYTES_MAX: u32 = 1 << 20;
/// Threads that fetch from the same pack wait for each other, so that they share what arrives.
const STRIPES: usize = 16;

/// The content chunks of a repository, for reading in the order of a tree. Its methods block on storage and so belong on
/// ordinary threads. Holds a quarter of the repository's memory limit at most, and a sixteenth more with
/// [`Contents::chunk_again`].
#[derive(Debug)]
pub(crate) struct Contents {
    repository: Repository,
    handle: Handle,
    ahead_bytes_max: u32,
    state: Mutex<State>,
    fetching: [Mutex<()>; STRIPES],
    proving: [Mutex<()>; STRIPES],
}

#[derive(Debug)]
struct State {
    runs: Recent<ContentName, Run>,
    frames: Recent<(ContentName, u32), Bytes>,
    /// Proved chunks, each in memory of its own.
    chunks: Recent<ChunkId, Bytes>,
    /// Packs that are not in the store any more.
    gone: HashSet<ContentName>,
}

/// A part of a pack's plaintext.
#[derive(Debug, Clone)]
struct Run {
    start: u32,
    bytes: Bytes,
    /// How far beyond what was needed the next fetch should go.
    ahead: u32,
}

impl Run {
    fn slice(&self, range: &Range<u32>) -> Option<Bytes> {
        let from = range.start.checked_sub(self.start)? as usize;
        let to = range.end.checked_sub(self.start)? as usize;
        (from <= to && to <= self.bytes.len()).then(|| self.bytes.slice(from..to))
    }

    /// What it holds from a position on.
    fn from(&self, start: u32) -> Bytes {
        let skip = start.saturating_sub(self.start) as usize;
        self.bytes.slice(skip.min(self.bytes.len())..)
    }

    fn is_followed_by(&self, start: u32) -> bool {
        let end = u64::from(self.start) + self.bytes.len() as u64;
        start >= self.start && u64::from(start) <= end + u64::from(SKIP_BYTES_MAX)
    }
}

impl Contents {
    /// Must be called within a tokio runtime.
    pub fn new(repository: &Repository) -> Self {
        let budget_bytes = repository.limits().memory_bytes / MEMORY_SHARE;
        let quarter = u32::try_from(budget_bytes / 4).unwrap_or(u32::MAX);
        let state = State {
            runs: Recent::new(budget_bytes),
            frames: Recent::new(budget_bytes),
            chunks: Recent::new(repository.limits().memory_bytes / AGAIN_SHARE),
            gone: HashSet::new(),
        };
        Self {
            repository: repository.clone(),
            handle: Handle::current(),
            ahead_bytes_max: quarter.min(AHEAD_BYTES_MAX),
            state: Mutex::new(state),
            fetching: Default::default(),
            proving: Default::default(),
        }
    }

    /// As [`Contents::chunk`], for whoever takes a chunk in several bites: it is proved once. Threads that want the same
    /// chunk wait for the first of them.
    pub fn chunk_again(&self, id: &ChunkId) -> Result<Bytes, Error> {
        if let Some(chunk) = self.lock().chunks.get(id).cloned() {
            return Ok(chunk);
        }
        let stripe = usize::from(id.as_bytes()[0]) % STRIPES;
        let _alone = self.proving[stripe].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(chunk) = self.lock().chunks.get(id).cloned() {
            return Ok(chunk);
        }
        // A copy: a chunk that was cut out of a frame would keep all of that in memory.
        let chunk = Bytes::copy_from_slice(&self.chunk(id)?);
        self.lock().chunks.insert(*id, chunk.clone(), chunk.len());
        Ok(chunk)
    }

    /// Reads one chunk, proved by its id. Whatever is wrong with the first locations, the others are tried, and then the
    /// index is read anew.
    pub fn chunk(&self, id: &ChunkId) -> Result<Bytes, Error> {
        for location in self.repository.locate(id)?.into_iter().take(TRIED_MAX) {
            match self.chunk_at(id, &location) {
                Ok(chunk) => return Ok(chunk),
                Err(Error::Storage(error)) if error.is_not_found() => {
                    self.lock().gone.insert(location.pack.name);
                }
                // The slow path tries this location again and says what is wrong.
                Err(_) => {}
            }
        }
        self.handle.block_on(read_chunk(&self.repository, ChunkKind::Content, id)).map(Bytes::from)
    }

    fn chunk_at(&self, id: &ChunkId, location: &Location) -> Result<Bytes, Error> {
        let (pack, entry) = (&location.pack, &location.entry);
        let place = (pack.name, entry.frame_offset);
        let cached = self.lock().frames.get(&place).cloned();
        let frame = match cached {
            Some(frame) => frame,
            None => {
                let range = entry.frame_offset..entry.frame_offset.saturating_add(entry.frame_length);
                let frame = Bytes::from(decode_frame(&self.stored(pack, range)?, None)?);
                self.lock().frames.insert(place, frame.clone(), frame.len());
                frame
            }
        };
        let key = self.repository.id_key(pack.domain)?;
        let chunk = chunk_from_frame(&frame, entry.offset, entry.length, id, ChunkKind::Content, key)?;
        Ok(frame.slice_ref(chunk))
    }

    /// The stored bytes of a frame, with what follows it where reading goes on in order.
    fn stored(&self, pack: &PackRef, range: Range<u32>) -> Result<Bytes, Error> {
        let name = &pack.name;
        if let Some(bytes) = self.fetched(name, &range)? {
            return Ok(bytes);
        }
        let stripe = usize::from(name.digest().as_bytes()[0]) % STRIPES;
        let _alone = self.fetching[stripe].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = self.fetched(name, &range)? {
            return Ok(bytes);
        }
        let (ahead, tail) = match self.lock().runs.get(name) {
            Some(run) if run.is_followed_by(range.start) => (run.ahead, run.from(range.start)),
            _ => (0, Bytes::new()),
        };
        let run = self.fetch_run(pack, &range, ahead, tail)?;
        let frame = run.slice(&range);
        let cost = run.bytes.len();
        self.lock().runs.insert(*name, run, cost);
        Ok(frame.ok_or(PackError::Malformed("a frame is longer than its pack"))?)
    }

    /// Fetches a range, and up to `ahead` bytes from its start on; `tail` is what is at hand already.
    fn fetch_run(&self, pack: &PackRef, range: &Range<u32>, ahead: u32, tail: Bytes) -> Result<Run, Error> {
        let plain_end = plain_len(pack.header_len as usize, pack.size)?;
        let wanted = u64::from(range.start.saturating_add(ahead)).min(plain_end);
        let end = range.end.max(u32::try_from(wanted).unwrap_or(u32::MAX));
        let start = range.start.saturating_add(u32::try_from(tail.len()).unwrap_or(u32::MAX));
        let span = start..end;
        let fetch = fetch_frames(&self.repository, PackClass::Data, pack, std::slice::from_ref(&span));
        let fetched = self.handle.block_on(fetch)?.pop().ok_or(Error::Cancelled)?;
        let bytes = if tail.is_empty() { fetched } else { [tail, fetched].concat().into() };
        let ahead = ahead.saturating_mul(4).max(AHEAD_BYTES_MIN).min(self.ahead_bytes_max);
        Ok(Run { start: range.start, bytes, ahead })
    }

    fn fetched(&self, name: &ContentName, range: &Range<u32>) -> Result<Option<Bytes>, Error> {
        let mut state = self.lock();
        if state.gone.contains(name) {
            return Err(Error::damaged(name, "it is not in the store"));
        }
        Ok(state.runs.get(name).and_then(|run| run.slice(range)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The most recently used values, up to a budget of bytes; the newest stays even if it is larger.
#[derive(Debug)]
struct Recent<K, V> {
    budget_bytes: usize,
    bytes: usize,
    tick: u64,
    /// With the time of the last use and the cost in bytes.
    values: HashMap<K, (u64, usize, V)>,
}

impl<K: Hash + Eq + Clone, V> Recent<K, V> {
    fn new(budget_bytes: usize) -> Self {
        Self { budget_bytes, bytes: 0, tick: 0, values: HashMap::new() }
    }

    fn get(&mut self, key: &K) -> Option<&V> {
        self.tick += 1;
        let (used, _, value) = self.values.get_mut(key)?;
        *used = self.tick;
        Some(value)
    }

    fn insert(&mut self, key: K, value: V, bytes: usize) {
        self.remove(&key);
        while self.bytes.saturating_add(bytes) > self.budget_bytes
            && let Some(oldest) =
                self.values.iter().min_by_key(|(_, (used, ..))| *used).map(|(k, _)| k.clone())
        {
            self.remove(&oldest);
        }
        self.tick += 1;
        self.bytes += bytes;
        self.values.insert(key, (self.tick, bytes, value));
    }

    fn remove(&mut self, key: &K) {
        if let Some((_, bytes, _)) = self.values.remove(key) {
            self.bytes -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_last_stays_within_the_budget() {
        let mut recent = Recent::new(10);
        for key in 0..5 {
            recent.insert(key, key, 3);
            recent.get(&0);
        }
        assert_eq!(recent.bytes, 9);
        let mut kept: Vec<_> = recent.values.keys().copied().collect();
        kept.sort_unstable();
        assert_eq!(kept, [0, 3, 4]);
        recent.insert(9, 9, 50);
        assert_eq!(recent.values.len(), 1, "what is larger than the budget is kept alone");
        recent.insert(9, 9, 1);
        assert_eq!(recent.bytes, 1);
    }
}
