//! Delivering the content of one window of files.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use keepwell_catalog::{ContentName, EntryKind, Extent, Location, PackClass, PackRef};
use keepwell_crypto::{ChunkId, ChunkKind, IdKey};

use super::Work;
use super::job::Job;
use crate::Error;
use crate::pack::{FRAME_PLAIN_MAX, chunk_from_frame, decode_frame};
use crate::read::{fetch_frames, fetch_pack, read_chunk};
use crate::repository::Repository;
use crate::target::TargetFile;

/// Frames fetched in one go when only parts of a pack are needed.
const FETCH_BYTES_MAX: usize = 16 << 20;

/// A piece of a file, and where its chunk lies.
#[derive(Debug, Clone, Copy)]
struct Need {
    pack: u32,
    frame_offset: u32,
    frame_length: u32,
    /// Of the chunk in its frame.
    offset: u32,
    length: u32,
    id: ChunkId,
    job: u32,
    /// Where in the file the piece goes.
    at: u64,
    /// Which part of the chunk it is.
    skip: u32,
    take: u32,
}

/// Stands for a pack that is not in this store.
const ELSEWHERE: u32 = u32::MAX;

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
struct Packs {
    numbers: HashMap<ContentName, u32>,
    list: Vec<PackRef>,
}

impl Packs {
    fn number(&mut self, pack: PackRef) -> u32 {
        *self.numbers.entry(pack.name).or_insert_with(|| {
            self.list.push(pack);
            u32::try_from(self.list.len() - 1).expect("a window has fewer packs than extents")
        })
    }
}

/// Restores the content of these files, with as many threads as the limits allow.
pub(super) fn deliver(work: &Work, jobs: &[Job]) -> Result<(), Error> {
    if jobs.is_empty() {
        return Ok(());
    }
    let packs = Mutex::new(Packs::default());
    let needs = Mutex::new(Vec::new());
    in_parallel(work, jobs.len(), 64, |range| {
        let mut local = Vec::new();
        let mut buffer = Vec::new();
        for number in range {
            let job = &jobs[number];
            let number = u32::try_from(number).expect("a window has at most 2^15 files");
            let before = local.len();
            if let Err(error) = prepare(work, job, number, &packs, &mut local, &mut buffer) {
                local.truncate(before);
                job.fail();
                work.problem(&job.key, error)?;
            }
        }
        needs.lock().unwrap_or_else(PoisonError::into_inner).append(&mut local);
        Ok(())
    })?;
    let mut needs = needs.into_inner().unwrap_or_else(PoisonError::into_inner);
    let packs = packs.into_inner().unwrap_or_else(PoisonError::into_inner).list;
    needs.sort_unstable_by_key(|n| (n.pack, n.frame_offset, n.offset, n.job, n.at));
    let groups: Vec<&[Need]> = needs.chunk_by(|a, b| a.pack == b.pack).collect();
    in_parallel(work, groups.len(), 1, |range| {
        for group in &groups[range] {
            match packs.get(group[0].pack as usize) {
                Some(pack) => from_pack(work, &work.repository, pack, group, jobs)?,
                None => from_copies(work, group, jobs)?,
            }
        }
        Ok(())
    })
}

/// Runs `body` over ranges of `0..count` on several threads; the first error ends all.
fn in_parallel(
    work: &Work,
    count: usize,
    step: usize,
    body: impl Fn(std::ops::Range<usize>) -> Result<(), Error> + Sync,
) -> Result<(), Error> {
    let next = AtomicUsize::new(0);
    let run = || {
        loop {
            let from = next.fetch_add(step, Ordering::Relaxed);
            if from >= count {
                return Ok(());
            }
            if let Err(error) = body(from..(from + step).min(count)) {
                next.store(count, Ordering::Relaxed);
                return Err(error);
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..work.repository.limits().threads.max(1)).map(|_| scope.spawn(run)).collect();
        let mut ended = Ok(());
        for thread in threads {
            let result = thread.join().unwrap_or_else(|_| Err(Error::Task("it panicked".to_owned())));
            ended = ended.and(result);
        }
        ended
    })
}

/// Finds out which pieces of a file are needed; finishes files that need none.
fn prepare(
    work: &Work,
    job: &Job,
    number: u32,
    packs: &Mutex<Packs>,
    needs: &mut Vec<Need>,
    buffer: &mut Vec<u8>,
) -> Result<(), Error> {
    let at_hand = job.take_file();
    let (existing, size) = match work.fresh {
        _ if at_hand.is_some() => (at_hand, None),
        true => (None, None),
        false => open_existing(work, job)?.unzip(),
    };
    let compare = job.part.is_none_or(|part| part.compare);
    let before = needs.len();
    let mut at = job.part.map_or(0, |part| part.at);
    let mut same_bytes = 0;
    for extent in &job.entry.content {
        match extent {
            Extent::Hole { length } => {
                if let Some(file) = existing.as_ref().filter(|_| compare) {
                    file.punch_hole(at, *length)?;
                }
            }
            Extent::Chunk { id, offset, length } => {
                work.repository.cancel().check()?;
                let (found, is_here) = locate(work, id)?;
                if existing
                    .as_deref()
                    .filter(|_| compare)
                    .is_some_and(|f| is_there(work, f, at, id, *offset, *length, &found, buffer))
                {
                    same_bytes += u64::from(*length);
                } else {
                    let pack = match is_here {
                        true => packs.lock().unwrap_or_else(PoisonError::into_inner).number(found.pack),
                        false => ELSEWHERE,
                    };
                    let e = found.entry;
                    needs.push(Need {
                        pack,
                        frame_offset: e.frame_offset,
                        frame_length: e.frame_length,
                        offset: e.offset,
                        length: e.length,
                        id: *id,
                        job: number,
                        at,
                        skip: *offset,
                        take: *length,
                    });
                }
            }
        }
        at += extent.length();
    }
    let pieces = needs.len() - before;
    job.missing.store(u32::try_from(pieces).unwrap_or(u32::MAX), Ordering::Release);
    work.tally.bytes_unchanged.fetch_add(same_bytes, Ordering::Relaxed);
    work.repository.monitor().advance(0, same_bytes);
    match existing {
        Some(file) if pieces > 0 || job.part.is_some() => job.use_file(file),
        None if job.part.is_some() => job.use_file(work.target.create_file(&job.key, &job.entry)?),
        Some(file) => {
            file.finish(&job.entry)?;
            let was_right = size == Some(job.entry.size);
            let count = if was_right { &work.tally.files_unchanged } else { &work.tally.files_written };
            count.fetch_add(1, Ordering::Relaxed);
            work.repository.monitor().advance(1, 0);
        }
        None if pieces == 0 => {
            if job.entry.size == 0 {
                work.target.write_file(&job.key, &job.entry, &[])?;
            } else {
                work.target.create_file(&job.key, &job.entry)?.finish(&job.entry)?;
            }
            work.tally.files_written.fetch_add(1, Ordering::Relaxed);
            work.repository.monitor().advance(1, 0);
        }
        None => {}
    }
    Ok(())
}

/// A file of the target, and the size that it had.
type Existing = (Box<dyn TargetFile>, u64);

/// A regular file that can be corrected in place. What else stands there is removed if the options allow it.
fn open_existing(work: &Work, job: &Job) -> Result<Option<Existing>, Error> {
    match work.target.existing(&job.key)? {
        None => Ok(None),
        Some(entry) if entry.kind == EntryKind::File => {
            Ok(Some((work.target.open_existing(&job.key, &job.entry)?, entry.size)))
        }
        Some(entry) if entry.kind == EntryKind::Directory && !work.delete => {
            Err(Error::Invalid("a directory stands in the place of a file".into()))
        }
        Some(_) => {
            work.target.remove(&job.key)?;
            Ok(None)
        }
    }
}

/// Whether the file holds these bytes already. Only whole chunks can be told by their id.
#[expect(clippy::too_many_arguments, reason = "the parts of one extent and where to look for it")]
fn is_there(
    work: &Work,
    file: &dyn TargetFile,
    at: u64,
    id: &ChunkId,
    offset: u32,
    length: u32,
    found: &Location,
    buffer: &mut Vec<u8>,
) -> bool {
    if offset != 0 || length != found.entry.length || length as usize > FRAME_PLAIN_MAX {
        return false;
    }
    buffer.resize(length as usize, 0);
    let read = file.read_at(at, buffer).unwrap_or(false);
    read && work
        .repository
        .id_key(found.pack.domain)
        .is_ok_and(|key| key.chunk_id(ChunkKind::Content, buffer) == *id)
}

/// A place of a chunk, and whether it is in this store; else it is in a copy.
fn locate(work: &Work, id: &ChunkId) -> Result<(Location, bool), Error> {
    if !work.repository.is_silent()
        && let Some(found) = work.repository.locate(id)?.into_iter().next()
    {
        return Ok((found, true));
    }
    for (_, copy) in work.handle.block_on(work.repository.copies()) {
        if let Some(found) = locate_in(work, copy, id) {
            return Ok((found, false));
        }
    }
    Err(Error::ChunkLost { id: *id, reason: "no index segment lists it".into() })
}

fn locate_in(work: &Work, copy: &Repository, id: &ChunkId) -> Option<Location> {
    if copy.index().is_empty() {
        // A copy whose index cannot be read has nothing for us.
        let _ = work.handle.block_on(copy.refresh_index());
    }
    copy.locate(id).ok()?.into_iter().next()
}

/// Delivers everything that is needed of one pack of the store, or of a copy.
fn from_pack(
    work: &Work,
    repository: &Repository,
    pack: &PackRef,
    needs: &[Need],
    jobs: &[Job],
) -> Result<(), Error> {
    let Ok(key) = repository.id_key(pack.domain) else {
        return from_copies(work, needs, jobs); // a domain that is erased, or not ours; others may hold it too
    };
    let is_here = repository.store_id() == work.repository.store_id();
    let frames: Vec<&[Need]> = needs.chunk_by(|a, b| a.frame_offset == b.frame_offset).collect();
    let wanted: u64 = frames.iter().map(|f| u64::from(f[0].frame_length)).sum();
    if is_here && repository.is_silent() {
        return from_copies(work, needs, jobs);
    }
    if wanted * 2 >= pack.size {
        match work.handle.block_on(fetch_pack(repository, PackClass::Data, pack)) {
            Ok(whole) => {
                for frame in frames {
                    let from = frame[0].frame_offset as usize;
                    let stored = whole.plain.get(from..from.saturating_add(frame[0].frame_length as usize));
                    from_frame(work, key, stored.unwrap_or_default(), frame, jobs)?;
                }
                return Ok(());
            }
            Err(Error::Storage(error))
                if is_here && error.is_not_found() && repository.note_gone(pack.name) =>
            {
                return from_elsewhere(work, needs, jobs);
            }
            // What a copy has as a whole need not be picked from what is left here.
            Err(error) if is_here => {
                repository.note_failure(&error);
                if !work.handle.block_on(repository.copies()).is_empty() {
                    return from_copies(work, needs, jobs);
                }
            }
            // Frame by frame, more of it may be left.
            Err(_) => {}
        }
    }
    for run in runs(&frames) {
        let ranges: Vec<_> = run
            .iter()
            .map(|f| f[0].frame_offset..f[0].frame_offset.saturating_add(f[0].frame_length))
            .collect();
        let stored = work.handle.block_on(fetch_frames(repository, PackClass::Data, pack, &ranges));
        let stored = stored.unwrap_or_else(|error| {
            repository.note_failure(&error);
            vec![Bytes::new(); run.len()]
        });
        for (frame, stored) in run.iter().zip(stored) {
            from_frame(work, key, &stored, frame, jobs)?;
        }
    }
    Ok(())
}

/// Delivers what a pack no longer holds from wherever the index places it now: a prune moved it, or it is lost.
fn from_elsewhere(work: &Work, needs: &[Need], jobs: &[Job]) -> Result<(), Error> {
    if let Err(error) = work.handle.block_on(work.repository.refresh_index()) {
        work.repository.note_failure(&error);
        if !work.repository.is_silent() {
            return Err(error);
        }
    }
    let mut packs = Packs::default();
    let (mut moved, mut lost) = (Vec::with_capacity(needs.len()), Vec::new());
    for need in needs {
        match work.repository.locate(&need.id)?.into_iter().find(|l| !work.repository.is_gone(&l.pack.name)) {
            Some(found) => moved.push(need.at_place(&mut packs, &found)),
            None => lost.push(*need),
        }
    }
    deliver_moved(work, &work.repository, &packs, moved, jobs)?;
    from_copies(work, &lost, jobs)
}

/// Delivers what this store cannot give from the copies, each pack of theirs fetched once. What none has is looked for
/// once more, wherever it may be, and then counts as lost.
fn from_copies(work: &Work, needs: &[Need], jobs: &[Job]) -> Result<(), Error> {
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
        deliver_moved(work, copy, &packs, found, jobs)?;
        left = missing;
    }
    for chunk in left.chunk_by(|a, b| a.id == b.id) {
        let read = work.handle.block_on(read_chunk(&work.repository, ChunkKind::Content, &chunk[0].id));
        hand_out(work, read.as_deref(), chunk, jobs)?;
    }
    Ok(())
}

fn deliver_moved(
    work: &Work,
    repository: &Repository,
    packs: &Packs,
    mut needs: Vec<Need>,
    jobs: &[Job],
) -> Result<(), Error> {
    needs.sort_unstable_by_key(|n| (n.pack, n.frame_offset, n.offset, n.job, n.at));
    needs
        .chunk_by(|a, b| a.pack == b.pack)
        .try_for_each(|group| from_pack(work, repository, &packs.list[group[0].pack as usize], group, jobs))
}

/// Cuts frames into runs of bounded size.
fn runs<'f, 'n>(frames: &'f [&'n [Need]]) -> Vec<&'f [&'n [Need]]> {
    let mut out = Vec::new();
    let (mut from, mut bytes) = (0, 0);
    for (i, frame) in frames.iter().enumerate() {
        bytes += frame[0].frame_length as usize;
        if bytes >= FETCH_BYTES_MAX {
            out.push(&frames[from..=i]);
            (from, bytes) = (i + 1, 0);
        }
    }
    if from < frames.len() {
        out.push(&frames[from..]);
    }
    out
}

/// Decodes one frame and delivers its chunks. Whatever is wrong with it, each chunk is then tried at its other places.
fn from_frame(work: &Work, key: &IdKey, stored: &[u8], needs: &[Need], jobs: &[Job]) -> Result<(), Error> {
    let plain = decode_frame(stored, None).unwrap_or_default();
    for chunk in needs.chunk_by(|a, b| a.id == b.id) {
        let need = &chunk[0];
        match chunk_from_frame(&plain, need.offset, need.length, &need.id, ChunkKind::Content, key) {
            Ok(bytes) => hand_out(work, Ok(bytes), chunk, jobs)?,
            Err(_) => {
                let slow = work.handle.block_on(read_chunk(&work.repository, ChunkKind::Content, &need.id));
                hand_out(work, slow.as_deref(), chunk, jobs)?;
            }
        }
    }
    Ok(())
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
