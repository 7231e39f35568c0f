//! Reading packs and proving every chunk in them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use keepwell_catalog::names::{self, ObjectName};
use keepwell_catalog::{ContentName, IndexSet, PackClass, PackRef};
use keepwell_crypto::{ChunkKind, Digest};
use tokio::runtime::Handle;

use super::structure::Packs;
use super::{CheckReport, ReadData, class_of_key, remembered};
use crate::Error;
use crate::pack::{PackDirectory, chunk_from_frame, decode_frame};
use crate::read::fetch_pack;
use crate::repository::Repository;

pub(super) async fn check(
    repository: &Repository,
    packs: &Packs,
    read: ReadData,
    report: &mut CheckReport,
) -> Result<(), Error> {
    let now = repository.now();
    let mut proved = remembered::load(repository.cache());
    proved.retain(|name, _| packs.contains_key(name));
    let chosen = choose(repository, packs, read, now, &proved);
    if chosen.is_empty() {
        return Ok(());
    }
    let bytes = chosen.iter().map(|(_, p)| p.size).sum();
    repository.monitor().total(chosen.len() as u64, bytes);
    let sound = read_packs(repository, chosen, report).await?;
    for (name, _) in sound {
        proved.insert(name, now);
    }
    remembered::save(repository.cache(), &proved)
}

fn choose(
    repository: &Repository,
    packs: &Packs,
    read: ReadData,
    now: i64,
    proved: &BTreeMap<ContentName, i64>,
) -> Vec<(PackClass, PackRef)> {
    let all = packs.values().copied().filter(|(_, pack)| !repository.is_erased(pack.domain));
    match read {
        ReadData::Nothing => Vec::new(),
        ReadData::Everything => all.collect(),
        ReadData::OlderThan(age) => {
            let limit = now.saturating_sub(i64::try_from(age.as_nanos()).unwrap_or(i64::MAX));
            all.filter(|(_, p)| proved.get(&p.name).is_none_or(|at| *at < limit)).collect()
        }
        ReadData::Share(share) => {
            let draw = || f64::from(u32::from_le_bytes(repository.random_suffix())) / f64::from(u32::MAX);
            all.filter(|_| draw() <= share).collect()
        }
    }
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
    Ok(read_packs(repository, packs, report).await?.into_iter().map(|(_, chunks)| chunks).sum())
}

/// Reads packs with all threads. Gives those that are sound, with their number of chunks; the rest is reported.
async fn read_packs(
    repository: &Repository,
    packs: Vec<(PackClass, PackRef)>,
    report: &mut CheckReport,
) -> Result<Vec<(ContentName, u64)>, Error> {
    let group = repository.group();
    let index = repository.index();
    let (repository, handle) = (repository.clone(), Handle::current());
    let task = tokio::task::spawn_blocking(move || {
        let listed = entries_listed(&index, packs.iter().map(|(_, pack)| pack.name).collect())?;
        let next = AtomicUsize::new(0);
        let results = Mutex::new(Vec::new());
        let run = || {
            while let Some((class, pack)) = packs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let result = prove_pack(&repository, &index, &handle, (*class, pack), &listed);
                repository.monitor().advance(1, pack.size);
                if matches!(&result, Err(Error::Storage(e)) if !e.is_not_found()) {
                    next.store(packs.len(), Ordering::Relaxed);
                }
                results.lock().unwrap_or_else(PoisonError::into_inner).push((*class, *pack, result));
            }
        };
        std::thread::scope(|scope| {
            (0..repository.limits().threads.max(1)).for_each(|_| {
                scope.spawn(run);
            });
        });
        Ok::<_, Error>(results.into_inner().unwrap_or_else(PoisonError::into_inner))
    });
    let mut sound = Vec::new();
    for (class, pack, result) in task.await.map_err(|e| Error::Task(e.to_string()))?? {
        match result {
            Ok(proof) => {
                report.packs_read += 1;
                report.bytes_read += pack.size;
                sound.push((pack.name, proof.chunks));
                for segment in proof.false_segments {
                    let what = format!("it places chunks in pack {} that are not there", pack.name);
                    report.found(format_args!("index/{group}/{segment}"), what);
                }
            }
            Err(Error::Storage(e)) if !e.is_not_found() => return Err(Error::Storage(e)),
            Err(error) => report.found(names::pack_key(class, &pack.name), crate::error::one_line(&error)),
        }
    }
    Ok(sound)
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
/// nothing else there.
fn prove_pack(
    repository: &Repository,
    index: &IndexSet,
    handle: &Handle,
    (class, pack): (PackClass, &PackRef),
    listed: &Listed,
) -> Result<Proof, Error> {
    let fetched = handle.block_on(fetch_pack(repository, class, pack))?;
    if Digest::of(&fetched.stored) != pack.name.digest() {
        return Err(Error::Invalid("its bytes do not have the hash in its name".into()));
    }
    let key = repository.id_key(pack.domain)?;
    let kind = match class {
        PackClass::Data => ChunkKind::Content,
        PackClass::Meta => ChunkKind::Node,
    };
    let directory = PackDirectory::of_plaintext(&fetched.plain)?;
    let (mut at, mut chunks) = (0usize, 0);
    let mut unproved = listed.get(&pack.name).cloned().unwrap_or_default();
    for frame in &directory.frames {
        let stored = fetched.plain.get(at..at + frame.stored as usize).unwrap_or_default();
        let plain = decode_frame(stored, Some(frame.plain as usize))?;
        let mut offset = 0;
        for (id, length) in &frame.chunks {
            chunk_from_frame(&plain, offset, *length, id, kind, key)?;
            let mut placed = false;
            for location in index.find(id)?.into_iter().filter(|l| l.pack.name == pack.name) {
                let entry = location.entry;
                let is_here = entry.frame_offset as usize == at && entry.offset == offset;
                if is_here && entry.frame_length == frame.stored && entry.length == *length {
                    placed = true;
                    unproved.entry(location.segment).and_modify(|count| *count = count.saturating_sub(1));
                }
            }
            if !placed {
                return Err(Error::Invalid(format!("the index does not place chunk {id} where it is")));
            }
            offset += length;
            chunks += 1;
        }
        at += frame.stored as usize;
    }
    let segments = index.segments();
    let with_rest = unproved.into_iter().filter(|(_, count)| *count > 0);
    let false_segments = with_rest.filter_map(|(n, _)| Some(segments.get(n)?.0.to_string())).collect();
    Ok(Proof { chunks, false_segments })
}
