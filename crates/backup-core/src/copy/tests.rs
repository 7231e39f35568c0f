use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use keepwell_catalog::names::PlanName;
use keepwell_catalog::{ContentName, EntryKind, IndexEntry, MapKey, PackClass, PackRef, Plan, names};
use keepwell_storage::{Memory, ObjectStore, Operation};
use proptest::prelude::*;

use super::*;
use crate::browse::Depth;
use crate::repository::{Repository, Snapshot, SnapshotState};
use crate::source::{Found, Source};
use crate::testing::{
    Hook, Hooked, MemorySource, Part, Thing, TreeModel, World, assert_same, back_up, block_on, data_pack,
    key, noise, options, restored, say, snapshot_of, tree_model,
};
use crate::{BackupOptions, Checked, Error, PruneOptions};

/// The tree of a snapshot as a model with holes: metadata, and the parts that a source reads.
async fn captured(repository: &Repository, snapshot: &Snapshot) -> BTreeMap<MapKey, (u64, Vec<Part>)> {
    let source = Arc::new(repository.snapshot_source(snapshot).await.unwrap());
    tokio::task::spawn_blocking(move || {
        let mut found = BTreeMap::new();
        source
            .walk(&mut |step| {
                let Found::Item(item) = step else { return ControlFlow::Continue(()) };
                let content = source.open(&item).unwrap().unwrap().content;
                found.insert(item.key, (item.size, content.map(parts).unwrap_or_default()));
                ControlFlow::Continue(())
            })
            .unwrap();
        found
    })
    .await
    .unwrap()
}

fn parts(mut content: Box<dyn crate::source::Content>) -> Vec<Part> {
    use crate::source::Piece;
    let mut parts: Vec<Part> = Vec::new();
    let mut buf = [0; 777];
    loop {
        match (content.read(&mut buf).unwrap(), parts.last_mut()) {
            (Piece::End, _) => return parts,
            (Piece::Data(n), Some(Part::Data(last))) => last.extend_from_slice(&buf[..n]),
            (Piece::Data(n), _) => parts.push(Part::Data(buf[..n].to_vec())),
            (Piece::Hole(length), _) => parts.push(Part::Hole(length)),
            (Piece::Kept(_), _) => panic!("a copy keeps nothing"),
        }
    }
}

async fn copy(from: &World, to: &Repository) -> CopyReport {
    let snapshots = from.repository.snapshots().await.unwrap();
    from.repository.copy_snapshots(to, &snapshots, &options("not used")).await.unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn a_copy_under_other_keys_restores_to_the_same(model in tree_model(), later in tree_model()) {
        block_on(async {
            let (from, to) = (World::new().await, World::new().await);
            back_up(&from.repository, &model).await;
            back_up(&from.repository, &later).await;
            let report = copy(&from, &to.repository).await;
            assert_eq!((report.copied.len(), report.skipped.len(), report.failed.len()), (2, 0, 0));
            for (copied, model) in report.copied.iter().zip([&model, &later]) {
                assert_eq!((copied.unread, copied.report.problem_count), (0, 0));
                let snapshot = snapshot_of(&to.repository, &copied.report).await;
                assert_same(&restored(&to.repository, &snapshot).await, &model.as_restored());
                let origin = from.repository.snapshots().await.unwrap();
                let origin = origin.iter().find(|s| s.id == copied.from).unwrap();
                assert_eq!(captured(&to.repository, &snapshot).await, captured(&from.repository, origin).await);
            }
            assert_eq!(copy(&from, &to.repository).await.skipped.len(), 2, "what is there is not copied again");
        });
    }

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

fn large_tree() -> TreeModel {
    let mut tree = TreeModel::default().with("keep/large", Thing::file(noise(1, 2 << 20)));
    for n in 0..400 {
        tree = tree.with(&format!("keep/{n:03}"), Thing::file(noise(n + 10, 500)));
    }
    tree.with("secret/key", Thing::file(noise(2, 100_000)))
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
    let plan = Plan {
        store: world.repository.store_id(),
        name: PlanName::new(0, [0; 4]),
        time: 0,
        condemned: condemned.clone(),
        merged: vec![],
    };
    let signed = world.repository.sign(Plan::KIND, plan.encode()).unwrap();
    world.store.put_new(&names::plan_key(PlanName::new(0, [0; 4])), Bytes::from(signed)).await.unwrap();
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
    let plan = Plan {
        store: world.repository.store_id(),
        name: PlanName::new(0, [0; 4]),
        time: 0,
        condemned: condemned.clone(),
        merged: vec![],
    };
    let signed = world.repository.sign(Plan::KIND, plan.encode()).unwrap();
    world.store.put_new(&names::plan_key(PlanName::new(0, [0; 4])), Bytes::from(signed)).await.unwrap();
    for name in condemned {
        world.delete(&name).await;
    }
    let refused = world.repository.rewrite(&old, RewriteOptions::of(&old).unwrap()).await;
    assert!(matches!(refused, Err(Error::ChunkLost { .. })), "{refused:?}");
    assert_eq!(world.repository.snapshots().await.unwrap().len(), 1);
    assert_eq!(world.names("commits/").await.len(), 2, "the session was fenced");
}

#[tokio::test]
async fn a_second_copy_reads_only_what_changed_and_carries_everything_over() {
    let (from, to) = (World::new().await, World::new().await);
    let describe = BackupOptions {
        tags: vec!["t".into()],
        description: "d".into(),
        time_zone: "Europe/Berlin".into(),
        keep_until: Some(5),
        keep_forever: true,
        capture_time: Some(1_000),
        extra: [("lsn".to_owned(), vec![1, 2])].into(),
        ..options("orders")
    };
    let first = MemorySource::new(large_tree());
    from.repository.backup(Arc::new(first), describe).await.unwrap();
    let copied = copy(&from, &to.repository).await.copied.remove(0);
    let origin = from.repository.snapshots().await.unwrap().remove(0);
    let (a, b) = (origin.manifest().unwrap(), snapshot_of(&to.repository, &copied.report).await);
    let b = b.manifest().unwrap();
    assert_eq!(
        (&a.dataset, &a.host, &a.tags, &a.description),
        (&b.dataset, &b.host, &b.tags, &b.description)
    );
    assert_eq!((&a.paths, &a.source_kind, &a.time_zone), (&b.paths, &b.source_kind, &b.time_zone));
    assert_eq!(
        (a.keep_until, a.keep_forever, a.capture_start),
        (b.keep_until, b.keep_forever, b.capture_start)
    );
    assert_eq!(b.extra["lsn"], [1, 2]);
    assert_eq!(b.extra[EXTRA_ORIGIN_SNAPSHOT], origin.id.as_bytes());
    let commit = names::commit_key(origin.commit.writer, origin.commit.n);
    assert_eq!(b.extra[EXTRA_ORIGIN], from.store.get(&commit).await.unwrap());

    let changed = MemorySource::new(large_tree().with("keep/new", Thing::file(noise(77, 3_000))));
    from.repository.backup(Arc::new(changed), options("orders")).await.unwrap();
    let second = copy(&from, &to.repository).await;
    assert_eq!((second.skipped.len(), second.copied.len()), (1, 1));
    assert_eq!(second.copied[0].report.statistics.bytes_read, 3_000);

    // Back into the first repository nothing needs to go.
    let all = to.repository.snapshots().await.unwrap();
    let back = to.repository.copy_snapshots(&from.repository, &all, &options("x")).await.unwrap();
    assert_eq!((back.skipped.len(), back.copied.len()), (2, 0));
}

#[tokio::test]
async fn whoever_cannot_read_is_refused_although_it_sees_nothing_to_copy() {
    let (from, to) = (World::new().await, World::new().await);
    let copy = Memory::new();
    from.repository.create_copy(&copy).await.unwrap();
    let copy = Repository::builder(Arc::new(copy)).open(from.key.clone()).await.unwrap();
    let writer = from.enrol_writer().await;
    let same = writer.copy_to_store(&copy, &[]).await.map(|_| ());
    let other = writer.copy_snapshots(&to.repository, &[], &options("x")).await.map(|_| ());
    for refused in [same, other] {
        assert!(matches!(refused, Err(Error::NotAllowed { .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn a_writer_without_read_keys_sees_what_it_has_copied() {
    let (from, to) = (World::new().await, World::new().await);
    back_up(&from.repository, &large_tree()).await;
    let writer = to.enrol_writer().await;
    assert_eq!(copy(&from, &writer).await.copied.len(), 1);
    assert_eq!(copy(&from, &writer).await.skipped.len(), 1);
    // Opened anew, so that it knows the writer.
    let reader = to.open(&to.key).await;
    let snapshot = reader.snapshots().await.unwrap().remove(0);
    assert_same(&restored(&reader, &snapshot).await, &large_tree().as_restored());
}

#[tokio::test]
async fn a_copy_of_a_damaged_snapshot_is_incomplete_and_tried_again() {
    let (from, to) = (World::new().await, World::new().await);
    let tree =
        TreeModel::default().with("small", Thing::file("s")).with("large", Thing::file(noise(4, 1 << 20)));
    back_up(&from.repository, &tree).await;
    let packs = from.names("data/").await;
    let saved: Vec<_> = {
        let mut saved = Vec::new();
        for name in &packs {
            saved.push(from.store.get(&name.parse().unwrap()).await.unwrap());
            from.delete(name).await;
        }
        saved
    };
    let report = copy(&from, &to.repository).await;
    assert_eq!((report.copied.len(), report.copied[0].unread), (1, 2));
    let wanted = async || {
        let (here, there) =
            (from.repository.snapshots().await.unwrap(), to.repository.snapshots().await.unwrap());
        CopyRules::default().wanted(to.repository.now(), &here, &there, &Checked::default()).len()
    };
    assert_eq!(wanted().await, 1);
    let report = copy(&from, &to.repository).await;
    assert_eq!((report.copied.len(), report.failed.len()), (0, 1), "as much as that is there: {report:?}");
    for (name, bytes) in packs.iter().zip(saved) {
        from.store.put_new(&name.parse().unwrap(), bytes).await.unwrap();
    }
    let report = copy(&from, &to.repository).await;
    assert_eq!((report.copied.len(), report.copied[0].unread), (1, 0));
    let snapshot = snapshot_of(&to.repository, &report.copied[0].report).await;
    assert_same(&restored(&to.repository, &snapshot).await, &tree.as_restored());
    assert_eq!(copy(&from, &to.repository).await.skipped.len(), 1);
    assert_eq!(wanted().await, 0);
}

/// Forgets a snapshot and prunes, when content is first read.
#[derive(Debug)]
struct ForgetsThen {
    keeper: Repository,
    going: Snapshot,
    is_done: AtomicBool,
}

#[async_trait]
impl Hook for ForgetsThen {
    async fn before(&self, _: &Memory, operation: Operation, subject: &str) {
        let is_content = operation == Operation::GetRange && subject.starts_with("data/");
        if is_content && !self.is_done.swap(true, Ordering::SeqCst) {
            self.keeper.forget(&[(&self.going, "test".into())]).await.unwrap();
            self.keeper.prune(PruneOptions { max_unused: 0.0, ..PruneOptions::default() }).await.unwrap();
        }
    }
}

/// Moves a pack, as a prune would, when content is first read.
#[derive(Debug)]
struct MovesThen {
    there: Repository,
    pack: PackRef,
    entries: Vec<IndexEntry>,
    is_done: AtomicBool,
}

#[async_trait]
impl Hook for MovesThen {
    async fn before(&self, inner: &Memory, operation: Operation, subject: &str) {
        let is_content = operation == Operation::GetRange && subject.starts_with("data/");
        if is_content && !self.is_done.swap(true, Ordering::SeqCst) {
            let key = |pack: &PackRef| names::pack_key(PackClass::Data, &pack.name);
            let to = PackRef { name: ContentName::new(&self.pack.name.digest(), [9; 4]), ..self.pack };
            let stored = inner.get(&key(&self.pack)).await.unwrap();
            inner.put_new(&key(&to), stored).await.unwrap();
            say(&self.there, PackClass::Data, to, &self.entries, false).await;
            inner.delete(&key(&self.pack)).await.unwrap();
        }
    }
}

/// Answers no more from the second time on that content is read.
#[derive(Debug, Default)]
struct GoneAfterOne {
    reads: AtomicU64,
}

#[async_trait]
impl Hook for GoneAfterOne {
    async fn before(&self, _: &Memory, operation: Operation, subject: &str) {
        let is_content = operation == Operation::GetRange && subject.starts_with("data/");
        self.reads.fetch_add(u64::from(is_content), Ordering::SeqCst);
    }

    fn is_gone(&self) -> bool {
        self.reads.load(Ordering::SeqCst) > 1
    }
}

#[tokio::test]
async fn what_an_interrupted_copy_has_stored_is_found_again() {
    let from = World::new().await;
    let tree = TreeModel::default().with("a", Thing::file(noise(1, 5_000)));
    back_up(&from.repository, &tree).await;
    let report = back_up(&from.repository, &tree.with("b", Thing::file(noise(2, 5_000)))).await;
    assert_eq!(from.names("data/").await.len(), 2);
    let snapshot = snapshot_of(&from.repository, &report).await;
    let store = Arc::new(Hooked::new(from.store.inner().clone(), GoneAfterOne::default()));
    let origin = Repository::builder(store).open(from.key.clone()).await.unwrap();
    let empty = Arc::new(Memory::new());
    from.repository.create_copy(&*empty).await.unwrap();
    let target = Repository::builder(empty).open(from.key.clone()).await.unwrap();
    let ended = origin.copy_to_store(&target, std::slice::from_ref(&snapshot)).await.map(|_| ());
    assert!(matches!(ended, Err(Error::Storage(_))), "{ended:?}");
    target.refresh_index().await.unwrap();
    let (_, entries) = data_pack(&target);
    assert!(!entries.is_empty(), "the first of two packs is listed");
}

/// A restore beside it has read the plans later than the index, say.
#[tokio::test]
async fn a_copy_follows_a_pack_that_was_known_to_be_gone() {
    let from = World::new().await;
    let tree = TreeModel::default().with("a", Thing::file(noise(1, 5_000)));
    let report = back_up(&from.repository, &tree).await;
    let snapshot = snapshot_of(&from.repository, &report).await;
    let (pack, entries) = data_pack(&from.repository);
    let moves =
        MovesThen { there: from.open(&from.key).await, pack, entries, is_done: AtomicBool::new(false) };
    let store = Arc::new(Hooked::new(from.store.inner().clone(), moves));
    let origin = Repository::builder(store).open(from.key.clone()).await.unwrap();
    origin.note_gone(PackClass::Data, pack.name);
    let empty = Arc::new(Memory::new());
    origin.create_copy(&*empty).await.unwrap();
    let target = Repository::builder(empty).open(from.key.clone()).await.unwrap();
    origin.copy_to_store(&target, std::slice::from_ref(&snapshot)).await.unwrap();
    let copied = snapshot_of(&target, &report).await;
    assert_same(&restored(&target, &copied).await, &tree.as_restored());
}

/// It would lack what is gone for ever, and nobody could tell it from a copy of what was damaged.
#[tokio::test]
async fn of_a_snapshot_that_is_forgotten_meanwhile_there_is_no_copy() {
    let (from, to) = (World::new().await, World::new().await);
    let report =
        back_up(&from.repository, &TreeModel::default().with("a", Thing::file(noise(1, 5_000)))).await;
    let going = snapshot_of(&from.repository, &report).await;
    let (keeper, is_done) = (from.open(&from.key).await, AtomicBool::new(false));
    let hook = ForgetsThen { keeper, going: going.clone(), is_done };
    let store = Arc::new(Hooked::new(from.store.inner().clone(), hook));
    let origin = Repository::builder(store).open(from.key.clone()).await.unwrap();
    let wanted = std::slice::from_ref(&going);
    let report = origin.copy_snapshots(&to.repository, wanted, &options("not used")).await.unwrap();
    let [(id, why)] = &report.failed[..] else { panic!("{report:?}") };
    assert!(*id == going.id && why.contains("forgotten") && report.copied.is_empty(), "{report:?}");
    assert!(to.repository.snapshots().await.unwrap().is_empty());
}

/// A manifest names a thousand problems, and the original has as many.
#[tokio::test]
async fn a_copy_that_lacks_something_beside_a_thousand_problems_is_tried_again() {
    let (from, middle, to) = (World::new().await, World::new().await, World::new().await);
    let lost = |tree: TreeModel, n: u32| tree.with(&format!("lost/{n:04}"), Thing::file(n.to_string()));
    let tree = (0..1000).fold(TreeModel::default(), lost);
    back_up(&from.repository, &tree).await;
    let packs = from.names("data/").await;
    back_up(&from.repository, &tree.with("whole", Thing::file("whole"))).await;
    for name in &packs {
        from.delete(name).await;
    }
    let newest = from.repository.snapshots().await.unwrap().pop().unwrap();
    let copied = from.repository.copy_snapshots(&middle.repository, &[newest], &options("not used")).await;
    assert_eq!(copied.unwrap().copied[0].unread, 1000);

    let packs = middle.names("data/").await;
    assert_eq!(packs.len(), 1, "`whole` alone was copied");
    let pack = packs[0].parse().unwrap();
    let saved = middle.store.get(&pack).await.unwrap();
    middle.delete(pack.as_str()).await;
    assert_eq!(copy(&middle, &to.repository).await.copied[0].unread, 1);
    let again = copy(&middle, &to.repository).await;
    assert_eq!((again.copied.len(), again.failed.len()), (0, 1), "as much as that is there: {again:?}");
    middle.store.put_new(&pack, saved).await.unwrap();
    assert_eq!(copy(&middle, &to.repository).await.copied[0].unread, 0);
    assert_eq!(copy(&middle, &to.repository).await.skipped.len(), 1);
}

#[tokio::test]
async fn problems_of_the_capture_stay_known_in_the_copy() {
    #[derive(Debug)]
    struct Broken(MemorySource);
    impl Source for Broken {
        fn kind(&self) -> &str {
            "broken"
        }
        fn paths(&self) -> Vec<Vec<u8>> {
            self.0.paths()
        }
        fn preflight(&self) -> Result<crate::source::Preflight, crate::source::SourceError> {
            self.0.preflight()
        }
        fn walk(
            &self,
            visit: &mut dyn FnMut(Found) -> ControlFlow<()>,
        ) -> Result<(), crate::source::SourceError> {
            let _ = visit(Found::Problem { key: key("a"), message: "is locked".into() });
            self.0.walk(visit)
        }
        fn open(
            &self,
            item: &crate::source::Item,
        ) -> Result<Option<crate::source::Opened>, crate::source::SourceError> {
            self.0.open(item)
        }
    }
    let (from, to) = (World::new().await, World::new().await);
    let source = Broken(MemorySource::new(TreeModel::default().with("b", Thing::file("b"))));
    from.repository.backup(Arc::new(source), options("data")).await.unwrap();
    let copied = copy(&from, &to.repository).await.copied.remove(0);
    assert_eq!(copied.unread, 0);
    assert_eq!(copied.report.problems, [("/a".to_owned(), "is locked".to_owned())]);
    assert_eq!(copy(&from, &to.repository).await.skipped.len(), 1);

    // Leaving out the path leaves out what was said about it.
    let old = snapshot_of(&to.repository, &copied.report).await;
    let mut rewrite = RewriteOptions::of(&old).unwrap();
    rewrite.exclude = Some(Arc::new(|at, _| *at == key("a")));
    let new = to.repository.rewrite(&old, rewrite).await.unwrap().snapshot;
    assert_eq!(new.manifest().unwrap().problem_count, 0);
    assert_eq!(copy(&from, &to.repository).await.skipped.len(), 1, "a rewritten copy is still a copy");
    let tree = to.repository.tree(&new).await.unwrap();
    let mut listed = 0;
    tree.list(&MapKey::root(), Depth::All, |_, _| {
        listed += 1;
        ControlFlow::Continue(())
    })
    .await
    .unwrap();
    assert_eq!(listed, 1);
}
