//! A member of the group that says of a chunk that it lies where it does not.

use keepwell_catalog::{IndexEntry, PackClass, SegmentBuilder, names};
use keepwell_crypto::ChunkKind;
use keepwell_storage::ObjectStore;

use super::{CheckOptions, ReadData};
use crate::repair::RepairOptions;
use crate::testing::{Thing, TreeModel, World, assert_same, back_up, block_on, noise, restored, snapshot_of};

#[test]
fn a_false_entry_is_found_and_poisons_nobody_for_ever() {
    block_on(async {
        let world = World::new().await;
        let hostile = world.enrol_writer().await;
        back_up(&hostile, &TreeModel::default().with("w", Thing::file(noise(1, 5_000)))).await;
        // It signs that a chunk of others, which it can name, lies in its own pack.
        let secret = noise(7, 40);
        let id = hostile.domain().id_key.chunk_id(ChunkKind::Content, &secret);
        let segments = hostile.index().segments();
        let (_, data) = segments.iter().find(|(_, s)| s.class() == PackClass::Data).unwrap();
        let (_, entry) = data.iter().next().unwrap().unwrap();
        let mut builder = SegmentBuilder::new(hostile.group(), PackClass::Data);
        let pack = builder.add_pack(data.packs()[entry.pack as usize]);
        builder.add(IndexEntry { id, pack, length: 40, ..entry });
        let (_, sealed) = hostile.seal_segment(builder, Vec::new()).unwrap();
        let name = crate::write::name_of(&sealed, [0; 4]);
        let key = names::index_key(hostile.group(), &name);
        world.store.put_new(&key, sealed).await.unwrap();

        let tree = TreeModel::default().with("h", Thing::file(secret));
        let victim = world.open(&world.key).await;
        back_up(&victim, &tree).await;
        let everything = CheckOptions { read: ReadData::Everything };
        let found = victim.check(everything).await.unwrap();
        assert!(found.findings.iter().any(|f| f.object == key.as_str()), "{:?}", found.findings);

        let options = RepairOptions { read: ReadData::Everything, ..RepairOptions::default() };
        victim.repair(None, options).await.unwrap();
        let victim = world.open(&world.key).await;
        let report = back_up(&victim, &tree).await;
        let found = victim.check(everything).await.unwrap();
        assert!(found.is_sound(), "{:?}", found.findings);
        let snapshots = victim.snapshots().await.unwrap();
        assert_eq!(snapshots.len(), 3);
        for snapshot in snapshots.iter().filter(|s| s.commit.writer != hostile.access().member().unwrap()) {
            assert_same(&restored(&victim, snapshot).await, &tree.as_restored());
        }
        assert!(snapshot_of(&victim, &report).await.commit.complete);
    });
}
