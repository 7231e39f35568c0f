//! Finding out what of a window's files is right already, and what is needed for the rest.
//!
//! Where nothing stands in the target this only looks into the index. Otherwise every byte that stands there is read and
//! hashed, so the work is dealt out by bytes: of one large file several threads compare a stretch each.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use keepwell_catalog::{EntryKind, Extent, Location};
use keepwell_crypto::{ChunkId, ChunkKind};

use super::job::Job;
use super::packs::{ELSEWHERE, Need, Packs, locate_in};
use super::{Work, is_fatal};
use crate::Error;
use crate::error::shown;
use crate::pack::FRAME_PLAIN_MAX;
use crate::target::{TargetError, TargetFile};

/// So much content is prepared by one thread in one go …
const SHARE_BYTES: u64 = 4 << 20;
/// … or so many small files.
const SHARE_STRETCHES: usize = 64;

/// Extents of one file that lie one behind the other.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    job: u32,
    extents: Range<u32>,
    /// Where in the file they begin.
    at: u64,
    bytes: u64,
}

/// Cuts files into stretches; each has at least one.
pub(super) fn stretches(jobs: &[Job]) -> Vec<Stretch> {
    let number = |n: usize| u32::try_from(n).expect("a window has fewer files and extents than bytes");
    let mut all = Vec::with_capacity(jobs.len());
    for (job, of) in jobs.iter().enumerate() {
        let before = all.len();
        let (mut from, mut at, mut bytes) = (0, of.part.map_or(0, |part| part.at), 0);
        for (index, extent) in of.entry.content.iter().enumerate() {
            bytes += extent.length();
            if bytes >= SHARE_BYTES {
                all.push(Stretch { job: number(job), extents: number(from)..number(index + 1), at, bytes });
                (from, at, bytes) = (index + 1, at + bytes, 0);
            }
        }
        if from < of.entry.content.len() || all.len() == before {
            let extents = number(from)..number(of.entry.content.len());
            all.push(Stretch { job: number(job), extents, at, bytes });
        }
        of.unprepared.store(number(all.len() - before), Ordering::Relaxed);
    }
    all
}

/// Puts stretches in the order of the ids of their first chunks, which is that of the index: lookups of small files then
/// read each block of it once for a window, however large a segment a prune has merged.
pub(super) fn by_first_chunk(stretches: &mut [Stretch], jobs: &[Job]) {
    stretches.sort_by_key(|stretch| {
        let content = &jobs[stretch.job as usize].entry.content;
        content.get(stretch.extents.start as usize).and_then(Extent::chunk).copied()
    });
}

/// Deals stretches out: one that is large comes last in its share.
pub(super) fn shares(stretches: &[Stretch]) -> impl Iterator<Item = &[Stretch]> {
    let mut left = stretches;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let full = left.iter().take(SHARE_STRETCHES).position(|stretch| {
            bytes += stretch.bytes;
            bytes >= SHARE_BYTES
        });
        let (share, rest) = left.split_at(full.map_or(left.len().min(SHARE_STRETCHES), |last| last + 1));
        left = rest;
        (!share.is_empty()).then_some(share)
    })
}

/// Finds out which pieces of a stretch are needed. Whoever prepares the last stretch of a file finishes it if that needs
/// none. What goes wrong with a file is noted; an error ends the restore.
pub(super) fn prepare(
    work: &Work,
    jobs: &[Job],
    stretch: &Stretch,
    packs: &Mutex<Packs>,
    needs: &mut Vec<Need>,
    buffer: &mut Vec<u8>,
) -> Result<(), Error> {
    let job = &jobs[stretch.job as usize];
    let compared = match job.has_failed() {
        true => Ok(()),
        false => compare(work, job, stretch, packs, needs, buffer),
    };
    let is_last = job.unprepared.fetch_sub(1, Ordering::AcqRel) == 1;
    let done = match compared {
        Ok(()) if is_last && !job.has_failed() => conclude(work, job),
        done => done,
    };
    match done {
        Err(error) if job.fail() || is_fatal(&error) => work.problem(&job.key, error),
        _ => Ok(()),
    }
}

fn compare(
    work: &Work,
    job: &Job,
    stretch: &Stretch,
    packs: &Mutex<Packs>,
    needs: &mut Vec<Need>,
    buffer: &mut Vec<u8>,
) -> Result<(), Error> {
    if !work.fresh {
        job.open(|| open_existing(work, job))?;
    }
    let file = job.file();
    let existing = file.as_deref().filter(|_| job.part.is_none_or(|part| part.compare));
    let (before, mut at, mut same_bytes) = (needs.len(), stretch.at, 0);
    for extent in &job.entry.content[stretch.extents.start as usize..stretch.extents.end as usize] {
        match extent {
            Extent::Hole { length } => {
                if let Some(file) = existing {
                    file.punch_hole(at, *length)?;
                }
            }
            Extent::Chunk { id, offset, length } => {
                work.repository.cancel().check()?;
                let (found, is_here) = locate(work, id)?;
                let same = existing
                    .is_some_and(|file| is_there(work, file, at, id, *offset, *length, &found, buffer));
                if same {
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
                        job: stretch.job,
                        at,
                        skip: *offset,
                        take: *length,
                    });
                }
            }
        }
        at += extent.length();
    }
    let pieces = u32::try_from(needs.len() - before).unwrap_or(u32::MAX);
    job.missing.fetch_add(pieces, Ordering::AcqRel);
    work.tally.bytes_unchanged.fetch_add(same_bytes, Ordering::Relaxed);
    work.repository.monitor().advance(0, same_bytes);
    Ok(())
}

/// All stretches are prepared: finishes a file that needs nothing, and makes ready what waits for its content.
fn conclude(work: &Work, job: &Job) -> Result<(), Error> {
    let needs_nothing = job.missing.load(Ordering::Acquire) == 0;
    if job.part.is_some() {
        if job.file().is_none() {
            job.use_file(work.target.create_file(&job.key, &job.entry)?);
        }
        return Ok(());
    }
    if !needs_nothing {
        return Ok(());
    }
    let was_right = job.had_bytes() == Some(job.entry.size);
    match job.take_file() {
        Some(file) => file.finish(&job.entry)?,
        None if job.entry.size == 0 => work.target.write_file(&job.key, &job.entry, &[])?,
        None => work.target.create_file(&job.key, &job.entry)?.finish(&job.entry)?,
    }
    let count = if was_right { &work.tally.files_unchanged } else { &work.tally.files_written };
    count.fetch_add(1, Ordering::Relaxed);
    work.repository.monitor().advance(1, 0);
    Ok(())
}

/// A file of the target, and the size that it had.
pub(super) type Existing = (Box<dyn TargetFile>, u64);

/// A regular file that can be corrected in place. What else stands there is removed if the options allow it.
fn open_existing(work: &Work, job: &Job) -> Result<Option<Existing>, Error> {
    match work.target.existing(&job.key)? {
        None => Ok(None),
        Some(entry) if entry.kind == EntryKind::File => {
            Ok(Some((work.target.open_existing(&job.key, &job.entry)?, entry.size)))
        }
        Some(entry) if entry.kind == EntryKind::Directory && !work.delete => {
            let reason = "a directory stands in the place of a file".to_owned();
            Err(TargetError::Refused { path: shown(&job.key), reason }.into())
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

#[cfg(test)]
mod tests {
    use keepwell_catalog::Entry;

    use super::*;
    use crate::testing::key;

    fn job(extents: &[u32]) -> Job {
        let id = ChunkId::from_bytes([1; 32]);
        let content = extents.iter().map(|length| Extent::Chunk { id, offset: 0, length: *length }).collect();
        Job::new(key("file"), Entry { content, ..Entry::new(EntryKind::File) })
    }

    #[test]
    fn small_files_are_prepared_in_the_order_of_the_index() {
        let extent = |n: u8| Extent::Chunk { id: ChunkId::from_bytes([n; 32]), offset: 0, length: 9 };
        let entry = |content| Entry { content, ..Entry::new(EntryKind::File) };
        let contents = [
            vec![extent(7)],
            vec![],
            vec![extent(2), extent(9)],
            vec![extent(7)],
            vec![Extent::Hole { length: 9 }],
        ];
        let jobs: Vec<Job> =
            contents.into_iter().map(|content| Job::new(key("file"), entry(content))).collect();
        let mut stretches = stretches(&jobs);
        by_first_chunk(&mut stretches, &jobs);
        assert_eq!(stretches.iter().map(|stretch| stretch.job).collect::<Vec<_>>(), [1, 4, 2, 0, 3]);
    }

    #[test]
    fn a_large_file_is_shared_and_small_ones_go_together() {
        const CHUNK: u32 = 60_000;
        let mut jobs = vec![job(&[CHUNK; 1000]), job(&[])];
        jobs.extend((0..200).map(|_| job(&[1000])));
        jobs.push(job(&[CHUNK; 70]));
        let stretches = stretches(&jobs);
        for (number, job) in jobs.iter().enumerate() {
            let own: Vec<_> = stretches.iter().filter(|s| s.job as usize == number).collect();
            assert_eq!(job.unprepared.load(Ordering::Relaxed) as usize, own.len());
            let (mut extent, mut at) = (0, 0);
            for stretch in own {
                assert_eq!((stretch.extents.start, stretch.at), (extent, at));
                (extent, at) = (stretch.extents.end, at + stretch.bytes);
            }
            let bytes: u64 = job.entry.content.iter().map(Extent::length).sum();
            assert_eq!((extent as usize, at), (job.entry.content.len(), bytes));
        }
        let shares: Vec<&[Stretch]> = shares(&stretches).collect();
        assert_eq!(shares.iter().map(|share| share.len()).sum::<usize>(), stretches.len());
        let most = SHARE_BYTES * 2 + u64::from(CHUNK);
        assert!(shares.iter().all(|share| share.iter().map(|s| s.bytes).sum::<u64>() < most));
        // 60 MB in stretches of 4 MiB and a chunk, 200 small files in 64 each, and 4.2 MB.
        assert!((18..=21).contains(&shares.len()), "{}", shares.len());
        assert!(shares.iter().all(|share| share.len() <= SHARE_STRETCHES));
    }
}
