//! What decompresses to far more than it should: refused, with little memory and before the test's limit of time. One
//! test, so that the process's memory is its own.
#![allow(clippy::unwrap_used)]

use std::io::Read;

use backup_core::pack::PackWriter;
use backup_core::{CheckOptions, ReadData, SnapshotState};
use keepwell_catalog::{Commit, CommitKind, PackClass, SegmentBuilder, names, snapshot_id};
use keepwell_crypto::{Digest, Signed};
use keepwell_e2e::{run, tree, world};
use keepwell_storage::{Key, ObjectStore};
use world::{World, back_up, snapshot_of};

const GIB: u64 = 1 << 30;

/// Zeros by the gibibyte, with their size in the header.
fn zeros(bytes: u64) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.set_pledged_src_size(Some(bytes)).unwrap();
    encoder.include_contentsize(true).unwrap();
    std::io::copy(&mut std::io::repeat(0).take(bytes), &mut encoder).unwrap();
    encoder.finish().unwrap()
}

/// The most memory that this process ever had, in MiB.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

async fn put(world: &World, key: &Key, bytes: Vec<u8>) {
    let _ = world.store.delete(key).await;
    world.store.put_new(key, bytes.into()).await.unwrap();
}

#[test]
fn bombs_do_not_go_off() {
    run(async {
        let world = World::new().await;
        let repository = world.open().await;
        let source = tempfile::tempdir().unwrap();
        tree::put(source.path(), "large", 1, 250 << 10); // one chunk, wherever its content could be cut
        tree::put(source.path(), "small", 2, 70 << 10);
        let report = back_up(&repository, source.path()).await.unwrap();
        let snapshot = snapshot_of(&repository, &report).await;
        let bomb = zeros(2 * GIB);
        let before = peak_mib();

        // A frame of two gibibytes in the place of every chunk, in a pack and an index that are otherwise sound.
        let bombed = world.fork();
        with_frame(&bombed, &repository, &bomb).await;
        let victim = bombed.open().await;
        let to = tempfile::tempdir().unwrap();
        let report = world::restore(&victim, &snapshot, source.path(), to.path()).await.unwrap();
        assert_eq!(report.problem_count, 2, "{report:?}");
        assert_eq!(tree::read(to.path()).len(), 0);
        let checked = victim.check(CheckOptions { read: ReadData::Everything }).await.unwrap();
        assert!(!checked.is_sound());

        // A manifest of two gibibytes, and an index segment of as many.
        let bombed = world.fork();
        with_manifest(&bombed, &snapshot.commit, &bomb).await;
        let victim = bombed.open().await;
        let listed = victim.snapshots().await.unwrap();
        assert!(listed.iter().any(|s| matches!(s.state, SnapshotState::Damaged(_))));
        let sound = listed.iter().find(|s| s.id == snapshot.id).unwrap();
        let found = world::restored(&victim, sound, source.path()).await;
        tree::assert_same(&tree::read(source.path()), &found, "beside a bomb");
        drop(backup_core::scrub(&bombed.store, None, true).await.unwrap());

        let grown = peak_mib() - before;
        assert!(grown < 300, "{grown} MiB more");
    });
}

/// Puts the bomb in the place of all content.
async fn with_frame(world: &World, repository: &backup_core::Repository, bomb: &[u8]) {
    let chain = repository.chain();
    let (group, domain) = (chain.groups().next().unwrap(), chain.domains().next().unwrap());
    let signing = &world.key.member.as_ref().unwrap().signing;
    let mut builder = SegmentBuilder::new(group.id, PackClass::Data);
    let identity = &world.key.member.as_ref().unwrap().identity;
    for (id, length) in chunks(world, repository, identity).await {
        let mut pack = PackWriter::new(PackClass::Data, domain.id, &domain.recipient, 1 << 20).unwrap();
        pack.append(bomb, usize::try_from(2 * GIB).unwrap(), &[(id, length)]).unwrap();
        let finished = pack.finish([7; 4]).unwrap();
        let number = builder.add_pack(finished.reference);
        for entry in finished.entries {
            builder.add(keepwell_catalog::IndexEntry { pack: number, ..entry });
        }
        let key = names::pack_key(PackClass::Data, &finished.reference.name);
        put(world, &key, finished.bytes.to_vec()).await;
    }
    let plain = builder.finish(repository.id(), signing, Vec::new()).unwrap();
    let sealed = keepwell_crypto::seal(std::slice::from_ref(&group.recipient), &plain).unwrap();
    let name = names::content_name(&Digest::of(&sealed), [7; 4]);
    put(world, &names::index_key(group.id, &name), sealed).await;
}

/// The content chunks that the index knows; their packs and segments are removed.
async fn chunks(
    world: &World,
    repository: &backup_core::Repository,
    identity: &keepwell_crypto::Identity,
) -> Vec<(keepwell_crypto::ChunkId, u32)> {
    let member = repository.access().member().unwrap();
    let reference = repository.chain().keyring(&member).unwrap().name.clone();
    let sealed = world.store.get(&reference.parse().unwrap()).await.unwrap();
    let opened = keepwell_catalog::open_record(std::slice::from_ref(identity), &sealed, 1 << 20).unwrap();
    let keyring = keepwell_crypto::keyring::Keyring::from_bytes(&opened).unwrap();
    let mut found = Vec::new();
    for name in world.names("index/").await {
        let key: Key = name.parse().unwrap();
        let sealed = world.store.get(&key).await.unwrap();
        let plain = keepwell_crypto::open(&keyring.groups[0].index_identities, &sealed, 1 << 24).unwrap();
        let segment =
            keepwell_catalog::Segment::open(Box::new(bytes::Bytes::from(plain)), &|_, _, _| Ok(())).unwrap();
        if segment.class() == PackClass::Data {
            found.extend(segment.iter().map(|item| item.unwrap().1).map(|entry| (entry.id, entry.length)));
            world.store.delete(&key).await.unwrap();
        }
    }
    for name in world.names("data/").await {
        world.store.delete(&name.parse().unwrap()).await.unwrap();
    }
    assert_eq!(found.len(), 2);
    found
}

/// Commits a snapshot whose manifest is the bomb, and lays an index segment of the same kind beside it.
async fn with_manifest(world: &World, like: &Commit, bomb: &[u8]) {
    let repository = world.open().await;
    let chain = repository.chain();
    let (group, domain) = (chain.groups().next().unwrap(), chain.domains().next().unwrap());
    let sealed = keepwell_crypto::seal(std::slice::from_ref(&domain.recipient), bomb).unwrap();
    let name = names::content_name(&Digest::of(&sealed), [9; 4]);
    put(world, &names::manifest_key(&name), sealed).await;
    let commit = Commit {
        n: like.n + 1,
        kind: CommitKind::Snapshot,
        manifest: Some(name),
        snapshot: Some(snapshot_id(b"bomb")),
        list: None,
        ..like.clone()
    };
    let signing = &world.key.member.as_ref().unwrap().signing;
    let signed = Signed::sign(signing, repository.id(), Commit::KIND, commit.encode()).to_bytes();
    put(world, &names::commit_key(commit.writer, commit.n), signed).await;
    let sealed = keepwell_crypto::seal(std::slice::from_ref(&group.recipient), bomb).unwrap();
    let name = names::content_name(&Digest::of(&sealed), [9; 4]);
    put(world, &names::index_key(group.id, &name), sealed).await;
}
