//! What a released version wrote is read for ever: every repository in `tests/fixtures/repo` is checked and restored.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

#[path = "../examples/make_fixture/manifest.rs"]
mod manifest;
#[path = "../examples/make_fixture/pieces.rs"]
mod pieces;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::env::SystemClock;
use backup_core::{
    BackupOptions, CheckOptions, EXTRA_ORIGIN, PruneOptions, ReadData, Repository, RestoreOptions, Snapshot,
    scrub,
};
use keepwell_catalog::wal::WalPlace;
use keepwell_catalog::{Commit, Extent, MapKey};
use keepwell_crypto::Signed;
use keepwell_crypto::keyfile::KeyFile;
use keepwell_source_files::{FileOptions, FileSource, FileTarget, TargetOptions};
use keepwell_storage::{LocalFs, LocalOptions, ObjectStore, list_all};
use tempfile::TempDir;

/// Every fixture there is, with the directory that its snapshots were taken of. One that is missing here, or there,
/// fails a test.
const FIXTURES: [(&str, &str); 3] = [
    ("v1", "/tmp/keepwell-v1/tree"),
    ("v1-plans", "/tmp/keepwell-v1-plans/tree"),
    ("v1-copy", "/tmp/keepwell-v1-copy/tree"),
];

/// A fixture, copied: git keeps neither empty directories nor modes, and some tests write.
struct Fixture {
    kept_in: PathBuf,
    tree: MapKey,
    store: Arc<dyn ObjectStore>,
    key: KeyFile,
    scratch: TempDir,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/repo")
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for name in names(from) {
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() { copy(&from, &to) } else { fs::copy(from, to).map(drop).unwrap() }
    }
}

fn key(path: &str) -> MapKey {
    MapKey::from_components(path.split('/').filter(|name| !name.is_empty())).unwrap()
}

impl Fixture {
    async fn open((name, tree): (&str, &str)) -> Self {
        let kept_in = fixtures().join(name);
        let scratch = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        copy(&kept_in.join("repository"), &scratch.path().join("repository"));
        let place = scratch.path().join("repository");
        let store = Arc::new(LocalFs::open(place, &LocalOptions::default()).await.unwrap());
        let text = fs::read_to_string(kept_in.join("key.toml")).unwrap();
        Self { kept_in, tree: key(tree), store, key: KeyFile::parse(&text).unwrap(), scratch }
    }

    async fn repository(&self) -> Repository {
        Repository::builder(Arc::clone(&self.store)).open(self.key.clone()).await.unwrap()
    }

    fn expected(&self, snapshot: &Snapshot) -> String {
        fs::read_to_string(self.kept_in.join("expected").join(format!("{}.txt", snapshot.id))).unwrap()
    }

    /// Restores the tree of a snapshot and says what came back.
    async fn restored(&self, repository: &Repository, snapshot: &Snapshot, directory: &str) -> String {
        let directory = self.scratch.path().join(directory);
        let target = Arc::new(FileTarget::create(&directory, &TargetOptions::default()).unwrap());
        // The parent of the tree, so that the metadata of its top is restored too.
        let options = RestoreOptions { below: self.tree.parent(), ..RestoreOptions::default() };
        let report = repository.restore(snapshot, target, options).await.unwrap();
        assert_eq!(report.problems, []);
        manifest::describe(&directory.join("tree")).unwrap()
    }
}

#[test]
fn every_fixture_is_tested() {
    let tested: BTreeSet<String> = FIXTURES.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&fixtures()), tested);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_repositories_are_sound() {
    for fixture in FIXTURES {
        let fixture = Fixture::open(fixture).await;
        let repository = fixture.repository().await;
        let report = repository.check(CheckOptions { read: ReadData::Everything }).await.unwrap();
        assert!(report.is_sound(), "{:?}", report.findings);
        assert_eq!(report.packs_read, report.packs);
        let report = scrub(&*fixture.store, Some(fixture.key.genesis), true).await.unwrap();
        assert_eq!(report.findings, BTreeSet::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_snapshots_restore_to_what_was_backed_up() {
    for fixture in FIXTURES {
        let fixture = Fixture::open(fixture).await;
        let repository = fixture.repository().await;
        let snapshots = repository.snapshots().await.unwrap();
        let listed: BTreeSet<String> = snapshots.iter().map(|s| format!("{}.txt", s.id)).collect();
        assert_eq!(listed, names(&fixture.kept_in.join("expected")));
        for snapshot in &snapshots {
            let restored = fixture.restored(&repository, snapshot, &snapshot.short()).await;
            assert_eq!(restored, fixture.expected(snapshot), "snapshot {}", snapshot.id);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_repository_goes_on_being_used() {
    for fixture in FIXTURES {
        let fixture = Fixture::open(fixture).await;
        let repository = fixture.repository().await;
        let old = repository.snapshots().await.unwrap().pop().unwrap();
        fixture.restored(&repository, &old, "restored").await;
        let options =
            FileOptions { paths: vec![fixture.scratch.path().join("restored")], ..FileOptions::default() };
        let source = Arc::new(FileSource::new(&options, Arc::new(SystemClock)).unwrap());
        let options = BackupOptions { dataset: "fixture".to_owned(), ..BackupOptions::default() };
        let report = repository.backup(source, options).await.unwrap();
        assert_eq!(report.problems, []);
        repository.prune(PruneOptions { max_unused: 0.0, ..PruneOptions::default() }).await.unwrap();
        let report = repository.check(CheckOptions { read: ReadData::Everything }).await.unwrap();
        assert!(report.is_sound(), "{:?}", report.findings);
        let restored = fixture.restored(&repository, &old, "again").await;
        assert_eq!(restored, fixture.expected(&old));
    }
}

#[tokio::test]
async fn version_1_has_every_kind_of_object() {
    let fixture = Fixture::open(FIXTURES[0]).await;
    let objects = list_all(&*fixture.store, "").await.unwrap();
    let kinds = objects.iter().map(|info| match info.key.as_str().split_once('/') {
        Some(("gc", name)) if name.ends_with(".kept") => "gc/….kept",
        Some(("keys", name)) if name.starts_with("erasable/") => "keys/erasable",
        Some((kind, _)) => kind,
        None => info.key.as_str(),
    });
    let expected = [
        "commits",
        "data",
        "gc",
        "gc/….kept",
        "index",
        "keepwell.json",
        "keys",
        "keys/erasable",
        "lists",
        "manifests",
        "meta",
        "retired",
        "sessions",
        "state",
        "trust",
    ];
    assert_eq!(kinds.collect::<BTreeSet<_>>(), BTreeSet::from(expected));
}

#[tokio::test]
async fn plans_have_unique_names_and_are_merged() {
    let fixture = Fixture::open(FIXTURES[1]).await;
    let names = list_all(&*fixture.store, "gc/").await.unwrap();
    let names: Vec<&str> = names.iter().map(|info| info.key.as_str()).collect();
    let (verdicts, plans): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| name.ends_with(".kept"));
    assert!(verdicts.len() >= 9 && plans.len() < verdicts.len(), "{names:?}");
    let length = "gc/0000000000-00000000".len();
    assert!(plans.iter().all(|name| name.len() == length), "{names:?}");
    let old = Fixture::open(FIXTURES[0]).await;
    let names = list_all(&*old.store, "gc/").await.unwrap();
    assert!(names.iter().all(|info| !info.key.as_str().contains('-')), "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_log_is_read_and_goes_on() {
    let fixture = Fixture::open(FIXTURES[2]).await;
    let repository = fixture.repository().await;
    let archived = fs::read_to_string(fixture.kept_in.join("wal.txt")).unwrap();
    assert_eq!(archived.lines().count(), 4);
    assert_eq!(pieces::pieces(&repository).await.unwrap(), archived);
    let system = repository.wal_systems().await.unwrap().remove(0);
    let log = repository.wal_writer("fixture", system, 1 << 20, false).await.unwrap();
    let place = WalPlace::Bytes { file: 5, from: 0, to: 3 };
    log.put(2, place, "new".into(), None).await.unwrap();
    let now = pieces::pieces(&repository).await.unwrap();
    assert_eq!(now.lines().filter(|line| !archived.contains(line)).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_copy_under_other_keys_names_what_it_is_a_copy_of() {
    let fixture = Fixture::open(FIXTURES[2]).await;
    let repository = fixture.repository().await;
    for snapshot in repository.snapshots().await.unwrap() {
        assert_ne!(snapshot.origin_id(), snapshot.id);
        let origin = &snapshot.manifest().unwrap().extra[EXTRA_ORIGIN];
        let commit = Commit::decode(&Signed::from_bytes(origin).unwrap().payload).unwrap();
        assert_eq!(commit.snapshot, Some(snapshot.origin_id()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn version_1_has_holes_and_files_of_several_chunks() {
    let fixture = Fixture::open(FIXTURES[0]).await;
    let repository = fixture.repository().await;
    let mut chunks = Vec::new();
    for snapshot in repository.snapshots().await.unwrap() {
        let tree = repository.tree(&snapshot).await.unwrap();
        let extents = async |name: &[u8]| {
            let entry = tree.entry(&fixture.tree.child(name).unwrap()).await.unwrap();
            entry.unwrap().content
        };
        let hole = |extent: &Extent| matches!(extent, Extent::Hole { .. });
        assert!(extents(b"sparse").await.iter().any(hole));
        chunks.push(extents(b"large").await.len());
    }
    assert!(chunks[0] > 2, "{chunks:?}");
}
