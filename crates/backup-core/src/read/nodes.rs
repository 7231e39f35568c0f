//! Tree nodes, read through a bounded cache of decoded frames.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use keepwell_catalog::{ContentName, Location, MapError, NodeSource, PackClass};
use keepwell_crypto::{ChunkId, ChunkKind, plain_len};
use tokio::runtime::Handle;

use super::{fetch_frames, read_chunk};
use crate::Error;
use crate::pack::{chunk_from_frame, decode_frame};
use crate::repository::Repository;

/// Decoded frames kept, in bytes: about 64 of the usual 256 KiB. One may have 8 MiB.
const FRAMES_BYTES_MAX: usize = 16 << 20;
/// Runs of stored frames kept …
const RUNS_MAX: usize = 4;
/// … of at most this many bytes beyond the frame that was asked for.
const AHEAD_MAX: u32 = 2 << 20;
/// A frame so far behind a run goes on with it.
const STEP_MAX: u32 = 512 << 10;

/// The nodes of a repository. Its methods block on storage and so belong on ordinary threads.
#[derive(Debug)]
pub(crate) struct Nodes {
    repository: Repository,
    handle: Handle,
    frames: Mutex<Frames>,
}

#[derive(Debug, Default)]
struct Frames {
    tick: u64,
    by_place: HashMap<(String, u32), (u64, Bytes)>,
    /// Of these.
    bytes: usize,
    /// The last used comes last.
    runs: Vec<Run>,
}

/// Neighbouring frames of a pack, as stored.
#[derive(Debug)]
struct Run {
    pack: ContentName,
    start: u32,
    bytes: Bytes,
}

impl Run {
    fn end(&self) -> u32 {
        self.start.saturating_add(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX))
    }
}

impl Nodes {
    /// Must be called within a tokio runtime.
    pub fn new(repository: &Repository) -> Self {
        Self { repository: repository.clone(), handle: Handle::current(), frames: Mutex::default() }
    }

    /// Reads one node, with the engine's own error.
    pub fn read(&self, id: &ChunkId) -> Result<Bytes, Error> {
        match self.through_cache(id) {
            Ok(Some(node)) => Ok(node),
            // The slow path tries every location and refreshes the index.
            Ok(None) | Err(_) => {
                self.handle.block_on(read_chunk(&self.repository, ChunkKind::Node, id)).map(Bytes::from)
            }
        }
    }

    fn through_cache(&self, id: &ChunkId) -> Result<Option<Bytes>, Error> {
        let located = self.repository.locate_in(PackClass::Meta, id)?;
        let Some(location) = located.into_iter().next() else { return Ok(None) };
        let entry = &location.entry;
        let place = (location.pack.name.to_string(), entry.frame_offset);
        let frame = match self.cached(&place) {
            Some(frame) => frame,
            None => {
                let frame = Bytes::from(decode_frame(&self.stored(&location)?, None)?);
                self.keep(place, frame.clone());
                frame
            }
        };
        let key = self.repository.id_key(location.pack.domain)?;
        let node = chunk_from_frame(&frame, entry.offset, entry.length, id, ChunkKind::Node, key)?;
        Ok(Some(frame.slice_ref(node)))
    }

    /// The stored frame at a place. A walk reads a tree mostly in the order in which it was written, and each request to a
    /// store far away takes its time; so who asks for one frame after the other gets more of them at once.
    fn stored(&self, location: &Location) -> Result<Bytes, Error> {
        let (pack, entry) = (&location.pack, &location.entry);
        let range = entry.frame_offset..entry.frame_offset.saturating_add(entry.frame_length);
        if let Some(stored) = self.in_run(pack.name, &range) {
            return Ok(stored);
        }
        let last = plain_len(pack.header_len as usize, pack.size)?;
        let end = range.end.saturating_add(self.ahead(pack.name, &range));
        let end = end.min(u32::try_from(last).unwrap_or(u32::MAX)).max(range.end);
        let run = range.start..end;
        let fetch = fetch_frames(&self.repository, PackClass::Meta, pack, std::slice::from_ref(&run));
        let bytes = self.handle.block_on(fetch)?.into_iter().next().ok_or(Error::Cancelled)?;
        let stored = bytes.slice(..range.len());
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        if frames.runs.len() >= RUNS_MAX {
            frames.runs.remove(0);
        }
        frames.runs.push(Run { pack: pack.name, start: range.start, bytes });
        Ok(stored)
    }

    fn in_run(&self, pack: ContentName, range: &Range<u32>) -> Option<Bytes> {
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        let holds = |run: &Run| run.pack == pack && run.start <= range.start && range.end <= run.end();
        let found = frames.runs.iter().position(holds)?;
        let run = frames.runs.remove(found);
        let stored = run.bytes.slice((range.start - run.start) as usize..(range.end - run.start) as usize);
        frames.runs.push(run);
        Some(stored)
    }

    /// How many bytes more to fetch: nothing for the first frame, then twice as many as the last time.
    fn ahead(&self, pack: ContentName, range: &Range<u32>) -> u32 {
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        let goes_on =
            |run: &Run| run.pack == pack && range.start >= run.end() && range.start - run.end() <= STEP_MAX;
        let Some(found) = frames.runs.iter().position(goes_on) else { return 0 };
        let run = frames.runs.remove(found);
        (run.end() - run.start).saturating_mul(2).min(AHEAD_MAX)
    }

    fn cached(&self, place: &(String, u32)) -> Option<Bytes> {
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        frames.tick += 1;
        let tick = frames.tick;
        let (used, frame) = frames.by_place.get_mut(place)?;
        *used = tick;
        Some(frame.clone())
    }

    fn keep(&self, place: (String, u32), frame: Bytes) {
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        let tick = frames.tick;
        frames.bytes += frame.len();
        if let Some((_, same)) = frames.by_place.insert(place, (tick, frame)) {
            frames.bytes -= same.len();
        }
        while frames.bytes > FRAMES_BYTES_MAX && frames.by_place.len() > 1 {
            let oldest = frames.by_place.iter().min_by_key(|(_, (used, _))| *used).map(|(p, _)| p.clone());
            let Some((_, gone)) = oldest.and_then(|oldest| frames.by_place.remove(&oldest)) else { break };
            frames.bytes -= gone.len();
        }
    }
}

impl NodeSource for Nodes {
    fn node(&self, id: &ChunkId) -> Result<Bytes, MapError> {
        self.read(id).map_err(|error| MapError::Read { node: *id, source: Box::new(error) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::World;

    #[tokio::test]
    async fn of_large_frames_fewer_are_kept() {
        let nodes = Nodes::new(&World::new().await.repository);
        for (frame_bytes, kept) in [(256 << 10, 64), (4 << 20, 4), (32 << 20, 1)] {
            for n in 0..100 {
                let place = (format!("a pack of {frame_bytes}"), n);
                assert!(nodes.cached(&place).is_none());
                nodes.keep(place, Bytes::from(vec![0; frame_bytes]));
            }
            let frames = nodes.frames.lock().unwrap();
            assert_eq!(frames.by_place.len(), kept);
            assert_eq!(frames.bytes, kept * frame_bytes);
        }
    }
}
