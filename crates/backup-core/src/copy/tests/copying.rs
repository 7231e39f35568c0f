//! What a copy under other keys is, and who can make one.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use keepwell_catalog::{MapKey, names};
use keepwell_storage::{Memory, ObjectStore};
use proptest::prelude::*;

use super::{copy, large_tree};
use crate::browse::Depth;
use crate::copy::{EXTRA_ORIGIN, EXTRA_ORIGIN_SNAPSHOT, RewriteOptions};
use crate::repository::{Repository, Snapshot};
use crate::source::{Content, Found, Item, Opened, Piece, Preflight, Source, SourceError};
use crate::testing::{
    MemorySource, Part, Thing, TreeModel, World, assert_same, back_up, block_on, key, noise, options,
    restored, snapshot_of, tree_model,
};
use crate::{BackupOptions, Error};

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

fn parts(mut content: Box<dyn Content>) -> Vec<Part> {
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
        fn preflight(&self) -> Result<Preflight, SourceError> {
            self.0.preflight()
        }
        fn walk(&self, visit: &mut dyn FnMut(Found) -> ControlFlow<()>) -> Result<(), SourceError> {
            let _ = visit(Found::Problem { key: key("a"), message: "is locked".into() });
            self.0.walk(visit)
        }
        fn open(&self, item: &Item) -> Result<Option<Opened>, SourceError> {
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
