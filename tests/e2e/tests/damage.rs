//! Every kind of object, damaged in every way: always detected, never a wrong byte restored, the rest still comes back,
//! and another copy heals it.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backup_core::{BackupOptions, Cache, CheckOptions, ReadData, Repository, Snapshot, restore_vital};
use keepwell_catalog::wal::WalPlace;
use keepwell_catalog::{Commit, CommitKind, names};
use keepwell_crypto::Signed;
use keepwell_e2e::damage::{ALL, Damage, Forger, Public, inflict};
use keepwell_e2e::tree::Tree;
use keepwell_e2e::{run, tree, world};
use keepwell_storage::{Memory, ObjectStore};
use tempfile::TempDir;
use world::{World, back_up, forget, restored, snapshot_of, thorough};

const LARGE: usize = 600 << 10;

/// A repository with something of every kind, and another copy of it.
struct Case {
    world: World,
    copy: World,
    source: TempDir,
    snapshots: Vec<(Snapshot, Tree)>,
    public: Public,
}

impl Case {
    async fn new() -> Self {
        let world = World::new().await;
        let repository = world.open().await;
        let source = tempfile::tempdir().unwrap();
        let dir = source.path();
        let mut snapshots = Vec::new();
        for generation in 0..4u64 {
            for i in 0..3 {
                if i == 0 || generation < 2 {
                    tree::put(dir, &format!("{generation}/{i}"), generation * 10 + i, LARGE);
                }
            }
            tree::put(dir, "always/changing", 100 + generation, 3000);
            let report = back_up(&repository, dir).await.unwrap();
            snapshots.push((snapshot_of(&repository, &report).await, tree::read(dir)));
            if generation < 2 {
                std::fs::remove_dir_all(dir.join(format!("{generation}"))).unwrap();
            }
        }
        // Two retirements, two plans with their verdicts.
        for _ in 0..2 {
            let (snapshot, _) = snapshots.remove(0);
            forget(&repository, &[snapshot]).await.unwrap();
            repository.prune(thorough()).await.unwrap();
        }
        // The claims of all these sessions are swept; that of the next stays until another prune.
        let report = back_up(&repository, dir).await.unwrap();
        snapshots.push((snapshot_of(&repository, &report).await, tree::read(dir)));
        let copy = Memory::new();
        repository.create_copy(&copy).await.unwrap();
        let copy = World { store: copy, key: world.key.clone() };
        let listed = repository.snapshots().await.unwrap();
        repository.copy_to_store(&copy.open().await, &listed).await.unwrap();
        // Names and sizes as they are, so that packs have their frames at the same places; other bytes.
        let alike = tempfile::tempdir().unwrap();
        for i in 0..3 {
            tree::put(alike.path(), &format!("0/{i}"), 1000 + i, LARGE);
        }
        tree::put(alike.path(), "always/changing", 1100, 3000);
        let public = Public::of(&repository, Forger::new(alike.path()).await);
        Self { world, copy, source, snapshots, public }
    }

    fn dir(&self) -> &Path {
        self.source.path()
    }

    /// Names of objects by kind; a few of each.
    async fn objects(&self) -> BTreeMap<String, Vec<String>> {
        let mut kinds: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for name in self.world.names("").await {
            let mut kind = name.split('/').next().unwrap().to_owned();
            if name.ends_with(".kept") {
                kind.push_str(" verdict");
            }
            kinds.entry(kind).or_default().push(name);
        }
        kinds
    }

    /// Restores every snapshot that is listed: what is there must be right, and what is missing must be reported.
    async fn restore_what_is_left(&self, repository: &Repository, what: &str) -> Vec<(Snapshot, bool)> {
        let mut done = Vec::new();
        for snapshot in repository.snapshots().await.unwrap() {
            let Some((_, expected)) = self.snapshots.iter().find(|(s, _)| s.id == snapshot.id) else {
                continue; // forgotten; its retirement is what was damaged
            };
            let to = tempfile::tempdir().unwrap();
            let whole = match world::restore(repository, &snapshot, self.dir(), to.path()).await {
                Err(_) => false,
                Ok(report) => report.problems.is_empty(),
            };
            let found = tree::read(to.path());
            tree::assert_part_of(expected, &found, what);
            if whole {
                tree::assert_same(expected, &found, what);
            }
            done.push((snapshot, whole));
        }
        done
    }
}

/// Whether somebody with the keys notices.
async fn is_noticed(repository: &Repository) -> bool {
    match repository.check(CheckOptions { read: ReadData::Everything }).await {
        Ok(report) => !report.is_sound(),
        Err(_) => true,
    }
}

/// Whether somebody without any key notices.
async fn is_noticed_without_keys(world: &World) -> bool {
    match backup_core::scrub(&world.store, Some(world.key.genesis), true).await {
        Ok(report) => !report.findings.is_empty(),
        Err(_) => true,
    }
}

/// Objects without which nothing can be opened.
fn is_vital(kind: &str) -> bool {
    matches!(kind, "keepwell.json" | "trust" | "keys")
}

/// Objects without which a snapshot, or a part of it, cannot be restored.
fn is_needed(kind: &str) -> bool {
    matches!(kind, "data" | "meta" | "index" | "manifests" | "commits")
}

async fn damage_one(case: &Case, kind: &str, name: &str, peer: Option<&str>, damage: Damage, seed: u64) {
    let what = format!("{damage:?} {name} (peer {peer:?}, seed {seed})");
    let world = case.world.fork();
    if !inflict(&world.store, damage, name, peer, &case.public, seed).await {
        return;
    }
    // The hint is plain text for people; a flipped bit may be in a blank, or in the date.
    let blind = is_noticed_without_keys(&world).await;
    // The claim of a session that has ended may go at any time.
    let swept = kind == "sessions" && damage == Damage::Deleted;
    assert!(blind || kind == "keepwell.json" || swept, "{what}: not noticed without keys");
    let store = Arc::new(world.store.clone());
    let repository = match world.open_with(store, Cache::memory()).await {
        Ok(repository) => repository,
        Err(error) => {
            assert!(is_vital(kind), "{what}: {error}");
            return;
        }
    };
    let restored = case.restore_what_is_left(&repository, &what).await;
    if !is_needed(kind) {
        assert!(restored.len() == case.snapshots.len() && restored.iter().all(|(_, whole)| *whole), "{what}");
        return;
    }
    // While its claim is there, a session without its commit looks like one at work; its list tells a scrub.
    let is_newest_commit = kind == "commits" && damage == Damage::Deleted && peer < Some(name);
    assert!(is_newest_commit || is_noticed(&repository).await, "{what}: not noticed with keys");
    if matches!(kind, "manifests" | "commits") && damage != Damage::Swapped {
        let whole = restored.iter().filter(|(_, whole)| *whole).count();
        assert!(whole + 1 >= case.snapshots.len(), "{what}: {whole} whole");
    }
}

#[test]
fn nothing_goes_unnoticed_and_nothing_wrong_comes_back() {
    run(async {
        let case = Case::new().await;
        assert!(!is_noticed_without_keys(&case.world).await, "sound at first");
        assert!(!is_noticed(&case.world.open().await).await, "sound at first");
        let objects = case.objects().await;
        let kinds: Vec<&str> = objects.keys().map(String::as_str).collect();
        let all = [
            "commits",
            "data",
            "gc",
            "gc verdict",
            "index",
            "keepwell.json",
            "keys",
            "lists",
            "manifests",
            "meta",
            "retired",
            "sessions",
            "state",
            "trust",
        ];
        assert_eq!(kinds, all);
        let mut seed = 0;
        for (kind, names) in &objects {
            // The first and the last; of the others one is as good as another.
            let chosen = [0, names.len() - 1];
            for (at, name) in names.iter().enumerate().filter(|(at, _)| chosen.contains(at)) {
                let peer = names.get(if at == 0 { 1 } else { at - 1 }).map(String::as_str);
                for damage in ALL {
                    seed += 1;
                    damage_one(&case, kind, name, peer.filter(|p| *p != name), damage, seed).await;
                }
            }
        }
    });
}

/// Every kind, each of the first and last objects of it, damaged in every way, and healed from `from`.
async fn heals(case: &Case, kinds: &[&str], from: &World) {
    let objects = case.objects().await;
    let mut seed = 0;
    for kind in kinds {
        let names = &objects[*kind];
        // Of commits, those that publish a snapshot: of others a copy has nothing.
        let committed: Vec<String> = case.snapshots.iter().map(|(s, _)| commit_of(s)).collect();
        let names = if *kind == "commits" { &committed } else { names };
        let chosen: BTreeSet<&String> = [names.first(), names.last()].into_iter().flatten().collect();
        for name in chosen {
            let peer = names.iter().find(|peer| *peer != name).map(String::as_str);
            for damage in ALL {
                seed += 1;
                let what = format!("{damage:?} {name} (seed {seed})");
                let world = case.world.fork();
                if inflict(&world.store, damage, name, peer, &case.public, seed).await {
                    heal_one(case, &world, from, &what).await;
                }
            }
        }
    }
}

fn commit_of(snapshot: &Snapshot) -> String {
    names::commit_key(snapshot.commit.writer, snapshot.commit.n).to_string()
}

async fn heal_one(case: &Case, world: &World, from: &World, what: &str) {
    let vital = restore_vital(&world.store, &from.store, world.key.genesis, 1).await;
    vital.unwrap_or_else(|e| panic!("{what}: {e}"));
    let repository = world.open().await;
    let report = repository.repair(Some(&from.open().await), world::repairing(ReadData::Everything)).await;
    let report = report.unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(report.after.is_sound(), "{what}: {:#?}", report.after.findings);
    assert!(!is_noticed_without_keys(world).await, "{what}: still noticed without keys");
    let repository = world.open().await;
    let listed = repository.snapshots().await.unwrap();
    assert_eq!(listed.len(), case.snapshots.len(), "{what}");
    for snapshot in listed {
        let (_, expected) = case.snapshots.iter().find(|(s, _)| s.id == snapshot.id).unwrap();
        tree::assert_same(expected, &restored(&repository, &snapshot, case.dir()).await, what);
    }
    world::prune_to_the_end(&repository, what).await;
    back_up(&repository, case.dir()).await.unwrap_or_else(|e| panic!("{what}: then a backup: {e}"));
}

/// A copy made by `copy` has of this store's own records only the commits of what was copied.
#[test]
fn another_copy_heals() {
    run(async {
        let case = Case::new().await;
        let kinds = ["keepwell.json", "trust", "keys", "data", "meta", "index", "manifests", "commits"];
        heals(&case, &kinds, &case.copy).await;
    });
}

/// A copy of the store byte for byte has everything.
#[test]
fn a_mirror_heals_what_only_this_store_has_signed() {
    run(async {
        let case = Case::new().await;
        let mirror = case.world.fork();
        let kinds = [
            "keepwell.json",
            "trust",
            "commits",
            "lists",
            "retired",
            "gc",
            "gc verdict",
            "state",
            "sessions",
        ];
        heals(&case, &kinds, &mirror).await;
    });
}

/// What a checkpoint has published is no snapshot: its damage is noticed, and costs nothing.
#[test]
fn damage_to_the_commit_of_a_checkpoint_is_noticed_and_costs_no_snapshot() {
    run(async {
        let mut case = Case::new().await;
        let repository = case.world.open().await;
        for i in 0..3 {
            tree::put(case.dir(), &format!("last/{i}"), 70 + i, LARGE);
        }
        let options = BackupOptions { checkpoint_every: Duration::ZERO, ..world::options() };
        let report = world::back_up_with(&repository, case.dir(), options).await.unwrap();
        case.snapshots.push((snapshot_of(&repository, &report).await, tree::read(case.dir())));
        let mut checkpoints = Vec::new();
        for name in case.world.names("commits/").await {
            let bytes = case.world.store.get(&name.parse().unwrap()).await.unwrap();
            let commit = Commit::decode(&Signed::from_bytes(&bytes).unwrap().payload).unwrap();
            if commit.kind == CommitKind::Checkpoint {
                checkpoints.push(name);
            }
        }
        assert!(!checkpoints.is_empty());
        assert!(!is_noticed_without_keys(&case.world).await, "sound at first");
        for (seed, name) in (0..).zip(&checkpoints) {
            let peer = commit_of(&case.snapshots[0].0);
            for damage in ALL {
                let what = format!("{damage:?} {name}");
                let world = case.world.fork();
                if !inflict(&world.store, damage, name, Some(&peer), &case.public, seed).await {
                    continue;
                }
                assert!(is_noticed_without_keys(&world).await, "{what}: not noticed without keys");
                let restored = case.restore_what_is_left(&world.open().await, &what).await;
                let whole = restored.iter().filter(|(_, whole)| *whole).count();
                let lost = usize::from(damage == Damage::Swapped); // with the commit of a snapshot
                assert!(whole + lost >= case.snapshots.len(), "{what}: {whole} whole");
            }
        }
    });
}

/// A key of an erasable domain that is damaged closes that domain, and nothing else; one that is lost comes back from a copy.
#[test]
fn damage_to_a_key_of_an_erasable_domain_costs_that_domain_alone() {
    run(async {
        let mut case = Case::new().await;
        let repository = case.world.open().await;
        let domain = repository.create_domain("customer").await.unwrap();
        let repository = case.world.open().await;
        let options = BackupOptions { domain: Some(domain), dataset: "customer".into(), ..world::options() };
        let report = world::back_up_with(&repository, case.dir(), options).await.unwrap();
        let erasable = snapshot_of(&repository, &report).await;
        case.snapshots.push((erasable.clone(), tree::read(case.dir())));
        let mirror = case.world.fork();
        let names = case.world.names("keys/erasable/").await;
        let peer = case.world.names("keys/").await.into_iter().find(|name| !names.contains(name));
        assert!(!names.is_empty());
        for (seed, name) in (0..).zip(&names) {
            for damage in ALL {
                let what = format!("{damage:?} {name}");
                let world = case.world.fork();
                // Its peer is a keyring; it stays, for without that nothing opens at all.
                let peer = peer.as_deref().filter(|_| damage != Damage::Swapped);
                if !inflict(&world.store, damage, name, peer, &case.public, seed).await {
                    continue;
                }
                let repository = world.open().await;
                for (snapshot, whole) in case.restore_what_is_left(&repository, &what).await {
                    assert!(whole || snapshot.id == erasable.id, "{what}: {}", snapshot.short());
                }
                let _ = world.store.delete(&name.parse().unwrap()).await;
                restore_vital(&world.store, &mirror.store, world.key.genesis, 1).await.unwrap();
                let restored = case.restore_what_is_left(&world.open().await, &what).await;
                assert!(restored.len() == case.snapshots.len(), "{what}: {}", restored.len());
                assert!(restored.iter().all(|(_, whole)| *whole), "{what}: not healed");
            }
        }
    });
}

/// A piece of an archived log is what was archived, or it is refused; the pieces beside it are read.
#[test]
fn damage_to_a_piece_of_a_log_is_noticed_when_it_is_read() {
    run(async {
        let case = Case::new().await;
        let repository = case.world.open().await;
        let log = repository.wal_writer("db", 7, 1 << 20, false).await.unwrap();
        let mut archived = BTreeMap::new();
        let places = [(3, 0, 5000), (3, 5000, 9000), (4, 0, 8192)];
        for (seed, (file, from, to)) in (0..).zip(places) {
            let bytes = keepwell_e2e::noise(seed, (to - from) as usize);
            let place = WalPlace::Bytes { file, from, to };
            log.put(1, place, bytes.clone().into(), None).await.unwrap();
            let name = log.pieces_of(1, file).await.unwrap().into_iter().find(|name| name.place == place);
            archived.insert(name.unwrap().key().to_string(), (name.unwrap(), bytes));
        }
        let names: Vec<&String> = archived.keys().collect();
        for (at, name) in names.iter().enumerate() {
            let peer = names[(at + 1) % names.len()];
            for damage in ALL {
                let what = format!("{damage:?} {name}");
                let world = case.world.fork();
                if !inflict(&world.store, damage, name, Some(peer), &case.public, at as u64).await {
                    continue;
                }
                let repository = world.open().await;
                let reader = repository.wal_reader(7).unwrap();
                for (other, (piece, bytes)) in &archived {
                    let is_hit = other == *name || (damage == Damage::Swapped && other == peer);
                    match reader.read(piece).await {
                        Ok(found) => assert!(!is_hit && found.plaintext == *bytes, "{what}: {other}"),
                        Err(error) => assert!(is_hit, "{what}: {other}: {error}"),
                    }
                }
                let restored = case.restore_what_is_left(&repository, &what).await;
                assert!(restored.iter().all(|(_, whole)| *whole), "{what}: a log is apart from snapshots");
            }
        }
    });
}

#[test]
fn a_further_name_of_a_lost_file_is_lost_as_well() {
    run(async {
        let world = World::new().await;
        let repository = world.open().await;
        let source = tempfile::tempdir().unwrap();
        tree::put(source.path(), "a", 1, LARGE);
        std::fs::hard_link(source.path().join("a"), source.path().join("b")).unwrap();
        let report = back_up(&repository, source.path()).await.unwrap();
        let snapshot = snapshot_of(&repository, &report).await;
        for name in world.names("data/").await {
            world.store.delete(&name.parse().unwrap()).await.unwrap();
        }
        // An older `a` stands in the target. It must not come to stand under the name `b` as well.
        let to = tempfile::tempdir().unwrap();
        tree::put(to.path(), "a", 2, LARGE);
        let report = world::restore(&world.open().await, &snapshot, source.path(), to.path()).await.unwrap();
        assert_eq!(report.problem_count, 2, "{:?}", report.problems);
        assert!(!to.path().join("b").exists());
    });
}

#[test]
fn damage_in_the_local_cache_costs_time_only() {
    run(async {
        let case = Case::new().await;
        let cache = tempfile::tempdir().unwrap();
        let store = Arc::new(case.world.store.clone());
        let open =
            || async { case.world.open_with(store.clone(), Cache::directory(cache.path())).await.unwrap() };
        back_up(&open().await, case.dir()).await.unwrap();
        let expected = tree::read(case.dir());
        let mut files = Vec::new();
        collect(cache.path(), &mut files);
        assert!(files.len() >= 4, "{files:?}");
        for path in files {
            let bytes = std::fs::read(&path).unwrap();
            for position in [0, bytes.len() / 3, bytes.len() / 2, bytes.len().saturating_sub(1)] {
                let mut damaged = bytes.clone();
                if let Some(byte) = damaged.get_mut(position) {
                    *byte ^= 0x10;
                }
                for damaged in [damaged, bytes[..position].to_vec()] {
                    std::fs::write(&path, damaged).unwrap();
                    let what = format!("{} at {position}", path.display());
                    let repository = open().await;
                    let report =
                        back_up(&repository, case.dir()).await.unwrap_or_else(|e| panic!("{what}: {e}"));
                    assert_eq!(report.problems, [], "{what}");
                    let snapshot = snapshot_of(&repository, &report).await;
                    tree::assert_same(
                        &expected,
                        &restored(&open().await, &snapshot, case.dir()).await,
                        &what,
                    );
                }
            }
        }
        world::assert_sound(&case.world.open().await, "after all").await;
    });
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for item in std::fs::read_dir(dir).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() { collect(&path, files) } else { files.push(path) }
    }
}
