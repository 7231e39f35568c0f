//! What a prune makes of what a hostile member of the group commits.

use std::time::Duration;

use keepwell_catalog::{
    CommitKind, ContentName, Entry, EntryKind, Extent, IndexEntry, Manifest, MapBuilder, PackClass, PackRef,
    SegmentBuilder, names, push_entry, seal_record, snapshot_id,
};
use keepwell_crypto::{ChunkId, Digest, DomainId};
use keepwell_storage::ObjectStore;

use super::PruneOptions;
use crate::Error;
use crate::backup::{StoredNodes, begin_uploads};
use crate::repository::{Repository, Snapshot};
use crate::testing::{Thing, TreeModel, World, back_up, block_on, data_pack, key, noise, say, snapshot_of};
use crate::write::{Ending, PackSettings, Packer, Session, name_of};

fn thorough() -> PruneOptions {
    PruneOptions { max_unused: 0.0, fence_after: Duration::ZERO, ..PruneOptions::default() }
}

fn tree(seed: u64) -> TreeModel {
    TreeModel::default().with("d/a", Thing::file(noise(seed, 5_000)))
}

/// All that the index lists in packs of a class, with the pack.
fn listed(repository: &Repository, class: PackClass) -> Vec<(PackRef, IndexEntry)> {
    let mut found = Vec::new();
    for (_, segment) in repository.index().segments().iter().filter(|(_, s)| s.class() == class) {
        let entries = segment.iter().map(|item| item.unwrap().1);
        found.extend(entries.map(|entry| (segment.packs()[entry.pack as usize], entry)));
    }
    found
}

/// Signs that these chunks lie where another one of content does.
async fn list_as_content(hostile: &Repository, (pack, place): (PackRef, IndexEntry), ids: &[ChunkId]) {
    let mut builder = SegmentBuilder::new(hostile.group(), PackClass::Data);
    let pack = builder.add_pack(pack);
    ids.iter().for_each(|id| builder.add(IndexEntry { id: *id, pack, ..place }));
    let (_, sealed) = hostile.seal_segment(builder, Vec::new()).unwrap();
    let key = names::index_key(hostile.group(), &name_of(&sealed, [0; 4]));
    hostile.put_new(&key, sealed).await.unwrap();
}

/// Commits a snapshot of one file whose content is, as it says, these chunks. Its root comes before that of `like`, so
/// that a prune meets it first.
async fn commit_naming(hostile: &Repository, like: &Snapshot, ids: Vec<ChunkId>) {
    let session = Session::claim(hostile).await.unwrap();
    let uploads = begin_uploads(hostile).await.unwrap();
    let (there, packing, theirs) = (hostile.clone(), uploads.clone(), like.manifest().unwrap().root);
    let built = tokio::task::spawn_blocking(move || {
        let keys = there.domain();
        let settings = PackSettings::for_moved(&there, PackClass::Meta, keys.id)?;
        let packer = Packer::new(&packing, settings)?;
        let mut nodes = StoredNodes::new(packer, packing.known(), &keys.id_key);
        let content: Vec<Extent> =
            ids.iter().map(|id| Extent::Chunk { id: *id, offset: 0, length: 1 }).collect();
        let file = Entry { size: content.len() as u64, content, ..Entry::new(EntryKind::File) };
        let mut name = 0_u32;
        loop {
            name += 1;
            let mut builder = MapBuilder::new(keys.id_key.boundary());
            push_entry(&mut builder, &key(&name.to_string()), &file, &mut nodes)?;
            let root = builder.finish(&mut nodes)?;
            if root.id < theirs {
                nodes.packer.finish()?;
                return Ok::<_, Error>(root);
            }
        }
    });
    let root = built.await.unwrap().unwrap();
    uploads.flush().await.unwrap();
    let (writer, seq) = (session.writer(), session.n());
    let manifest =
        Manifest { writer, seq, root: root.id, entries: root.entries, ..like.manifest().unwrap().clone() };
    let cbor = manifest.encode();
    let sealed = seal_record(std::slice::from_ref(&hostile.domain().recipient), &cbor).unwrap();
    let (name, _) = hostile.put_content(names::manifest_key, sealed).await.unwrap();
    let (kind, manifest) = (CommitKind::Snapshot, Some((name, snapshot_id(&cbor))));
    session.end(Ending { kind, manifest, ..Ending::index_only(uploads.take_created()) }).await.unwrap();
}

/// Whoever takes a node for visited because a tree names it as content misses all that lies below it.
#[test]
fn nodes_of_others_that_a_tree_calls_content_are_gone_through_all_the_same() {
    for is_listed in [false, true] {
        block_on(async {
            let world = World::new().await;
            let hostile = world.enrol_writer().await;
            back_up(&hostile, &tree(1)).await;
            let own = listed(&hostile, PackClass::Data)[0];
            let victim = world.open(&world.key).await;
            let report = back_up(&victim, &tree(2)).await;
            let theirs = snapshot_of(&victim, &report).await;
            hostile.refresh_index().await.unwrap();
            let nodes: Vec<ChunkId> =
                listed(&hostile, PackClass::Meta).into_iter().map(|(_, entry)| entry.id).collect();
            assert!(nodes.contains(&theirs.manifest().unwrap().root), "a writer sees ids, and no more");
            if is_listed {
                list_as_content(&hostile, own, &nodes).await;
            }
            commit_naming(&hostile, &theirs, nodes).await;

            let pruned = world.open(&world.key).await.prune(thorough()).await;
            match is_listed {
                true => _ = pruned.unwrap(),
                false => assert!(matches!(pruned, Err(Error::ChunkLost { .. })), "{pruned:?}"),
            }
            world.assert_restores(&report, &tree(2)).await;
        });
    }
}

/// Whoever signs that the content of others lies in a pack of its own too, or in one that is nowhere, makes nothing of it
/// go; nor does one pack go for the sake of another that has rotted.
#[test]
fn nothing_goes_because_the_index_says_that_it_lies_elsewhere_too() {
    #[derive(PartialEq)]
    enum Elsewhere {
        InAnotherPack,
        Nowhere,
        Rotten,
    }
    for elsewhere in [Elsewhere::InAnotherPack, Elsewhere::Nowhere, Elsewhere::Rotten] {
        block_on(async {
            let world = World::new().await;
            let hostile = world.enrol_writer().await;
            back_up(&hostile, &tree(1)).await;
            let own = listed(&hostile, PackClass::Data)[0];
            let victim = world.open(&world.key).await;
            let report = back_up(&victim, &tree(2)).await;
            let theirs = listed(&victim, PackClass::Data);
            let theirs: Vec<(PackRef, IndexEntry)> =
                theirs.into_iter().filter(|(pack, _)| pack.name != own.0.name).collect();
            let (pack, ids) = (theirs[0].0, theirs.iter().map(|(_, e)| e.id).collect::<Vec<_>>());
            let twin = PackRef { name: ContentName::new(&pack.name.digest(), [0xab; 4]), ..pack };
            match elsewhere {
                Elsewhere::InAnotherPack => list_as_content(&hostile, own, &ids).await,
                Elsewhere::Nowhere => list_as_content(&hostile, (twin, own.1), &ids).await,
                Elsewhere::Rotten => {
                    let stored =
                        world.store.get(&names::pack_key(PackClass::Data, &pack.name)).await.unwrap();
                    let mut stored = stored.to_vec();
                    let middle = stored.len() / 2;
                    stored[middle] ^= 1;
                    let key = names::pack_key(PackClass::Data, &twin.name);
                    world.store.put_new(&key, stored.into()).await.unwrap();
                    for (_, entry) in &theirs {
                        list_as_content(&hostile, (twin, *entry), &[entry.id]).await;
                    }
                }
            }

            let keeper = world.open(&world.key).await;
            let condemned = names::pack_key(PackClass::Data, &pack.name).to_string();
            keeper.write_plan(vec![condemned.clone()], Vec::new()).await.unwrap();
            assert!(keeper.finish_plans(Duration::ZERO).await.unwrap());
            assert!(world.names("data/").await.contains(&condemned));
            if elsewhere != Elsewhere::Rotten {
                world.open(&world.key).await.prune(thorough()).await.unwrap();
            }
            world.assert_restores(&report, &tree(2)).await;
        });
    }
}

/// Whoever calls a pack of content one of nodes does not make what is said of the one count for the other: released as what it
/// is and condemned as what it is not, it would count as gone, and the index would forget what it holds.
#[test]
fn a_pack_that_is_kept_is_not_dead_under_another_class() {
    block_on(async {
        let (world, hostile, forgotten) = World::attacked(&tree(1)).await;
        let (pack, entries) = data_pack(&world.repository);
        say(&hostile, PackClass::Meta, pack, &entries, true).await;
        let forgotten = snapshot_of(&world.repository, &forgotten).await;
        world.repository.forget(&[(&forgotten, "test".into())]).await.unwrap();

        let keeper = world.open(&world.key).await;
        let plan = keeper.plan_prune(thorough()).await.unwrap();
        let report = back_up(&world.open(&world.key).await, &tree(1)).await; // needs the packs again
        let pruned = keeper.carry_out(plan).await.unwrap();
        assert!(pruned.kept > 0, "{pruned:?}");
        world.open(&world.key).await.prune(thorough()).await.unwrap();
        world.assert_restores(&report, &tree(1)).await;
    });
}

/// Stored bytes of all packs.
async fn stored(world: &World) -> u64 {
    let mut sum = 0;
    for prefix in ["data/", "meta/"] {
        let listed = keepwell_storage::list_all(&*world.store, prefix).await.unwrap();
        sum += listed.iter().map(|info| info.size).sum::<u64>();
    }
    sum
}

/// Whatever one segment says of a pack, what another says truly of it is found out from the pack: the prune goes on, moves
/// what is to be moved, and its figures are those of the store.
#[test]
fn a_false_description_of_a_pack_neither_stops_a_prune_nor_misleads_it() {
    type Lie = fn(PackRef) -> PackRef;
    let lies: [Lie; 5] = [
        |pack| PackRef { size: u64::MAX, ..pack },
        |pack| PackRef { size: pack.size - 1, ..pack },
        |pack| PackRef { header_len: 9, ..pack },
        |pack| PackRef { domain: DomainId::from_bytes([9; 4]), ..pack },
        |pack| PackRef { size: 0, header_len: u32::MAX, domain: DomainId::from_bytes([9; 4]), ..pack },
    ];
    for lie in lies {
        block_on(async {
            let both = tree(1).with("d/b", Thing::file(noise(2, 5_000)));
            let (world, hostile, first) = World::attacked(&both).await;
            let (pack, entries) = data_pack(&world.repository);
            let first = snapshot_of(&world.repository, &first).await;
            let report = back_up(&world.repository, &tree(1)).await;
            world.repository.forget(&[(&first, "test".into())]).await.unwrap();
            say(&hostile, PackClass::Data, lie(pack), &entries, true).await;

            let before = stored(&world).await;
            let pruned = world.open(&world.key).await.prune(thorough()).await.unwrap();
            assert_eq!(pruned.pack_bytes, before);
            assert!(pruned.unused_bytes < before && pruned.packs_repacked > 0, "{pruned:?}");
            let key = names::pack_key(PackClass::Data, &pack.name).to_string();
            assert!(!world.names("data/").await.contains(&key), "its content has moved");
            world.assert_restores(&report, &tree(1)).await;
        });
    }
}

#[test]
fn packs_that_are_only_claimed_are_not_counted() {
    block_on(async {
        let (world, hostile, _) = World::attacked(&tree(1)).await;
        let (pack, entries) = data_pack(&world.repository);
        let claimed = PackRef { name: ContentName::new(&Digest::of(b"nowhere"), [1; 4]), ..pack };
        let of_nobody = IndexEntry { id: ChunkId::from_bytes([9; 32]), ..entries[0] };
        say(&hostile, PackClass::Data, claimed, &[of_nobody], false).await;
        let there = world.names("data/").await.len() + world.names("meta/").await.len();
        let pruned = world.open(&world.key).await.prune(thorough()).await.unwrap();
        assert_eq!((pruned.packs, pruned.packs_unused), (there as u64, 0), "{pruned:?}");
        assert_eq!((pruned.objects_deleted, pruned.bytes_freed), (0, 0), "{pruned:?}");
    });
}

/// A merge that is not over lists everything twice, and any writer may list it again, or with false lengths.
#[test]
fn what_is_listed_twice_is_no_waste() {
    for frame_length in [None, Some(0), Some(u32::MAX)] {
        for first in [false, true] {
            block_on(async {
                let (world, hostile, report) = World::attacked(&tree(1)).await;
                let (pack, entries) = data_pack(&world.repository);
                let again = |e: &IndexEntry| {
                    let frame_length = frame_length.unwrap_or(e.frame_length);
                    IndexEntry { frame_length, ..*e }
                };
                let again: Vec<IndexEntry> = entries.iter().map(again).collect();
                say(&hostile, PackClass::Data, pack, &again, first).await;
                let packs = world.names("data/").await;
                let pruned = world.open(&world.key).await.prune(thorough()).await.unwrap();
                assert!(pruned.unused_bytes <= stored(&world).await, "{pruned:?}");
                assert_eq!((pruned.packs_repacked, world.names("data/").await), (0, packs), "{pruned:?}");
                if frame_length.is_none() {
                    assert_eq!(pruned.unused_bytes, 0, "{pruned:?}");
                }
                world.assert_restores(&report, &tree(1)).await;
            });
        }
    }
}
