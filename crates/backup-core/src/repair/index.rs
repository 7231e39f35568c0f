//! Listing packs that no sound index segment lists, from their own directories.

use std::collections::BTreeSet;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::sync::Arc;

use keepwell_catalog::names::{self, ObjectName};
use keepwell_catalog::{ContentName, IndexEntry, PackClass, PackRef, PackSet, Segment, SegmentBuilder};
use keepwell_crypto::{ChunkKind, Digest, Identity, OpenReader};
use keepwell_storage::Key;

use crate::Error;
use crate::check::CheckReport;
use crate::pack::{PackDirectory, chunk_from_frame, decode_frame};
use crate::prune::by_place;
use crate::read::fetch_whole;
use crate::repository::{Repository, read_plans};
use crate::write::{Ending, SEGMENT_ENTRIES_MAX, Session};

/// Plaintext that age encrypts as one: what one damaged byte spoils.
const BLOCK_BYTES: usize = keepwell_crypto::BLOCK_PLAIN_BYTES as usize;

/// What was listed again.
#[derive(Debug, Default)]
pub(super) struct Listed {
    /// The new segments, with their sizes.
    pub created: Vec<(String, u64)>,
    /// How many packs they list.
    pub packs: u64,
    /// Keys of those among them that are damaged: of these what they still hold is listed.
    pub damaged: Vec<String>,
    /// Whether a pack that no sound segment lists does not give all that it held.
    pub has_losses: bool,
}

/// Writes new segments for packs that no sound segment lists, and removes damaged segments and those with false entries.
pub(super) async fn list_again(repository: &Repository, before: &CheckReport) -> Result<Listed, Error> {
    let is_segment = |object: &String| matches!(object.parse(), Ok(ObjectName::Index(..)));
    let damaged: Vec<String> = before.findings.iter().map(|f| f.object.clone()).filter(is_segment).collect();
    let lost_chunks = before.findings.iter().any(|f| f.object.starts_with("chunk ") || f.object == "tree");
    if damaged.is_empty() && !lost_chunks {
        return Ok(Listed::default());
    }
    let unproved = PackSet::from_keys(before.findings.iter().map(|finding| finding.object.as_str()));
    let session = Session::claim(repository).await?;
    let mut listed = match list_unlisted(repository, &damaged, &unproved, SEGMENT_ENTRIES_MAX).await {
        Ok(listed) => listed,
        Err(error) => return Err(session.fail(error).await),
    };
    session.end(Ending::index_only(std::mem::take(&mut listed.created))).await?;
    if !damaged.is_empty() {
        // Also those that are missing: the plan tells a scrub why.
        crate::prune::delete_segments(repository, &damaged).await?;
    }
    repository.refresh_index().await?;
    Ok(listed)
}

/// The listing is made after the plans are read, as a resumed writer would do (docs/pruning.md). A pack that is doomed and
/// not dead is listed too: what lies in it can only be released by a verdict that finds it in the index.
///
/// So is a sound pack among those of which a check has found that something is wrong (`unproved`): a segment may name it, and
/// leave out what it holds.
///
/// A segment is stored as soon as it has `entries_max` entries, so that neither memory nor objects grow with the repository.
pub(super) async fn list_unlisted(
    repository: &Repository,
    damaged: &[String],
    unproved: &PackSet,
    entries_max: usize,
) -> Result<Listed, Error> {
    let dead = PackSet::from_keys(read_plans(repository).await?.dead());
    repository.refresh_index().await?;
    // What a damaged segment says goes with it, also where it can be read; but for what a pack bears out.
    let is_sound = |name: &str| !damaged.contains(&format!("index/{}/{name}", repository.group()));
    let (sound, hints): (Vec<_>, Vec<_>) =
        repository.index().segments().into_iter().partition(|(name, _)| is_sound(name));
    let indexed: BTreeSet<(PackClass, ContentName)> =
        sound.iter().flat_map(|(_, s)| s.packs().iter().map(move |p| (s.class(), p.name))).collect();
    let hints: Vec<Arc<Segment>> = hints.into_iter().map(|(_, segment)| segment).collect();
    let mut listed = Listed::default();
    for class in [PackClass::Meta, PackClass::Data] {
        let empty = || SegmentBuilder::new(repository.group(), class);
        let mut builder = empty();
        for info in repository.list(&format!("{}/", class.prefix())).await? {
            let Ok(ObjectName::Pack(_, name)) = info.key.as_str().parse() else { continue };
            let is_listed = indexed.contains(&(class, name));
            if dead.contains(class, &name) || (is_listed && !unproved.contains(class, &name)) {
                continue;
            }
            match read_pack(repository, class, (&name, info.size), &hints).await {
                Ok(found) if is_listed && !found.is_sound => {}
                Ok(found) => {
                    listed.take(&info.key, &found);
                    let number = builder.add_pack(found.pack);
                    found.entries.iter().for_each(|e| builder.add(IndexEntry { pack: number, ..*e }));
                    if builder.len() >= entries_max {
                        let full = std::mem::replace(&mut builder, empty());
                        listed.created.push(put_segment(repository, full).await?);
                    }
                }
                Err(error @ Error::Storage(_)) => return Err(error),
                Err(_) if is_listed => {} // the check has named it
                // Not a pack of ours, or damaged all over: it stays unlisted, and a prune removes it.
                Err(error) => {
                    listed.has_losses = true;
                    repository.monitor().problem(info.key.as_str(), &crate::error::one_line(&error))
                }
            }
        }
        if !builder.is_empty() {
            listed.created.push(put_segment(repository, builder).await?);
        }
    }
    Ok(listed)
}

impl Listed {
    fn take(&mut self, key: &Key, found: &Found) {
        self.packs += 1;
        if !found.is_sound {
            self.damaged.push(key.to_string());
            self.has_losses = true;
        }
    }
}

async fn put_segment(repository: &Repository, builder: SegmentBuilder) -> Result<(String, u64), Error> {
    let (_, sealed) = repository.seal_segment(builder, Vec::new())?;
    let (_, key) = repository.index_name(&sealed, repository.random_suffix());
    let size = sealed.len() as u64;
    repository.put_new(&key, sealed).await?;
    Ok((key.to_string(), size))
}

/// What of a pack can be proved.
struct Found {
    pack: PackRef,
    entries: Vec<IndexEntry>,
    /// Its bytes have the hash in its name.
    is_sound: bool,
}

async fn read_pack(
    repository: &Repository,
    class: PackClass,
    (name, size): (&ContentName, u64),
    hints: &[Arc<Segment>],
) -> Result<Found, Error> {
    let key = names::pack_key(class, name);
    let stored = fetch_whole(repository, &key, size).await?;
    let is_sound = Digest::of(&stored) == name.digest();
    let header_len = keepwell_crypto::header_len(&stored)?;
    let header_len = u32::try_from(header_len).unwrap_or(u32::MAX);
    for domain in repository.access().domains() {
        let pack = PackRef { name: *name, size, header_len, domain: domain.id };
        let opened = match is_sound {
            true => keepwell_crypto::open(&domain.identities, &stored, size).ok(),
            false => what_is_left(&domain.identities, &stored),
        };
        let Some(plain) = opened else { continue };
        let entries = proved(repository, class, &pack, &plain, hints)?;
        return Ok(Found { pack, entries, is_sound });
    }
    Err(Error::damaged(&key, "no key at hand opens it"))
}

/// The plaintext of a damaged pack, with zeros in the place of each block that is damaged. `None` if none of the identities
/// opens it.
fn what_is_left(identities: &[Identity], stored: &[u8]) -> Option<Vec<u8>> {
    let open = || OpenReader::new(identities, Cursor::new(stored)).ok();
    let mut reader = open()?;
    let mut plain = vec![0; usize::try_from(reader.plain_len()).ok()?];
    for (number, block) in plain.chunks_mut(BLOCK_BYTES).enumerate() {
        let at = SeekFrom::Start((number * BLOCK_BYTES) as u64);
        if reader.seek(at).and_then(|_| reader.read_exact(block)).is_err() {
            block.fill(0);
            reader = open()?; // after damage it gives nothing more
        }
    }
    Some(plain)
}

/// Of what a pack's directory and segments say of it, the entries that it bears out, one by one: the directory is signed by
/// nobody, and damage spoils the frames that it lies in and no others. Fails if there are none.
fn proved(
    repository: &Repository,
    class: PackClass,
    pack: &PackRef,
    plain: &[u8],
    hints: &[Arc<Segment>],
) -> Result<Vec<IndexEntry>, Error> {
    let directory = PackDirectory::of_plaintext(plain);
    let mut entries = directory.map(|directory| directory.entries(0)).unwrap_or_default();
    entries.extend(hints.iter().filter(|s| s.class() == class).flat_map(|s| said_of(s, &pack.name)));
    by_place(&mut entries);
    let key = repository.id_key(pack.domain)?;
    let kind = match class {
        PackClass::Data => ChunkKind::Content,
        PackClass::Meta => ChunkKind::Node,
    };
    let mut borne_out: Vec<IndexEntry> = Vec::new();
    let place = |e: &IndexEntry| (e.frame_offset as usize, e.frame_length as usize);
    for frame in entries.chunk_by(|a, b| place(a) == place(b)) {
        let (from, length) = place(&frame[0]);
        let stored = plain.get(from..from.saturating_add(length)).unwrap_or_default();
        let Ok(decoded) = decode_frame(stored, None) else { continue };
        let holds =
            |e: &&IndexEntry| chunk_from_frame(&decoded, e.offset, e.length, &e.id, kind, key).is_ok();
        borne_out.extend(frame.iter().filter(holds).copied());
    }
    match borne_out.is_empty() {
        true => Err(Error::damaged(names::pack_key(class, &pack.name), "nothing in it can be proved")),
        false => Ok(borne_out),
    }
}

/// Entries of a segment for a pack, as far as it can be read.
fn said_of(segment: &Segment, name: &ContentName) -> Vec<IndexEntry> {
    let is_of = |e: &IndexEntry| segment.packs().get(e.pack as usize).is_some_and(|pack| pack.name == *name);
    let read = segment.iter().map_while(|item| item.ok().map(|(_, entry)| entry));
    read.filter(is_of).map(|entry| IndexEntry { pack: 0, ..entry }).collect()
}
