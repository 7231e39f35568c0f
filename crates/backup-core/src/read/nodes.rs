//! Tree nodes, read through a bounded cache of decoded frames.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use keepwell_catalog::{MapError, NodeSource, PackClass};
use keepwell_crypto::{ChunkId, ChunkKind};
use tokio::runtime::Handle;

use super::{fetch_frames, read_chunk};
use crate::Error;
use crate::pack::{chunk_from_frame, decode_frame};
use crate::repository::Repository;

/// Decoded frames kept; a frame of nodes is about 256 KiB.
const FRAMES_MAX: usize = 64;

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
        let Some(location) = self.repository.locate(id)?.into_iter().next() else { return Ok(None) };
        let entry = &location.entry;
        let place = (location.pack.name.to_string(), entry.frame_offset);
        let frame = match self.cached(&place) {
            Some(frame) => frame,
            None => {
                let range = entry.frame_offset..entry.frame_offset.saturating_add(entry.frame_length);
                let fetch = fetch_frames(
                    &self.repository,
                    PackClass::Meta,
                    &location.pack,
                    std::slice::from_ref(&range),
                );
                let stored = self.handle.block_on(fetch)?;
                let frame = Bytes::from(decode_frame(stored.first().ok_or(Error::Cancelled)?, None)?);
                self.keep(place, frame.clone());
                frame
            }
        };
        let key = self.repository.id_key(location.pack.domain)?;
        let node = chunk_from_frame(&frame, entry.offset, entry.length, id, ChunkKind::Node, key)?;
        Ok(Some(frame.slice_ref(node)))
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
        if frames.by_place.len() >= FRAMES_MAX
            && let Some(oldest) =
                frames.by_place.iter().min_by_key(|(_, (used, _))| *used).map(|(p, _)| p.clone())
        {
            frames.by_place.remove(&oldest);
        }
        let tick = frames.tick;
        frames.by_place.insert(place, (tick, frame));
    }
}

impl NodeSource for Nodes {
    fn node(&self, id: &ChunkId) -> Result<Bytes, MapError> {
        self.read(id).map_err(|error| MapError::Read { node: *id, source: Box::new(error) })
    }
}
