//! A member of the group that says of a chunk that it lies where it does not.

use keepwell_catalog::{IndexEntry, PackClass};
use keepwell_crypto::ChunkKind;

use super::{CheckOptions, ReadData};
use crate::repair::RepairOptions;
use crate::testing::{
    Thing, TreeModel, World, assert_same, back_up, block_on, data_pack, noise, restored, say, snapshot_of,
};

#[test]
fn a_false_entry_is_found_and_poisons_nobody_for_ever() {
    block_on(async {
        let world = World::new().await;
        let hostile = world.enrol_writer().await;
        back_up(&hostile, &TreeModel::default().with("w", Thing::file(noise(1, 5_000)))).await;
        // It signs that a chunk of others, which it can name, lies in its own pack.
        let secret = noise(7, 40);
        let id = hostile.domain().id_key.chunk_id(ChunkKind::Content, &secret);
        let (pack, entries) = data_pack(&hostile);
        let lie = IndexEntry { id, length: 40, ..entries[0] };
        let key = say(&hostile, PackClass::Data, pack, &[lie], false).await;

        let tree = TreeModel::default().with("h", Thing::file(secret));
        let victim = world.open(&world.key).await;
        let lacking = back_up(&victim, &tree).await;
        let everything = CheckOptions { read: ReadData::Everything };
        let found = victim.check(everything).await.unwrap();
        assert!(found.findings.iter().any(|f| f.object == key.as_str()), "{:?}", found.findings);
        assert_eq!(found.damaged_snapshots, [lacking.snapshot.to_string()].into());

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
