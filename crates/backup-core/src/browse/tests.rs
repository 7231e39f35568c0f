use std::collections::BTreeMap;
use std::io::{self, Read};
use std::ops::ControlFlow;

use keepwell_catalog::{Entry, EntryKind, MapKey};
use keepwell_storage::{ObjectStore, Operation};
use proptest::prelude::*;

use super::*;
use crate::testing::{Part, Thing, TreeModel, World, back_up, block_on, key, noise, snapshot_of, tree_model};

async fn listed(tree: &Tree, at: &MapKey, depth: Depth) -> BTreeMap<MapKey, Entry> {
    let mut found = BTreeMap::new();
    let mut last = None;
    tree.list(at, depth, |key, entry| {
        assert!(last.as_ref() < Some(key), "the order of the tree");
        last = Some(key.clone());
        found.insert(key.clone(), entry.clone());
        ControlFlow::Continue(())
    })
    .await
    .unwrap();
    found
}

/// The entry without what only a repository knows.
fn bare(entry: &Entry) -> Entry {
    Entry { size: 0, content: Vec::new(), more_extents: 0, ..entry.clone() }
}

async fn tree_of(world: &World, model: &TreeModel) -> Tree {
    let report = back_up(&world.repository, model).await;
    assert_eq!(report.problems, []);
    let snapshot = snapshot_of(&world.repository, &report).await;
    world.repository.tree(&snapshot).await.unwrap()
}

async fn dumped(tree: &Tree, at: &MapKey) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    tree.dump_file(at, &mut out).await.map(|()| out)
}

async fn archived(tree: &Tree, at: &MapKey, format: ArchiveFormat) -> (Vec<u8>, ArchiveReport) {
    let mut out = Vec::new();
    let report = tree.dump_archive(at, format, &mut out).await.unwrap();
    (out, report)
}

/// A member of an archive: what it is, its mode, where it links to, its content.
type Unpacked = (tar::EntryType, u32, Vec<u8>, Vec<u8>);

/// The members of an archive by name.
fn unpacked(bytes: &[u8]) -> BTreeMap<Vec<u8>, Unpacked> {
    let mut archive = tar::Archive::new(bytes);
    let mut members = BTreeMap::new();
    for member in archive.entries().unwrap() {
        let mut member = member.unwrap();
        let mut data = Vec::new();
        member.read_to_end(&mut data).unwrap();
        let name = member.path_bytes().into_owned();
        let link = member.link_name_bytes().map(|l| l.into_owned()).unwrap_or_default();
        let mode = member.header().mode().unwrap();
        members.insert(name, (member.header().entry_type(), mode, link, data));
    }
    members
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_is_listed_dumped_and_archived_is_what_was_captured(model in tree_model()) {
        block_on(async {
            let world = World::new().await;
            let tree = tree_of(&world, &model).await;
            let all = listed(&tree, &MapKey::root(), Depth::All).await;
            let bare_all: BTreeMap<_, _> = all.iter().map(|(k, e)| (k.clone(), bare(e))).collect();
            let expected: BTreeMap<_, _> = model.0.iter().map(|(k, t)| (k.clone(), t.entry.clone())).collect();
            assert_eq!(bare_all, expected);
            let top: Vec<_> = listed(&tree, &MapKey::root(), Depth::Children).await.into_keys().collect();
            let expected: Vec<_> = model.0.keys().filter(|k| k.depth() == 1).cloned().collect();
            assert_eq!(top, expected);

            let (archive, report) = archived(&tree, &MapKey::root(), ArchiveFormat::Tar).await;
            let members = unpacked(&archive);
            assert_eq!(members.len() as u64, report.members);
            let mut archivable = 0;
            for (key, thing) in &model.0 {
                let carrier = thing.entry.hard_link.as_ref().unwrap_or(key);
                let bytes = model.0[carrier].bytes();
                match thing.entry.kind {
                    EntryKind::File | EntryKind::HardLink => assert!(dumped(&tree, key).await.unwrap() == bytes),
                    _ => assert!(matches!(dumped(&tree, key).await, Err(Error::Invalid(_)))),
                }
                let Ok(mut path) = key.to_os_path_bytes() else { continue };
                if thing.entry.kind == EntryKind::Directory {
                    path.push(b'/');
                }
                if thing.entry.kind == EntryKind::Socket {
                    continue;
                }
                archivable += 1;
                let (kind, mode, link, data) = &members[&path];
                assert_eq!(*mode, thing.entry.mode);
                match thing.entry.kind {
                    EntryKind::File => assert!(*data == bytes && *kind == tar::EntryType::Regular),
                    EntryKind::HardLink => {
                        assert_eq!(*kind, tar::EntryType::Link);
                        assert_eq!(*link, carrier.to_os_path_bytes().unwrap());
                    }
                    EntryKind::Symlink => assert_eq!(Some(link), thing.entry.link_target.as_ref()),
                    _ => assert!(data.is_empty()),
                }
            }
            assert_eq!(report.members, archivable);
        });
    }

    #[test]
    fn a_diff_is_what_the_models_differ_in(before in tree_model(), after in tree_model(), shared in tree_model()) {
        let join = |mut tree: TreeModel| {
            for (key, thing) in &shared.0 {
                let below = MapKey::from_components([b"shared".as_slice()]).unwrap();
                let moved = |key: &MapKey| MapKey::from_components(below.components().chain(key.components())).unwrap();
                let mut thing = thing.clone();
                thing.entry.hard_link = thing.entry.hard_link.as_ref().map(moved);
                tree.0.insert(moved(key), thing);
            }
            tree
        };
        let (before, after) = (join(before), join(after));
        block_on(async {
            let world = World::new().await;
            let first = back_up(&world.repository, &before).await;
            let second = back_up(&world.repository, &after).await;
            let (first, second) =
                (snapshot_of(&world.repository, &first).await, snapshot_of(&world.repository, &second).await);
            let mut kinds = BTreeMap::new();
            let summary = world.repository.diff(&first, &second, |change| {
                kinds.insert(change.key.clone(), change.kind);
                ControlFlow::Continue(())
            }).await.unwrap();
            assert_eq!(kinds, expected_changes(&before, &after));
            let count = |kind| kinds.values().filter(|k| **k == kind).count() as u64;
            let sum = |c: Count| c.files + c.directories + c.others;
            assert_eq!(sum(summary.added), count(ChangeKind::Added));
            assert_eq!(sum(summary.removed), count(ChangeKind::Removed));
            assert_eq!(sum(summary.changed), count(ChangeKind::Content));
            assert_eq!(sum(summary.touched), count(ChangeKind::Metadata));
            assert_eq!(sum(summary.retyped), count(ChangeKind::Type));
        });
    }
}

/// What a diff of two models should say.
fn expected_changes(before: &TreeModel, after: &TreeModel) -> BTreeMap<MapKey, ChangeKind> {
    let mut expected = BTreeMap::new();
    for key in before.0.keys().chain(after.0.keys()) {
        let (old, new) = (before.0.get(key), after.0.get(key));
        // A hard link's record says nothing about the content of its file.
        let record = |thing: Option<&Thing>| thing.map(|t| (t.entry.clone(), extents(t)));
        if record(old) == record(new) {
            continue;
        }
        let kind = match (old, new) {
            (None, _) => ChangeKind::Added,
            (_, None) => ChangeKind::Removed,
            (Some(old), Some(new)) => {
                let carrier = |tree: &TreeModel, thing: &Thing| match &thing.entry.hard_link {
                    Some(first) => tree.0[first].clone(),
                    None => thing.clone(),
                };
                let (old, new) = (carrier(before, old), carrier(after, new));
                let same = extents(&old) == extents(&new)
                    && old.entry.link_target == new.entry.link_target
                    && old.entry.device == new.entry.device;
                match (old.entry.kind == new.entry.kind, same) {
                    (false, _) => ChangeKind::Type,
                    (true, false) => ChangeKind::Content,
                    (true, true) => ChangeKind::Metadata,
                }
            }
        };
        expected.insert(key.clone(), kind);
    }
    expected
}

/// Content as extents see it: neighbouring data is one, a hole is not zeros.
fn extents(thing: &Thing) -> Vec<Part> {
    let mut out: Vec<Part> = Vec::new();
    for part in &thing.parts {
        match (out.last_mut(), part) {
            (Some(Part::Data(last)), Part::Data(data)) => last.extend_from_slice(data),
            _ => out.push(part.clone()),
        }
    }
    out
}

#[tokio::test]
async fn a_large_file_costs_few_requests() {
    let world = World::new().await;
    let data = noise(1, 6 << 20);
    let model = TreeModel::default().with("dir/large", Thing::file(data.clone()));
    let tree = tree_of(&world, &model).await;
    let entry = tree.entry(&key("dir/large")).await.unwrap().unwrap();
    assert!(entry.more_extents > 10, "thousands of chunks");
    world.store.reset();
    assert!(dumped(&tree, &key("dir/large")).await.unwrap() == data);
    let calls = world.store.snapshot().under(Operation::GetRange, "data");
    assert!(calls.calls <= 16, "{} requests", calls.calls);
    assert!(calls.bytes <= 8 << 20, "{} bytes", calls.bytes);
}

#[tokio::test]
async fn nothing_opens_for_a_credential_that_cannot_decrypt() {
    let world = World::new().await;
    let report = back_up(&world.repository, &TreeModel::default().with("a", Thing::file("x"))).await;
    let readable = snapshot_of(&world.repository, &report).await;
    let writer = world.enrol_writer().await;
    let sealed = snapshot_of(&writer, &report).await;
    for snapshot in [&sealed, &readable] {
        assert!(matches!(writer.tree(snapshot).await, Err(Error::NotAllowed { .. })));
        let diff = writer.diff(snapshot, snapshot, |_| ControlFlow::Continue(())).await;
        assert!(matches!(diff, Err(Error::NotAllowed { .. })));
        assert!(matches!(writer.snapshot_source(snapshot).await, Err(Error::NotAllowed { .. })));
    }
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let world = World::new().await;
    let tree = tree_of(&world, &TreeModel::default().with("a/b", Thing::file("x"))).await;
    let absent = key("a/c");
    assert_eq!(tree.entry(&absent).await.unwrap(), None);
    let failed = [
        tree.dump_file(&absent, &mut io::sink()).await.unwrap_err(),
        tree.dump_archive(&absent, ArchiveFormat::Tar, &mut io::sink()).await.unwrap_err(),
        tree.list(&absent, Depth::All, |_, _| ControlFlow::Continue(())).await.unwrap_err(),
        tree.list(&absent, Depth::Children, |_, _| ControlFlow::Continue(())).await.unwrap_err(),
        tree.resolve(&absent).await.unwrap_err(),
    ];
    for error in failed {
        assert!(matches!(&error, Error::NoSuchPath { path, .. } if path == "/a/c"), "{error}");
    }
    assert_eq!(listed(&tree, &key("a/b"), Depth::All).await.len(), 0, "a file has nothing below it");
}

#[tokio::test]
async fn a_visitor_and_an_output_may_break_off() {
    let world = World::new().await;
    let mut model = TreeModel::default().with("large", Thing::file(noise(1, 3 << 20)));
    for n in 0..3000 {
        model = model.with(&format!("dir/{n:04}"), Thing::new(EntryKind::Fifo));
    }
    let tree = tree_of(&world, &model).await;
    let mut seen = 0;
    let stop = |_: &MapKey, _: &Entry| {
        seen += 1;
        if seen == 10 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    tree.list(&MapKey::root(), Depth::All, stop).await.unwrap();
    assert_eq!(seen, 10);

    struct Full(usize);
    impl io::Write for Full {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(data.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(data.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let file = tree.dump_file(&key("large"), &mut Full(1 << 20)).await;
    let archive = tree.dump_archive(&MapKey::root(), ArchiveFormat::TarZst, &mut Full(1 << 20)).await;
    for error in [file.unwrap_err(), archive.unwrap_err()] {
        assert!(matches!(&error, Error::Output(e) if e.kind() == io::ErrorKind::StorageFull), "{error:?}");
    }
}

#[tokio::test]
async fn a_dump_ends_before_the_first_lost_byte() {
    let world = World::new().await;
    let data = noise(9, 1 << 20);
    let tree = tree_of(&world, &TreeModel::default().with("f", Thing::file(data.clone()))).await;
    for name in world.names("data/").await {
        world.delete(&name).await;
    }
    let mut out = Vec::new();
    let error = tree.dump_file(&key("f"), &mut out).await.unwrap_err();
    assert!(matches!(error, Error::ChunkLost { .. }), "{error}");
    assert!(data.starts_with(&out));
    let archive = tree.dump_archive(&MapKey::root(), ArchiveFormat::TarGz, &mut io::sink()).await;
    assert!(matches!(archive, Err(Error::ChunkLost { .. })));
}

#[tokio::test]
async fn a_bit_flip_in_a_pack_is_never_dumped() {
    let world = World::new().await;
    let data = noise(3, 300_000);
    let tree = tree_of(&world, &TreeModel::default().with("f", Thing::file(data.clone()))).await;
    for name in world.names("data/").await {
        let name = name.parse().unwrap();
        let mut bytes = world.store.get(&name).await.unwrap().to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        world.store.delete(&name).await.unwrap();
        world.store.put_new(&name, bytes.into()).await.unwrap();
    }
    let mut out = Vec::new();
    assert!(tree.dump_file(&key("f"), &mut out).await.is_err());
    assert!(data.starts_with(&out) && out.len() < data.len());
}

#[tokio::test]
async fn an_archive_of_a_part_carries_links_into_it() {
    let world = World::new().await;
    let model = TreeModel::default()
        .with("a/first", Thing::file("content"))
        .with("b/one", Thing::link("a/first"))
        .with("b/two", Thing::link("a/first"));
    let tree = tree_of(&world, &model).await;
    let members = unpacked(&archived(&tree, &key("b"), ArchiveFormat::Tar).await.0);
    assert_eq!(members.len(), 2);
    assert_eq!(members[&b"one"[..]].3, b"content");
    assert_eq!(members[&b"two"[..]].0, tar::EntryType::Link);
    assert_eq!(members[&b"two"[..]].2, b"one");
    let single = unpacked(&archived(&tree, &key("b/two"), ArchiveFormat::Tar).await.0);
    assert_eq!(single[&b"two"[..]].3, b"content", "one thing comes under its own name");
    assert_eq!(tree.resolve(&key("b/two")).await.unwrap().0, key("a/first"));
}

#[tokio::test]
async fn a_further_name_by_itself_is_archived_whole() {
    let world = World::new().await;
    let mut symlink = Thing::new(EntryKind::Symlink);
    symlink.entry.link_target = Some(b"elsewhere".to_vec());
    let model = TreeModel::default()
        .with("d/a", Thing::file("content"))
        .with("d/b", Thing::link("d/a"))
        .with("s", symlink)
        .with("t/u", Thing::link("s"));
    let tree = tree_of(&world, &model).await;
    // The first name stands beside it, and is not in the archive.
    let single = unpacked(&archived(&tree, &key("d/b"), ArchiveFormat::Tar).await.0);
    let file = (tar::EntryType::Regular, 0o640, Vec::new(), b"content".to_vec());
    assert_eq!(single, BTreeMap::from([(b"b".to_vec(), file)]));
    for part in ["t", "t/u"] {
        let members = unpacked(&archived(&tree, &key(part), ArchiveFormat::Tar).await.0);
        let link = (tar::EntryType::Symlink, 0o640, b"elsewhere".to_vec(), Vec::new());
        assert_eq!(members, BTreeMap::from([(b"u".to_vec(), link)]), "{part}");
    }
}

#[tokio::test]
async fn archives_are_the_same_every_time_and_decompress_to_one_another() {
    let world = World::new().await;
    let mut sparse = Thing::file("begin");
    sparse.parts.push(Part::Hole(700_000));
    let tree =
        tree_of(&world, &TreeModel::default().with("d/sparse", sparse).with("d/x", Thing::file("y"))).await;
    let (plain, report) = archived(&tree, &MapKey::root(), ArchiveFormat::Tar).await;
    assert_eq!((report.members, report.content_bytes), (3, 700_006));
    for format in [ArchiveFormat::Tar, ArchiveFormat::TarGz, ArchiveFormat::TarZst] {
        let (once, _) = archived(&tree, &MapKey::root(), format).await;
        assert!(once == archived(&tree, &MapKey::root(), format).await.0, "{format:?}");
        let unpacked = match format {
            ArchiveFormat::Tar => once,
            ArchiveFormat::TarGz => {
                let mut out = Vec::new();
                flate2::read::GzDecoder::new(&once[..]).read_to_end(&mut out).unwrap();
                out
            }
            ArchiveFormat::TarZst => zstd::decode_all(&once[..]).unwrap(),
        };
        assert!(unpacked == plain, "{format:?}");
    }
}

#[tokio::test]
async fn attributes_times_and_owners_travel_as_pax_records() {
    let world = World::new().await;
    let mut thing = Thing::file("x");
    thing.entry.xattrs = vec![(b"user.k=1".to_vec(), b"v\xff".to_vec())];
    thing.entry.mtime = (-2, 500_000_000);
    thing.entry.uid = u32::MAX;
    thing.entry.user = Some("j\u{fc}rgen".into());
    let name = "l".repeat(150);
    let tree = tree_of(&world, &TreeModel::default().with(&name, thing)).await;
    let (archive, _) = archived(&tree, &MapKey::root(), ArchiveFormat::Tar).await;
    let mut archive = tar::Archive::new(&archive[..]);
    let mut member = archive.entries().unwrap().next().unwrap().unwrap();
    let records: BTreeMap<String, Vec<u8>> = member
        .pax_extensions()
        .unwrap()
        .unwrap()
        .map(|r| r.map(|r| (r.key().unwrap().to_owned(), r.value_bytes().to_vec())).unwrap())
        .collect();
    let expected: [(&str, &[u8]); 5] = [
        ("SCHILY.xattr.user.k%3D1", b"v\xff"),
        ("mtime", b"-1.500000000"),
        ("path", name.as_bytes()),
        ("uid", b"4294967295"),
        ("uname", "j\u{fc}rgen".as_bytes()),
    ];
    assert_eq!(records.iter().map(|(k, v)| (k.as_str(), v.as_slice())).collect::<Vec<_>>(), expected);
}
