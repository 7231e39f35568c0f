//! What the index claims of one chunk. Any writer of the group can claim a million places for it, and each place that is tried
//! costs a request; so of many in one pack the pack says itself which is true, and of many packs a listing says which there
//! are.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use keepwell_catalog::names::{self, ObjectName};
use keepwell_catalog::{ContentName, IndexSet, Location, PackRef};
use keepwell_crypto::{ChunkId, ChunkKind};

use super::frames::{FrameReader, fetch_stored};
use crate::Error;
use crate::pack::{chunk_from_frame, decode_frame};
use crate::repository::Repository;
use crate::transfer::is_of;

/// So many places in one pack are tried. A true index claims one.
pub(super) const TRIED_MAX: usize = 4;
// Of very many the index gives a few: enough to see that there are more than are tried.
const _: () = assert!(TRIED_MAX < IndexSet::PLACES_IN_A_PACK_MAX);

/// So many packs are asked for without looking whether they are there. A true index names one, or as many more as there were
/// hosts that stored the chunk at the same time, and repacks that are not over: mostly two or three.
const PACKS_MAX: usize = 16;

/// Where places in very many packs are claimed, leaves those in packs that the store lists. Gives the names of the others,
/// which never come back.
pub(super) async fn drop_absent(
    repository: &Repository,
    kind: ChunkKind,
    locations: &mut Vec<Location>,
) -> Result<HashSet<ContentName>, Error> {
    let mut absent: HashSet<ContentName> = locations.iter().map(|location| location.pack.name).collect();
    if absent.len() <= PACKS_MAX {
        return Ok(HashSet::new());
    }
    for info in repository.list(&format!("{}/", super::class_of(kind).prefix())).await? {
        if let Ok(ObjectName::Pack(_, name)) = info.key.as_str().parse() {
            absent.remove(&name);
        }
    }
    locations.retain(|location| !absent.contains(&location.pack.name));
    Ok(absent)
}

/// Places in packs for which few are claimed, in their order, and those in each of the other packs.
pub(super) fn by_pack(locations: Vec<Location>) -> (Vec<Location>, Vec<Vec<Location>>) {
    let mut counts: HashMap<ContentName, usize> = HashMap::new();
    for location in &locations {
        *counts.entry(location.pack.name).or_default() += 1;
    }
    let is_few =
        |location: &Location| counts.get(&location.pack.name).is_none_or(|count| *count <= TRIED_MAX);
    let (few, many): (Vec<Location>, Vec<Location>) = locations.into_iter().partition(is_few);
    let mut packs: BTreeMap<ContentName, Vec<Location>> = BTreeMap::new();
    for location in many {
        packs.entry(location.pack.name).or_default().push(location);
    }
    (few, packs.into_values().collect())
}

/// Reads a chunk from where the directory of a pack places it, whatever the index claims. Fetches the whole pack.
pub(super) async fn read_by_directory(
    repository: &Repository,
    kind: ChunkKind,
    id: &ChunkId,
    pack: &ContentName,
    claims: &[Location],
) -> Result<Vec<u8>, Error> {
    let class = super::class_of(kind);
    let key = names::pack_key(class, pack);
    let size = repository.store().head(&key).await?.size;
    let said: BTreeSet<PackRef> = claims.iter().map(|l| l.pack).filter(|said| said.size == size).collect();
    let mut failed = Error::damaged(&key, "nothing that the index says of it is so");
    let Some(first) = said.first() else { return Err(failed) };
    let stored = fetch_stored(repository, class, first).await?;
    for pack in said.iter().filter(|said| is_of(said, &stored)) {
        let frames = FrameReader::new(repository, class, pack, stored.clone());
        match frames.and_then(|frames| read_listed(repository, kind, id, pack, frames)) {
            Ok(chunk) => return Ok(chunk),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn read_listed(
    repository: &Repository,
    kind: ChunkKind,
    id: &ChunkId,
    pack: &PackRef,
    mut frames: FrameReader,
) -> Result<Vec<u8>, Error> {
    let listed = frames.directory()?.entries(0);
    let Some(entry) = listed.iter().find(|entry| entry.id == *id) else {
        return Err(Error::damaged(pack.name, "it does not hold what the index places there"));
    };
    let mut stored = Vec::new();
    let range = entry.frame_offset..entry.frame_offset.saturating_add(entry.frame_length);
    frames.read(&range, &mut stored)?;
    let plain = decode_frame(&stored, None)?;
    let key = repository.id_key(pack.domain)?;
    Ok(chunk_from_frame(&plain, entry.offset, entry.length, id, kind, key)?.to_vec())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;
    use bytes::Bytes;
    use keepwell_catalog::{IndexEntry, PackClass, SegmentBuilder};
    use keepwell_crypto::Digest;
    use keepwell_storage::{Key, Memory, ObjectStore, Operation, Recorded};

    use crate::read::read_chunk;
    use crate::testing::{Hook, Hooked, Thing, TreeModel, World, data_pack, noise, say};

    use super::*;

    /// A segment that places a chunk in each of these packs.
    fn segment(
        hostile: &Repository,
        one: IndexEntry,
        packs: impl IntoIterator<Item = PackRef>,
    ) -> (Key, Bytes) {
        let mut builder = SegmentBuilder::new(hostile.group(), PackClass::Data);
        for pack in packs {
            let number = builder.add_pack(pack);
            builder.add(IndexEntry { pack: number, ..one });
        }
        let (_, sealed) = hostile.seal_segment(builder, Vec::new()).unwrap();
        let (_, key) = hostile.index_name(&sealed, [0; 4]);
        (key, sealed)
    }

    /// Claims a chunk for many packs that are nowhere.
    async fn claim_nowhere(hostile: &Repository, one: IndexEntry, pack: PackRef) {
        let name = |n: u32| ContentName::new(&Digest::of(&n.to_le_bytes()), [0; 4]);
        let packs = (0..500).map(|n| PackRef { name: name(n), ..pack });
        let (key, sealed) = segment(hostile, one, packs);
        hostile.put_new(&key, sealed).await.unwrap();
    }

    /// What a prune stores, and then removes.
    type Move = (Vec<(Key, Bytes)>, Key);

    /// Moves a pack each time before packs are listed; the next move is the last of these.
    #[derive(Debug)]
    struct Moves(Mutex<Vec<Move>>);

    #[async_trait]
    impl Hook for Moves {
        async fn before(&self, inner: &Memory, operation: Operation, subject: &str) {
            if operation != Operation::List || subject != "data/" {
                return;
            }
            let next = self.0.lock().unwrap().pop();
            let Some((stored, removed)) = next else { return };
            for (key, body) in stored {
                inner.put_new(&key, body).await.unwrap();
            }
            inner.delete(&removed).await.unwrap();
        }
    }

    /// What is asked of the store to read a chunk of which somebody hostile claims something.
    async fn asked_despite(claim: impl AsyncFnOnce(&Repository, PackRef, IndexEntry)) -> Recorded {
        let tree = TreeModel::default().with("a", Thing::file(noise(1, 5_000)));
        let (world, hostile, _) = World::attacked(&tree).await;
        let (pack, entries) = data_pack(&world.repository);
        let one = entries[0];
        claim(&hostile, pack, one).await;

        let repository = world.open(&world.key).await;
        repository.refresh_index().await.unwrap();
        world.store.reset();
        let chunk = read_chunk(&repository, ChunkKind::Content, &one.id).await.unwrap();
        assert_eq!(chunk.len(), one.length as usize);
        world.store.reset()
    }

    /// Requests for packs, and parts of packs.
    fn fetches(asked: &Recorded) -> u64 {
        [Operation::Get, Operation::GetRange].map(|of| asked.under(of, "data").calls).iter().sum()
    }

    #[tokio::test]
    async fn many_false_places_in_a_pack_cost_one_look_into_it() {
        let asked = asked_despite(async |hostile: &Repository, pack, one: IndexEntry| {
            let place = |n: u32| IndexEntry { frame_offset: one.frame_offset + n, ..one };
            let claims: Vec<IndexEntry> = (1..=200).map(place).collect();
            say(hostile, PackClass::Data, pack, &claims, true).await;
        });
        let asked = asked.await;
        assert!(fetches(&asked) <= 2, "{asked}");
    }

    #[tokio::test]
    async fn packs_that_are_only_claimed_cost_one_listing() {
        let asked = asked_despite(async |hostile: &Repository, pack, one| {
            claim_nowhere(hostile, one, pack).await;
        });
        let asked = asked.await;
        assert!(fetches(&asked) <= 2, "{asked}");
    }

    /// So do the inputs of a merge that is not over, and what they were merged into.
    #[tokio::test]
    async fn a_place_that_many_segments_list_is_one() {
        let asked = asked_despite(async |hostile: &Repository, pack, one| {
            for _ in 0..=TRIED_MAX {
                say(hostile, PackClass::Data, pack, &[one], false).await;
            }
        });
        let asked = asked.await;
        assert_eq!(asked.under(Operation::Head, "data").calls, 0, "the whole pack is looked into: {asked}");
    }

    #[tokio::test]
    async fn a_pack_that_moves_whenever_packs_are_listed_is_not_lost() {
        let tree = TreeModel::default().with("a", Thing::file(noise(1, 5_000)));
        let (world, hostile, _) = World::attacked(&tree).await;
        let (pack, entries) = data_pack(&world.repository);
        let one = entries[0];
        claim_nowhere(&hostile, one, pack).await;
        let key_of = |pack: PackRef| names::pack_key(PackClass::Data, &pack.name);
        let stored = world.store.get(&key_of(pack)).await.unwrap();
        let copy = |n: u8| PackRef { name: ContentName::new(&pack.name.digest(), [n; 4]), ..pack };
        let moved = |from: PackRef, to: PackRef| {
            (vec![(key_of(to), stored.clone()), segment(&hostile, one, [to])], key_of(from))
        };
        let moves = Moves(Mutex::new(vec![moved(copy(1), copy(2)), moved(pack, copy(1))]));
        let store = Arc::new(Hooked::new(world.store.inner().clone(), moves));

        let repository = Repository::builder(store).open(world.key.clone()).await.unwrap();
        repository.refresh_index().await.unwrap();
        let chunk = read_chunk(&repository, ChunkKind::Content, &one.id).await.unwrap();
        assert_eq!(chunk.len(), one.length as usize);
    }
}
