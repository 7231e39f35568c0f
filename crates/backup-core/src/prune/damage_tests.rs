//! What a prune makes of a store in which something is lost, forged, or half done.

use std::time::Duration;

use bytes::Bytes;
use keepwell_catalog::{ContentName, Kept, PackClass, Plan, names};
use keepwell_storage::ObjectStore;

use super::{PruneOptions, merge};
use crate::Error;
use crate::repair::RepairOptions;
use crate::repository::{Repository, read_plans};
use crate::testing::{Thing, TreeModel, World, assert_same, back_up, block_on, noise, restored, snapshot_of};

fn thorough() -> PruneOptions {
    PruneOptions { max_unused: 0.0, fence_after: Duration::ZERO, ..PruneOptions::default() }
}

fn tree(seed: u64) -> TreeModel {
    TreeModel::default().with("d/a", Thing::file(noise(seed, 20_000))).with("d/b", Thing::file("b"))
}

/// The segments of a class.
fn segments(repository: &Repository, class: PackClass) -> Vec<String> {
    let segments = repository.index().segments();
    let of_class = segments.iter().filter(|(_, segment)| segment.class() == class);
    of_class.map(|(name, _)| format!("index/{}/{name}", repository.group())).collect()
}

#[test]
fn packs_whose_segment_is_lost_are_no_orphans_and_come_back() {
    block_on(async {
        let world = World::new().await;
        let repository = &world.repository;
        let report = back_up(repository, &tree(1)).await;
        repository.prune(thorough()).await.unwrap(); // what nodes refer to is remembered from now on
        let lost = segments(repository, PackClass::Data);
        assert_eq!(lost.len(), 1);
        world.delete(&lost[0]).await;
        let packs = world.names("data/").await;
        for keeper in [repository, &world.open(&world.key).await] {
            assert!(matches!(keeper.prune(thorough()).await, Err(Error::ChunkLost { .. })));
            assert!(read_plans(keeper).await.unwrap().plans.is_empty(), "nothing is condemned");
        }
        // A prune of an older version has condemned them, and could not decide.
        repository.write_plan(packs.clone(), Vec::new()).await.unwrap();
        let repaired =
            repository.repair(None, RepairOptions { fence_after: Duration::ZERO, ..Default::default() });
        let repaired = repaired.await.unwrap();
        assert_eq!(repaired.packs_indexed, packs.len() as u64, "{repaired:?}");
        assert!(repaired.after.is_sound(), "{:?}", repaired.after.findings);
        repository.prune(thorough()).await.unwrap();
        world.assert_restores(&report, &tree(1)).await;
    });
}

#[test]
fn a_plan_that_names_anything_but_packs_and_small_objects_is_refused() {
    block_on(async {
        let world = World::new().await;
        let repository = &world.repository;
        back_up(repository, &tree(1)).await;
        for prefix in ["trust/", "keys/", "commits/", "lists/"] {
            let name = world.names(prefix).await.pop().unwrap();
            assert!(repository.write_plan(vec![name.clone()], Vec::new()).await.is_err());
            let plan = names::PlanName::new(0, repository.random());
            let (store, time) = (repository.store_id(), 1);
            let record = Plan { store, name: plan, time, condemned: vec![name.clone()], merged: Vec::new() };
            let signed = repository.sign(Plan::KIND, record.encode()).unwrap();
            repository.put_own(&names::plan_key(plan), signed).await.unwrap();
            let kept = Kept { store, name: plan, released: Vec::new() };
            let signed = repository.sign(Kept::KIND, kept.encode()).unwrap();
            repository.put_own(&names::kept_key(plan), signed).await.unwrap();
            let refused = repository.prune(thorough()).await.unwrap_err();
            assert!(matches!(refused, Error::Damaged { .. }), "{refused}");
            assert!(world.names("").await.contains(&name), "{name} is there");
            world.delete(names::plan_key(plan).as_str()).await;
            world.delete(names::kept_key(plan).as_str()).await;
        }
        repository.prune(thorough()).await.unwrap();
    });
}

/// As after a crash between the verdict on merged segments and their removal.
#[test]
fn a_decided_plan_of_segments_is_finished() {
    block_on(async {
        let world = World::new().await;
        let repository = &world.repository;
        let report = back_up(repository, &tree(1)).await;
        let kept = segments(repository, PackClass::Data).pop().unwrap();
        let bytes = world.store.get(&kept.parse().unwrap()).await.unwrap();
        let twin = format!("{}-{}", kept.split_once('-').unwrap().0, "00c0ffee");
        world.store.put_new(&twin.parse().unwrap(), bytes).await.unwrap();
        let name = repository.write_plan(vec![twin.clone()], Vec::new()).await.unwrap();
        let verdict = Kept { store: repository.store_id(), name, released: Vec::new() };
        let signed = repository.sign(Kept::KIND, verdict.encode()).unwrap();
        repository.put_own(&names::kept_key(name), signed).await.unwrap();
        repository.prune(thorough()).await.unwrap();
        assert!(!world.names("index/").await.contains(&twin));
        world.assert_restores(&report, &tree(1)).await;
    });
}

#[test]
fn a_large_segment_that_lists_dead_packs_is_rewritten_alone() {
    block_on(async {
        let world = World::new().await;
        let repository = &world.repository;
        let report = back_up(repository, &tree(1)).await;
        let dead = back_up(repository, &tree(2)).await;
        let dead = snapshot_of(repository, &dead).await;
        repository.forget(&[(&dead, "test".into())]).await.unwrap();
        let before: Vec<String> = segments(repository, PackClass::Data);
        let doomed: Vec<ContentName> = {
            let (_, newest) = repository
                .index()
                .segments()
                .into_iter()
                .rfind(|(_, s)| s.class() == PackClass::Data)
                .unwrap();
            newest.packs().iter().map(|pack| pack.name).collect()
        };
        let keys: Vec<String> =
            doomed.iter().map(|n| names::pack_key(PackClass::Data, n).to_string()).collect();
        merge::record_deletion(repository, &keys).await.unwrap();
        assert_eq!(
            merge::merge_up_to(repository, 2, &Default::default()).await.unwrap(),
            1,
            "both are larger than that"
        );
        repository.refresh_index().await.unwrap();
        let left = segments(repository, PackClass::Data);
        assert!(left.len() == 1 && before.contains(&left[0]), "{before:?} {left:?}");
        for key in keys {
            world.delete(&key).await;
        }
        let snapshot = snapshot_of(repository, &report).await;
        assert_same(&restored(repository, &snapshot).await, &tree(1).as_restored());
    });
}

/// Nodes are read one by one, so their frames are small (format §6), also after they have moved.
#[test]
fn nodes_that_move_go_into_small_frames() {
    block_on(async {
        let world = World::new().await;
        let repository = &world.repository;
        let file = |i: u64, round: u64| {
            Thing::file(noise(i + round * u64::from(i.is_multiple_of(100)) * 100_000, 30))
        };
        let wide =
            |round| (0..9000).fold(TreeModel::default(), |t, i| t.with(&format!("d/{i:04}"), file(i, round)));
        let old = back_up(repository, &wide(0)).await;
        let old = snapshot_of(repository, &old).await;
        back_up(repository, &wide(1)).await;
        repository.forget(&[(&old, "test".into())]).await.unwrap();
        let report = repository.prune(thorough()).await.unwrap();
        assert!(report.packs_repacked > 0, "{report:?}");
        let largest = |(_, segment): &(_, std::sync::Arc<keepwell_catalog::Segment>)| {
            let entries = segment.iter().map(|item| item.unwrap().1);
            entries.map(|entry| entry.offset + entry.length).max().unwrap_or(0)
        };
        let segments = repository.index().segments();
        let largest =
            segments.iter().filter(|(_, s)| s.class() == PackClass::Meta).map(largest).max().unwrap();
        assert!(largest <= (256 + 128) << 10, "{largest}");
    });
}

#[test]
fn numbers_never_pass_the_largest_that_a_name_can_carry() {
    block_on(async {
        let world = World::new().await;
        let repository = &world.repository;
        let writer = repository.access().member().unwrap();
        let names = [
            names::kept_key(names::PlanName::new(names::NUMBER_MAX, [1; 4])), // of a plan that was merged
            names::commit_key(writer, names::NUMBER_MAX),
            names::session_key(writer, names::NUMBER_MAX, 0),
        ];
        for (case, planted) in names.into_iter().enumerate() {
            if case == 2 {
                // The first free number is taken, so the next one is looked for among the claims.
                world
                    .store
                    .put_new(&names::session_key(writer, 0, 0), Bytes::from_static(b"x"))
                    .await
                    .unwrap();
            }
            world.store.put_new(&planted, Bytes::from_static(b"planted")).await.unwrap();
            let refused = match case {
                0 => repository.write_plan(Vec::new(), Vec::new()).await.map(|_| ()),
                _ => crate::write::Session::claim(repository).await.map(|_| ()),
            };
            assert!(matches!(refused, Err(Error::Damaged { .. })), "{planted}: {refused:?}");
            world.delete(planted.as_str()).await;
        }
    });
}
