//! Snapshots that are written anew, with other labels or without some paths.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use keepwell_catalog::names::PlanName;
use keepwell_catalog::{EntryKind, MapKey, PackClass, PackRef, Plan, names};
use keepwell_storage::{ObjectStore, Operation};
use proptest::prelude::*;

use super::large_tree;
use crate::Error;
use crate::copy::{Exclude, RewriteOptions};
use crate::repository::SnapshotState;
use crate::testing::{
    MemorySource, Thing, TreeModel, World, assert_same, back_up, block_on, data_pack, key, noise, options,
    restored, say, snapshot_of, tree_model,
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn a_rewriting_without_some_paths_is_the_tree_without_them(model in tree_model(), drop in any::<u8>()) {
        // Drops by a hash of the name, so that directories, first names and links all get their turn.
        let drops = move |key: &MapKey| blake3::hash(key.as_bytes()).as_bytes()[0].wrapping_add(drop) < 90;
        block_on(async {
            let world = World::new().await;
            let report = back_up(&world.repository, &model).await;
            let old = snapshot_of(&world.repository, &report).await;
            let mut rewrite = RewriteOptions::of(&old).unwrap();
            rewrite.exclude = Some(Arc::new(move |key, _| drops(key)));
            let rewritten = world.repository.rewrite(&old, rewrite).await.unwrap();
            let expected = without(&model, drops);
            assert_same(&restored(&world.repository, &rewritten.snapshot).await, &expected.as_restored());

            // The tree is the one that a capture of what is left would give, so nothing else can tell them apart.
            let again = back_up(&world.repository, &expected).await;
            let again = snapshot_of(&world.repository, &again).await;
            let (a, b) = (again.manifest().unwrap(), rewritten.snapshot.manifest().unwrap());
            assert_eq!((a.root, a.entries), (b.root, b.entries));
            let totals = |s: &keepwell_catalog::Statistics| (s.files, s.directories, s.others, s.logical_bytes);
            assert_eq!(totals(&a.statistics), totals(&b.statistics));
        });
    }
}

/// The model without what is dropped and what is below it; the first name that is left carries the file.
fn without(model: &TreeModel, drops: impl Fn(&MapKey) -> bool) -> TreeModel {
    let gone = |key: &MapKey| {
        let mut at = Some(key.clone());
        while let Some(key) = at.filter(|k| *k != MapKey::root()) {
            if drops(&key) {
                return true;
            }
            at = key.parent();
        }
        false
    };
    let mut left = TreeModel::default();
    let mut stand_ins: BTreeMap<MapKey, MapKey> = BTreeMap::new();
    for (key, thing) in model.0.iter().filter(|(key, _)| !gone(key)) {
        let mut thing = thing.clone();
        if let Some(first) = thing.entry.hard_link.clone().filter(|first| gone(first)) {
            match stand_ins.get(&first) {
                Some(carrier) => thing.entry.hard_link = Some(carrier.clone()),
                None => {
                    stand_ins.insert(first.clone(), key.clone());
                    thing = model.0[&first].clone();
                }
            }
        }
        left.0.insert(key.clone(), thing);
    }
    left
}

/// Dooms packs, as a prune that has not deleted them yet.
async fn condemn(world: &World, packs: &[String]) {
    let plan = Plan {
        store: world.repository.store_id(),
        name: PlanName::new(0, [0; 4]),
        time: 0,
        condemned: packs.to_vec(),
        merged: vec![],
    };
    let signed = world.repository.sign(Plan::KIND, plan.encode()).unwrap();
    world.store.put_new(&names::plan_key(PlanName::new(0, [0; 4])), Bytes::from(signed)).await.unwrap();
}

#[tokio::test]
async fn a_rewriting_stores_no_content_and_reads_none() {
    let world = World::new().await;
    let report = back_up(&world.repository, &large_tree()).await;
    let old = snapshot_of(&world.repository, &report).await;
    let data = world.names("data/").await;
    let mut rewrite = RewriteOptions::of(&old).unwrap();
    rewrite.exclude = Some(Arc::new(|at, kind| kind == EntryKind::Directory && *at == key("secret")));
    world.store.reset();
    let rewritten = world.repository.rewrite(&old, rewrite).await.unwrap();
    let calls = world.store.snapshot();
    assert_eq!(calls.under(Operation::GetRange, "data").calls, 0);
    assert_eq!(world.names("data/").await, data);
    assert!(rewritten.stored_chunks < 5, "{} tree nodes", rewritten.stored_chunks);
    assert!(rewritten.records_removed >= 3, "a directory, a file and its further extents");
    let manifest = rewritten.snapshot.manifest().unwrap();
    assert_eq!(manifest.original, Some(old.id));
    assert_eq!(manifest.capture_start, old.manifest().unwrap().capture_start);
    let ids: Vec<_> = world.repository.snapshots().await.unwrap().iter().map(|s| s.id).collect();
    assert_eq!(ids, [old.id, rewritten.snapshot.id], "the old one stands beside it");
}

#[tokio::test]
async fn new_labels_store_nothing_but_a_manifest_and_leave_the_next_backup_incremental() {
    let world = World::new().await;
    let tree = large_tree();
    let old = snapshot_of(&world.repository, &back_up(&world.repository, &tree).await).await;
    let (data, meta) = (world.names("data/").await, world.names("meta/").await);
    let labels = RewriteOptions {
        tags: vec!["monthly".into()],
        keep_forever: true,
        description: "before the move".into(),
        ..RewriteOptions::of(&old).unwrap()
    };
    let new = world.repository.rewrite(&old, labels).await.unwrap();
    assert_eq!((new.stored_chunks, new.records_removed), (0, 0));
    assert_eq!((world.names("data/").await, world.names("meta/").await), (data, meta));
    let (before, after) = (old.manifest().unwrap(), new.snapshot.manifest().unwrap());
    assert_eq!(before.root, after.root);
    assert_eq!((&after.tags[..], after.keep_forever), (&["monthly".to_owned()][..], true));
    assert_eq!(after.statistics, before.statistics);
    assert_eq!(world.repository.snapshots().await.unwrap().last().unwrap().manifest().unwrap(), after);

    // A host without its cache goes on from the state that the rewritten snapshot took over.
    let reinstalled = world.open(&world.key).await;
    let source = MemorySource::new(tree);
    let opened = Arc::clone(&source.opened);
    let report = reinstalled.backup(Arc::new(source), options("data")).await.unwrap();
    assert_eq!(report.parent, Some(new.snapshot.id));
    assert_eq!(opened.load(Ordering::Relaxed), 0, "nothing is read again");
}

#[tokio::test]
async fn what_a_later_version_put_into_a_manifest_stays_when_it_is_written_anew() {
    let world = World::new().await;
    let mut old = snapshot_of(&world.repository, &back_up(&world.repository, &large_tree()).await).await;
    let later = vec![(26, vec![0x43, 1, 2, 3]), (70_000, vec![0xf5])];
    let SnapshotState::Readable(manifest) = &mut old.state else { panic!("it can be read") };
    manifest.later.clone_from(&later);
    let drops = |key: &MapKey, _: EntryKind| key.name().is_some_and(|name| *name == *b"secret");
    for exclude in [None, Some(Arc::new(drops) as Exclude)] {
        let options =
            RewriteOptions { tags: vec!["new".into()], exclude, ..RewriteOptions::of(&old).unwrap() };
        let rewritten = world.repository.rewrite(&old, options).await.unwrap().snapshot;
        let listed = world.repository.snapshots().await.unwrap();
        let found = listed.iter().find(|snapshot| snapshot.id == rewritten.id).unwrap();
        assert_eq!(found.manifest().unwrap().later, later);
    }
}

#[tokio::test]
async fn rewriting_an_older_snapshot_does_not_take_the_place_of_the_newest() {
    let world = World::new().await;
    let old = snapshot_of(&world.repository, &back_up(&world.repository, &large_tree()).await).await;
    let newest = back_up(&world.repository, &large_tree().with("keep/new", Thing::file("new"))).await;
    world.repository.rewrite(&old, RewriteOptions::of(&old).unwrap()).await.unwrap();
    let next = back_up(&world.repository, &large_tree()).await;
    assert_eq!(next.parent, Some(newest.snapshot));
}

#[tokio::test]
async fn what_lies_only_in_condemned_packs_is_stored_anew() {
    let world = World::new().await;
    let tree = TreeModel::default().with("d/a", Thing::file(noise(5, 50_000))).with("d/b", Thing::file("b"));
    let old = snapshot_of(&world.repository, &back_up(&world.repository, &tree).await).await;
    let mut condemned = world.names("data/").await;
    condemned.extend(world.names("meta/").await);
    condemn(&world, &condemned).await;
    let new = world.repository.rewrite(&old, RewriteOptions::of(&old).unwrap()).await.unwrap();
    assert!(new.stored_chunks > 100, "{}", new.stored_chunks);
    for name in condemned {
        world.delete(&name).await;
    }
    assert_same(&restored(&world.open(&world.key).await, &new.snapshot).await, &tree.as_restored());
}

/// Sealed to another domain, it could not be proved by its id any more.
#[tokio::test]
async fn what_is_stored_anew_stays_in_its_domain_whatever_the_index_says() {
    let world = World::new().await;
    let hostile = world.enrol_writer().await;
    let tree = TreeModel::default().with("d/a", Thing::file(noise(5, 50_000)));
    let old = snapshot_of(&world.repository, &back_up(&world.repository, &tree).await).await;
    let (pack, entries) = data_pack(&world.repository);
    let domain = world.repository.create_domain("tenant").await.unwrap();
    say(&hostile, PackClass::Data, PackRef { domain, ..pack }, &entries, true).await;
    let condemned = names::pack_key(PackClass::Data, &pack.name).to_string();
    world.repository.write_plan(vec![condemned.clone()], Vec::new()).await.unwrap();
    let repository = world.open(&world.key).await;
    let new = repository.rewrite(&old, RewriteOptions::of(&old).unwrap()).await.unwrap();
    assert!(new.stored_chunks > 10, "{}", new.stored_chunks);
    world.delete(&condemned).await;
    assert_same(&restored(&world.open(&world.key).await, &new.snapshot).await, &tree.as_restored());
}

#[tokio::test]
async fn a_lost_chunk_refuses_a_rewriting_and_leaves_no_open_session() {
    let world = World::new().await;
    let old = snapshot_of(&world.repository, &back_up(&world.repository, &large_tree()).await).await;
    let condemned = world.names("data/").await;
    condemn(&world, &condemned).await;
    for name in condemned {
        world.delete(&name).await;
    }
    let refused = world.repository.rewrite(&old, RewriteOptions::of(&old).unwrap()).await;
    assert!(matches!(refused, Err(Error::ChunkLost { .. })), "{refused:?}");
    assert_eq!(world.repository.snapshots().await.unwrap().len(), 1);
    assert_eq!(world.names("commits/").await.len(), 2, "the session was fenced");
}
