//! Reading packs and proving every chunk in them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use keepwell_catalog::names::{self, ObjectName};
use keepwell_catalog::{ContentName, IndexSet, PackClass, PackRef, PackSet};
use keepwell_crypto::{ChunkId, ChunkKind, Digest};
use keepwell_storage::{StorageError, StorageErrorKind};
use tokio::runtime::Handle;

use super::remembered::Proofs;
use super::structure::Packs;
use super::{CheckReport, ReadData, affected, class_of_key, remembered};
use crate::Error;
use crate::pack::chunk_from_frame;
use crate::read::{FrameMemory, FrameReader, fetch_stored};
use crate::repository::{Repository, read_plans};

/// What reading found damaged.
#[derive(Debug, Default)]
pub(super) struct Damaged {
    /// Chunks of content that cannot be read from anywhere else.
    pub lost: HashSet<ChunkId>,
    /// Packs that are not what they should be, or of which the index says what is not so.
    pub packs: Vec<ContentName>,
    /// Packs that the last check found so, and that lie in an archive now: nothing is known of them but that.
    pub unread: Vec<ContentName>,
}

/// Reads what was never proved first, then what was proved longest ago, and remembers what it proves as it goes on: a
/// check that is interrupted has done some of the work of the next. What is missing or damaged counts as proved no more.
///
/// What the last check of this host found damaged is read again, whatever else is.
pub(super) async fn check(
    repository: &Repository,
    packs: &Packs,
    read: ReadData,
    report: &mut CheckReport,
) -> Result<Damaged, Error> {
    let now = repository.now();
    let known = remembered::load(repository.cache());
    let mut proofs = Proofs::new(repository);
    known.keys().filter(|name| !packs.contains_key(name)).for_each(|name| proofs.doubt(*name));
    let suspects = remembered::suspects(repository.cache());
    let mut chosen = choose(repository, packs, read, now, &known, &suspects);
    // Those that one segment lists come together: then all threads look up in the same few blocks.
    let segments = segments_of(&repository.index());
    let place = |pack: &PackRef| (segments.get(&pack.name).copied(), pack.name);
    chosen.sort_by_key(|(_, pack)| (known.get(&pack.name).copied(), place(pack)));
    drop(segments);
    if chosen.is_empty() {
        proofs.save();
        return Ok(Damaged::default());
    }
    let bytes = chosen.iter().map(|(_, p)| p.size).sum();
    repository.monitor().total(chosen.len() as u64, bytes);
    let proofs = Arc::new(Mutex::new(proofs));
    let found = read_packs(repository, chosen, Some(Arc::clone(&proofs)), report).await;
    proofs.lock().unwrap_or_else(PoisonError::into_inner).save();
    let Found { suspect, archived, .. } = found?;
    let lost = affected::lost_chunks(repository, packs, &suspect).await?;
    let unread = archived.into_iter().filter(|name| suspects.contains(name)).collect();
    Ok(Damaged { lost, packs: suspect.iter().map(|(_, pack)| pack.name).collect(), unread })
}

/// The number of the last segment that lists each pack.
fn segments_of(index: &IndexSet) -> HashMap<ContentName, usize> {
    let segments = index.segments();
    let listed = segments.iter().enumerate();
    listed.flat_map(|(number, (_, segment))| segment.packs().iter().map(move |p| (p.name, number))).collect()
}

fn choose(
    repository: &Repository,
    packs: &Packs,
    read: ReadData,
    now: i64,
    proved: &BTreeMap<ContentName, i64>,
    suspects: &BTreeSet<ContentName>,
) -> Vec<(PackClass, PackRef)> {
    let all = packs.values().copied().filter(|(_, pack)| !repository.is_erased(pack.domain));
    let is_due = |pack: &PackRef| match read {
        ReadData::Nothing => false,
        ReadData::Everything => true,
        ReadData::OlderThan(age) => {
            let limit = now.saturating_sub(i64::try_from(age.as_nanos()).unwrap_or(i64::MAX));
            proved.get(&pack.name).is_none_or(|at| *at < limit)
        }
        ReadData::Share(share) => {
            f64::from(u32::from_le_bytes(repository.random_suffix())) / f64::from(u32::MAX) <= share
        }
    };
    all.filter(|(_, pack)| suspects.contains(&pack.name) || is_due(pack)).collect()
}

/// Proves the packs that a session created; gives the number of chunks.
pub(super) async fn prove_created(
    repository: &Repository,
    created: &[(String, u64)],
    report: &mut CheckReport,
) -> Result<u64, Error> {
    let mut names = std::collections::BTreeSet::new();
    for (key, _) in created {
        if let Ok(ObjectName::Pack(_, name)) = key.parse() {
            names.insert((class_of_key(key), name));
        }
    }
    let mut packs = Vec::new();
    for (_, segment) in repository.index().segments() {
        packs.extend(
            segment
                .packs()
                .iter()
                .filter(|p| names.contains(&(segment.class(), p.name)))
                .map(|p| (segment.class(), *p)),
        );
    }
    if packs.len() < names.len() {
        report.found("index", "it lacks packs that this session stored");
    }
    let read = read_packs(repository, packs, None, report).await?;
    if report.packs_archived > 0 {
        let what = "packs that this session stored lie in an archive already, and cannot be read back";
        report.found("data", what);
    }
    Ok(read.sound.into_iter().map(|(_, chunks)| chunks).sum())
}

/// What reading packs showed.
#[derive(Default)]
struct Found {
    /// Packs that are what they should be, with their number of chunks.
    sound: Vec<(ContentName, u64)>,
    /// Packs that are not, or of which the index says what is not so.
    suspect: Vec<(PackClass, PackRef)>,
    /// Packs that cannot be read now.
    archived: Vec<ContentName>,
}

/// Reads packs with all threads, and reports what is wrong.
async fn read_packs(
    of: &Repository,
    packs: Vec<(PackClass, PackRef)>,
    proofs: Option<Arc<Mutex<Proofs>>>,
    report: &mut CheckReport,
) -> Result<Found, Error> {
    let group = of.group();
    let index = of.index();
    let (repository, handle) = (of.clone(), Handle::current());
    let task = tokio::task::spawn_blocking(move || {
        let listed = entries_listed(&index, packs.iter().map(|(_, pack)| pack.name).collect())?;
        let largest = packs.iter().map(|(_, pack)| pack.size).max().unwrap_or(0);
        let at_once = repository.packs_at_once(largest).min(repository.frames_at_once());
        let threads = repository.limits().threads.clamp(1, at_once);
        let next = AtomicUsize::new(0);
        let results = Mutex::new(Vec::new());
        let run = || {
            let mut memory = FrameMemory::default();
            while let Some((class, pack)) = packs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let fetched = handle.block_on(fetch_stored(&repository, *class, pack));
                let result = fetched.and_then(|stored| {
                    prove_pack(&repository, &index, stored, (*class, pack), &listed, &mut memory)
                });
                if let Some(proofs) = &proofs {
                    remember(&mut proofs.lock().unwrap_or_else(PoisonError::into_inner), pack.name, &result);
                }
                repository.monitor().advance(1, pack.size);
                if matches!(&result, Err(Error::Storage(e)) if !e.is_not_found() && !is_archived(e)) {
                    next.store(packs.len(), Ordering::Relaxed);
                }
                results.lock().unwrap_or_else(PoisonError::into_inner).push((*class, *pack, result));
            }
        };
        std::thread::scope(|scope| {
            (0..threads).for_each(|_| {
                scope.spawn(run);
            });
        });
        Ok::<_, Error>(results.into_inner().unwrap_or_else(PoisonError::into_inner))
    });
    let (mut found, mut failed) = (Found::default(), Vec::new());
    for (class, pack, result) in task.await.map_err(|e| Error::Task(e.to_string()))?? {
        match result {
            Ok(proof) => {
                report.packs_read += 1;
                report.bytes_read += pack.size;
                found.sound.push((pack.name, proof.chunks));
                if !proof.false_segments.is_empty() {
                    found.suspect.push((class, pack));
                }
                for segment in proof.false_segments {
                    let what = format!("it places chunks in pack {} that are not there", pack.name);
                    report.found(format_args!("index/{group}/{segment}"), what);
                }
            }
            Err(Error::Storage(e)) if is_archived(&e) => {
                report.packs_archived += 1;
                found.archived.push(pack.name);
            }
            Err(Error::Storage(e)) if !e.is_not_found() => return Err(Error::Storage(e)),
            Err(error) => failed.push((class, pack, error)),
        }
    }
    leave_out_dead(of, &mut failed).await?;
    for (class, pack, error) in failed {
        report.found(names::pack_key(class, &pack.name), crate::error::one_line(&error));
        found.suspect.push((class, pack));
    }
    Ok(found)
}

/// Leaves out packs that a prune has decided to remove since they were listed: what they held is elsewhere, or nobody needs
/// it.
async fn leave_out_dead(
    repository: &Repository,
    failed: &mut Vec<(PackClass, PackRef, Error)>,
) -> Result<(), Error> {
    if failed.is_empty() {
        return Ok(());
    }
    match read_plans(repository).await {
        Ok(plans) => {
            let dead = PackSet::from_keys(plans.dead());
            failed.retain(|(class, pack, _)| !dead.contains(*class, &pack.name));
            Ok(())
        }
        Err(error @ Error::Storage(_)) => Err(error),
        Err(_) => Ok(()), // that is a finding of its own
    }
}

fn remember(proofs: &mut Proofs, pack: ContentName, result: &Result<Proof, Error>) {
    match result {
        Ok(proof) if proof.false_segments.is_empty() => proofs.prove(pack),
        Err(Error::Storage(e)) if !e.is_not_found() => {} // nothing was learnt
        Ok(_) | Err(_) => proofs.doubt(pack),
    }
}

fn is_archived(error: &StorageError) -> bool {
    error.kind == StorageErrorKind::Archived
}

/// How many entries each segment, by its number, has for a pack.
type Listed = HashMap<ContentName, BTreeMap<usize, u64>>;

/// Counts the entries for these packs in one pass over the index. A segment that cannot be read through is left to those
/// who look something up in it.
fn entries_listed(index: &IndexSet, packs: BTreeSet<ContentName>) -> Result<Listed, Error> {
    let mut listed = Listed::new();
    for (number, (_, segment)) in index.segments().iter().enumerate() {
        let chosen: Vec<bool> = segment.packs().iter().map(|pack| packs.contains(&pack.name)).collect();
        if !chosen.contains(&true) {
            continue;
        }
        let mut counts = vec![0; chosen.len()];
        for item in segment.iter() {
            let (_, entry) = item?;
            if let Some(count) = counts.get_mut(entry.pack as usize) {
                *count += 1;
            }
        }
        for (pack, count) in segment.packs().iter().zip(counts).filter(|(pack, _)| packs.contains(&pack.name))
        {
            *listed.entry(pack.name).or_default().entry(number).or_default() += count;
        }
    }
    Ok(listed)
}

/// What reading a sound pack showed.
struct Proof {
    chunks: u64,
    /// Names of segments that place chunks in the pack that it does not hold, or not there.
    false_segments: Vec<String>,
}

/// Proves one pack: its hash, its directory, every chunk's id, and that the index places each chunk where it is and
/// nothing else there. Of what is decrypted, one frame is in memory at a time.
fn prove_pack(
    repository: &Repository,
    index: &IndexSet,
    stored: Bytes,
    (class, pack): (PackClass, &PackRef),
    listed: &Listed,
    memory: &mut FrameMemory,
) -> Result<Proof, Error> {
    if Digest::of(&stored) != pack.name.digest() {
        return Err(Error::Invalid("its bytes do not have the hash in its name".into()));
    }
    let key = repository.id_key(pack.domain)?;
    let kind = match class {
        PackClass::Data => ChunkKind::Content,
        PackClass::Meta => ChunkKind::Node,
    };
    let mut frames = FrameReader::new(repository, class, pack, stored)?;
    let (mut at, mut chunks) = (0u32, 0);
    let mut unproved = listed.get(&pack.name).cloned().unwrap_or_default();
    for frame in &frames.directory()?.frames {
        let range = at..at.saturating_add(frame.stored);
        frames.read(&range, &mut memory.stored)?;
        let plain = memory.decoder.decode(&memory.stored, Some(frame.plain as usize))?;
        let mut offset = 0;
        for (id, length) in &frame.chunks {
            chunk_from_frame(plain, offset, *length, id, kind, key)?;
            let mut placed = false;
            index.visit(id, |location| {
                let entry = location.entry;
                let is_here =
                    location.pack.name == pack.name && entry.frame_offset == at && entry.offset == offset;
                if is_here && entry.frame_length == frame.stored && entry.length == *length {
                    placed = true;
                    unproved.entry(location.segment).and_modify(|count| *count = count.saturating_sub(1));
                }
            })?;
            if !placed {
                return Err(Error::Invalid(format!("the index does not place chunk {id} where it is")));
            }
            offset += length;
            chunks += 1;
        }
        at = range.end;
    }
    frames.prove_from(u64::from(at))?;
    let segments = index.segments();
    let with_rest = unproved.into_iter().filter(|(_, count)| *count > 0);
    let false_segments = with_rest.filter_map(|(n, _)| Some(segments.get(n)?.0.to_string())).collect();
    Ok(Proof { chunks, false_segments })
}
