//! Delivering what packs hold: each is fetched once, as a whole or in parts, from this store, from where a prune moved
//! it, or from a copy.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use keepwell_catalog::{Location, PackClass, PackRef};
use keepwell_crypto::{ChunkId, ChunkKind, IdKey};
use tokio::task::JoinSet;

use super::Work;
use super::job::Job;
use crate::Error;
use crate::pack::chunk_from_frame;
use crate::read::{FrameMemory, FrameReader, fetch_parts, fetch_stored, read_chunk};
use crate::repository::Repository;

/// Frames fetched in one go when only parts of a pack are needed.
const FETCH_BYTES_MAX: usize = 16 << 20;

/// A piece of a file, and where its chunk lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Need {
    pub pack: u32,
    pub frame_offset: u32,
    pub frame_length: u32,
    /// Of the chunk in its frame.
    pub offset: u32,
    pub length: u32,
    pub id: ChunkId,
    pub job: u32,
    /// Where in the file the piece goes.
    pub at: u64,
    /// Which part of the chunk it is.
    pub skip: u32,
    pub take: u32,
}

/// Stands for a pack that is not in this store.
pub(super) const ELSEWHERE: u32 = u32::MAX;

impl Need {
    /// The same piece, from another place.
    fn at_place(&self, packs: &mut Packs, found: &Location) -> Self {
        let (pack, e) = (packs.number(found.pack), found.entry);
        Self {
            pack,
            frame_offset: e.frame_offset,
            frame_length: e.frame_length,
            offset: e.offset,
            length: e.length,
            ..*self
        }
    }
}

/// Packs of a window, numbered.
#[derive(Default)]
pub(super) struct Packs {
    numbers: HashMap<PackRef, u32>,
    pub list: Vec<PackRef>,
}

impl Packs {
    pub fn number(&mut self, pack: PackRef) -> u32 {
        *self.numbers.entry(pack).or_insert_with(|| {
            self.list.push(pack);
            u32::try_from(self.list.len() - 1).expect("a window has fewer packs than extents")
        })
    }
}

pub(super) fn locate_in(work: &Work, copy: &Repository, id: &ChunkId) -> Option<Location> {
    // A copy whose index cannot be read has nothing for us.
    if copy.index().is_empty()
        && !copy.did_not_answer()
        && let Err(error) = work.handle.block_on(copy.refresh_index())
    {
        copy.note_failure(&error);
    }
    copy.locate(id).ok()?.into_iter().next()
}

/// What a thread has on its way while it decodes a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ahead {
    Nothing,
    /// The next pack, so that there are two for each thread, as they are stored.
    OnePack,
}

/// Delivers what `claim` gives, group by group, each of one pack or of [`ELSEWHERE`]. Of a pack one frame is decoded at a
/// time.
pub(super) fn deliver_each<'g>(
    work: &Work,
    packs: &[PackRef],
    claim: impl Fn() -> Option<&'g [Need]>,
    ahead: Ahead,
    jobs: &[Job],
) -> Result<(), Error> {
    let start = || claim().map(|group| (group, Fetching::start(work, packs, group)));
    let mut next = start();
    let mut to = Delivery { work, jobs, memory: work.take_memory() };
    while let Some((group, fetching)) = next.take() {
        if ahead == Ahead::OnePack {
            next = start();
        }
        match fetching {
            Some(fetching) => from_pack(&mut to, &work.repository, fetching)?,
            None => from_copies(&mut to, group)?,
        }
        if ahead == Ahead::Nothing {
            next = start();
        }
    }
    work.keep_memory(to.memory);
    Ok(())
}

/// Where one thread delivers to.
struct Delivery<'w> {
    work: &'w Work,
    jobs: &'w [Job],
    memory: FrameMemory,
}

/// What is needed of one pack, with the first request for it under way. Dropping it ends the request.
struct Fetching<'g> {
    pack: PackRef,
    needs: &'g [Need],
    frames: Vec<&'g [Need]>,
    /// Whether all of the pack was asked for.
    whole: bool,
    first: JoinSet<Result<Fetched, Error>>,
}

/// What one request gave.
enum Fetched {
    /// The whole pack, as stored.
    Whole(Bytes),
    /// What it takes to read some of its frames.
    Run(Box<FrameReader>),
}

impl<'g> Fetching<'g> {
    /// `None`: this store is not asked, because it has no such pack, does not answer, or its domain is not ours to read.
    fn start(work: &Work, packs: &[PackRef], needs: &'g [Need]) -> Option<Self> {
        let pack = packs.get(needs.first()?.pack as usize)?;
        if work.repository.is_silent() {
            return None;
        }
        Self::of(work, &work.repository, pack, needs)
    }

    fn of(work: &Work, repository: &Repository, pack: &PackRef, needs: &'g [Need]) -> Option<Self> {
        repository.id_key(pack.domain).ok()?;
        let (repository, pack) = (repository.clone(), *pack);
        let frames: Vec<&[Need]> = needs.chunk_by(|a, b| a.frame_offset == b.frame_offset).collect();
        let wanted: u64 = frames.iter().map(|f| u64::from(f[0].frame_length)).sum();
        let whole = wanted * 2 >= pack.size;
        let run = ranges(first_run(&frames));
        let mut first = JoinSet::new();
        let fetch = async move {
            match whole {
                true => fetch_stored(&repository, PackClass::Data, &pack).await.map(Fetched::Whole),
                false => {
                    let parts = fetch_parts(&repository, PackClass::Data, &pack, &run).await;
                    parts.map(|parts| Fetched::Run(Box::new(parts)))
                }
            }
        };
        first.spawn_on(fetch, &work.handle);
        Some(Self { pack, needs, frames, whole, first })
    }

    /// Waits for the request.
    fn wait(&mut self, work: &Work) -> Result<Fetched, Error> {
        let ended = work.handle.block_on(self.first.join_next()).unwrap_or(Ok(Err(Error::Cancelled)));
        ended.unwrap_or_else(|error| Err(Error::Task(error.to_string())))
    }
}

/// Delivers everything that is needed of one pack of the store, or of a copy.
fn from_pack(
    to: &mut Delivery<'_>,
    repository: &Repository,
    mut fetching: Fetching<'_>,
) -> Result<(), Error> {
    let work = to.work;
    let fetched = fetching.wait(work);
    let Fetching { pack, needs, frames, whole, .. } = fetching;
    let key = repository.id_key(pack.domain)?;
    let is_here = repository.store_id() == work.repository.store_id();
    let first = match fetched {
        Ok(Fetched::Whole(stored)) => return from_whole(to, repository, &pack, stored, needs),
        Ok(Fetched::Run(parts)) => Some(Ok(*parts)),
        Err(Error::Storage(error))
            if whole
                && is_here
                && error.is_not_found()
                && repository.note_gone(PackClass::Data, pack.name) =>
        {
            return from_elsewhere(to, needs);
        }
        Err(error) if whole => {
            // What a copy has as a whole need not be picked from what is left here; what there is of a copy's may be more
            // than nothing.
            if is_here {
                repository.note_failure(&error);
                if has_copies(work) {
                    return from_copies(to, needs);
                }
            }
            None
        }
        Err(error) => Some(Err(error)),
    };
    let (mut left, mut at_hand) = (&frames[..], first);
    while !left.is_empty() {
        let (run, rest) = left.split_at(first_run(left).len());
        let mut parts = at_hand.take().unwrap_or_else(|| {
            work.handle.block_on(fetch_parts(repository, PackClass::Data, &pack, &ranges(run)))
        });
        for frame in run {
            let read = match &mut parts {
                Ok(parts) => parts.read(&range(frame), &mut to.memory.stored),
                Err(error) => Err(error.clone()),
            };
            to.frame(key, read.inspect_err(|error| repository.note_failure(error)), frame)?;
        }
        left = rest;
    }
    Ok(())
}

/// Delivers what is needed of a pack that is at hand, a frame at a time. From where it is damaged on, copies have the word.
fn from_whole(
    to: &mut Delivery<'_>,
    repository: &Repository,
    pack: &PackRef,
    stored: Bytes,
    needs: &[Need],
) -> Result<(), Error> {
    let key = repository.id_key(pack.domain)?;
    let is_here = repository.store_id() == to.work.repository.store_id();
    let mut frames = FrameReader::new(repository, PackClass::Data, pack, stored);
    let mut done = 0;
    for frame in needs.chunk_by(|a, b| a.frame_offset == b.frame_offset) {
        let read = match &mut frames {
            Ok(frames) => frames.read(&range(frame), &mut to.memory.stored),
            Err(error) => Err(error.clone()),
        };
        if let Err(error) = &read {
            repository.note_failure(error);
            if is_here && has_copies(to.work) {
                return from_copies(to, &needs[done..]);
            }
        }
        to.frame(key, read, frame)?;
        done += frame.len();
    }
    Ok(())
}

fn has_copies(work: &Work) -> bool {
    !work.handle.block_on(work.repository.copies()).is_empty()
}

/// Delivers what a pack no longer holds from wherever the index places it now: a prune moved it, or it is lost.
fn from_elsewhere(to: &mut Delivery<'_>, needs: &[Need]) -> Result<(), Error> {
    let work = to.work;
    if let Err(error) = work.handle.block_on(work.repository.refresh_index()) {
        work.repository.note_failure(&error);
        if !work.repository.is_silent() {
            return Err(error);
        }
    }
    let mut packs = Packs::default();
    let (mut moved, mut lost) = (Vec::with_capacity(needs.len()), Vec::new());
    for need in needs {
        let is_there = |l: &Location| !work.repository.is_gone(PackClass::Data, &l.pack.name);
        match work.repository.locate(&need.id)?.into_iter().find(is_there) {
            Some(found) => moved.push(need.at_place(&mut packs, &found)),
            None => lost.push(*need),
        }
    }
    lost.extend(deliver_moved(to, &work.repository, &packs, moved)?);
    from_copies(to, &lost)
}

/// Delivers what this store cannot give from the copies, each pack of theirs fetched once. What none has is looked for
/// once more, wherever it may be, and then counts as lost.
fn from_copies(to: &mut Delivery<'_>, needs: &[Need]) -> Result<(), Error> {
    let work = to.work;
    let mut left = needs.to_vec();
    for (name, copy) in work.handle.block_on(work.repository.copies()) {
        let mut packs = Packs::default();
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for need in left {
            match locate_in(work, copy, &need.id) {
                Some(location) => found.push(need.at_place(&mut packs, &location)),
                None => missing.push(need),
            }
        }
        if !found.is_empty() {
            work.repository.note_copy(name);
        }
        missing.extend(deliver_moved(to, copy, &packs, found)?);
        left = missing;
    }
    for chunk in left.chunk_by(|a, b| a.id == b.id) {
        let read = work.handle.block_on(read_chunk(&work.repository, ChunkKind::Content, &chunk[0].id));
        hand_out(work, read.as_deref(), chunk, to.jobs)?;
    }
    Ok(())
}

/// Gives back what lies in a domain that is erased there, or not ours to read; others may hold it too.
fn deliver_moved(
    to: &mut Delivery<'_>,
    repository: &Repository,
    packs: &Packs,
    mut needs: Vec<Need>,
) -> Result<Vec<Need>, Error> {
    let mut closed = Vec::new();
    needs.sort_unstable_by_key(|n| (n.pack, n.frame_offset, n.offset, n.job, n.at));
    for group in needs.chunk_by(|a, b| a.pack == b.pack) {
        let pack = &packs.list[group[0].pack as usize];
        match Fetching::of(to.work, repository, pack, group) {
            Some(fetching) => from_pack(to, repository, fetching)?,
            None => closed.extend_from_slice(group),
        }
    }
    Ok(closed)
}

/// As many of the frames, from the first on, as are fetched in one go when only parts of a pack are needed.
fn first_run<'f, 'n>(frames: &'f [&'n [Need]]) -> &'f [&'n [Need]] {
    let mut bytes = 0;
    let full = frames.iter().position(|frame| {
        bytes += frame[0].frame_length as usize;
        bytes >= FETCH_BYTES_MAX
    });
    &frames[..full.map_or(frames.len(), |last| last + 1)]
}

fn ranges(frames: &[&[Need]]) -> Vec<Range<u32>> {
    frames.iter().map(|frame| range(frame)).collect()
}

/// Where the frame of these lies in its pack.
fn range(frame: &[Need]) -> Range<u32> {
    frame[0].frame_offset..frame[0].frame_offset.saturating_add(frame[0].frame_length)
}

impl Delivery<'_> {
    /// Decodes the frame that was read and delivers its chunks. Whatever is wrong with it, each chunk is then tried at its
    /// other places.
    fn frame(&mut self, key: &IdKey, read: Result<(), Error>, needs: &[Need]) -> Result<(), Error> {
        let FrameMemory { stored, decoder } = &mut self.memory;
        let plain = read.ok().and_then(|()| decoder.decode(stored, None).ok()).unwrap_or_default();
        for chunk in needs.chunk_by(|a, b| a.id == b.id) {
            let need = &chunk[0];
            match chunk_from_frame(plain, need.offset, need.length, &need.id, ChunkKind::Content, key) {
                Ok(bytes) => hand_out(self.work, Ok(bytes), chunk, self.jobs)?,
                Err(_) => {
                    let read = read_chunk(&self.work.repository, ChunkKind::Content, &need.id);
                    let slow = self.work.handle.block_on(read);
                    hand_out(self.work, slow.as_deref(), chunk, self.jobs)?;
                }
            }
        }
        Ok(())
    }
}

/// Writes a chunk wherever it is needed, or notes that it cannot be had.
fn hand_out(work: &Work, chunk: Result<&[u8], &Error>, needs: &[Need], jobs: &[Job]) -> Result<(), Error> {
    for need in needs {
        let job = &jobs[need.job as usize];
        let piece = match chunk {
            Ok(bytes) => write_piece(work, job, need, bytes),
            Err(error) => Err(error.clone()),
        };
        job.piece_done(work, piece)?;
    }
    Ok(())
}

fn write_piece(work: &Work, job: &Job, need: &Need, chunk: &[u8]) -> Result<(), Error> {
    let from = need.skip as usize;
    let piece = chunk.get(from..from.saturating_add(need.take as usize));
    let piece = piece.ok_or_else(|| Error::damaged(need.id, "an extent reaches past its end"))?;
    if job.is_one_piece(piece.len() as u64) {
        work.target.write_file(&job.key, &job.entry, piece)?;
    } else {
        job.write(work, need.at, piece)?;
    }
    work.tally.bytes_written.fetch_add(piece.len() as u64, Ordering::Relaxed);
    work.repository.monitor().advance(0, piece.len() as u64);
    Ok(())
}
