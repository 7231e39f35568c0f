//! What a writer needs in memory where a repository is large: `many-packs make DIRECTORY PACKS CHUNKS SEGMENT SNAPSHOTS`
//! makes one whose index lists PACKS packs of CHUNKS chunks each, in segments of SEGMENT packs, with as many commits as
//! SNAPSHOTS; `many-packs back-up DIRECTORY MEGABYTES` backs up so much into it and prints the peak of this process.
//!
//! Packs are listed and do not exist: a writer never asks for them. Everything else is what the engine itself writes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use backup_core::{BackupOptions, Cache, CreateOptions, Created, Limits, Repository};
use keepwell_benches::Tree;
use keepwell_catalog::{
    Commit, CommitKind, ContentName, IndexEntry, PackClass, PackRef, SegmentBuilder, dataset_tag, names,
};
use keepwell_crypto::keyfile::KeyFile;
use keepwell_crypto::{ChunkId, Digest, IdKey, MemberId, Signed, SigningKey, SnapshotId};
use keepwell_storage::{LocalFs, LocalOptions, ObjectStore, Recording};

/// Size of a file of the tree that is backed up.
const FILE_BYTES: usize = 3 << 20;
/// Of the writer. Each holds a pack, a buffer and a compressor: with as many as there are processors the peak would say
/// more of the machine than of the repository.
const THREADS: usize = 2;

/// That of the two programs: what a user meets is measured, not what the C library keeps for threads that were.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    keepwell_storage::raise_file_limit();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["make", directory, packs, chunks, segment, snapshots] => {
            let size = Size {
                packs: packs.parse()?,
                chunks: chunks.parse()?,
                segment: segment.parse()?,
                snapshots: snapshots.parse()?,
            };
            make(Path::new(directory), &size).await
        }
        ["back-up", directory, megabytes] => back_up(Path::new(directory), megabytes.parse()?).await,
        _ => bail!("many-packs make DIRECTORY PACKS CHUNKS SEGMENT SNAPSHOTS | back-up DIRECTORY MEGABYTES"),
    }
}

/// How large the repository is.
struct Size {
    packs: u64,
    /// In each pack.
    chunks: u64,
    /// Packs in each segment.
    segment: u64,
    snapshots: u64,
}

fn store_at(directory: &Path) -> PathBuf {
    directory.join("store")
}

async fn make(directory: &Path, size: &Size) -> Result<()> {
    ensure!(size.packs > 0 && size.chunks > 0 && size.segment > 0, "there must be some of each");
    let store = LocalFs::create(&store_at(directory), &LocalOptions::default()).await?;
    let options =
        CreateOptions { owner: "bench".into(), member: "bench".into(), store_hint: None, probe: None };
    let key = Created::generate(&options, 0)?.store(&store).await?;
    std::fs::write(directory.join("key"), key.to_toml().expose())?;
    let repository = Repository::builder(Arc::new(store)).open(key.clone()).await?;
    let signing = &key.member.as_ref().context("a member's key")?.signing;
    let mut first = 0;
    while first < size.packs {
        let last = size.packs.min(first + size.segment);
        write_segment(directory, &repository, signing, first..last, size.chunks)?;
        first = last;
    }
    write_commits(directory, &repository, signing, size.snapshots)
}

/// As the store would, but for the syncs: a hundred times as fast.
fn put(directory: &Path, key: &keepwell_storage::Key, body: &[u8]) -> Result<()> {
    let path = store_at(directory).join(key.as_str());
    std::fs::create_dir_all(path.parent().context("a key has a folder")?)?;
    Ok(std::fs::write(path, body)?)
}

fn random(of: &str, n: u64) -> [u8; 32] {
    *blake3::Hasher::new().update(of.as_bytes()).update(&n.to_le_bytes()).finalize().as_bytes()
}

fn write_segment(
    directory: &Path,
    repository: &Repository,
    signing: &SigningKey,
    packs: std::ops::Range<u64>,
    chunks: u64,
) -> Result<()> {
    let chain = repository.chain();
    let group = chain.groups().next().context("there is a group")?;
    let domain = chain.domains().next().context("there is a domain")?.id;
    let mut builder = SegmentBuilder::new(group.id, PackClass::Data);
    for pack in packs {
        let name = ContentName::new(&Digest::from_bytes(random("pack", pack)), [0; 4]);
        let number = builder.add_pack(PackRef { name, size: 16 << 20, header_len: 200, domain });
        for chunk in 0..chunks {
            builder.add(IndexEntry {
                id: ChunkId::from_bytes(random("chunk", pack * chunks + chunk)),
                pack: number,
                frame_offset: (chunk << 20) as u32,
                frame_length: 1 << 20,
                offset: 0,
                length: 1 << 20,
            });
        }
    }
    let plain = builder.finish(repository.id(), signing, Vec::new())?;
    let sealed = keepwell_crypto::seal(std::slice::from_ref(&group.recipient), &plain)?;
    let name = names::content_name(&Digest::of(&sealed), [0; 4]);
    put(directory, &names::index_key(group.id, &name), &sealed)
}

/// Commits of one writer, each of which names the one before.
fn write_commits(
    directory: &Path,
    repository: &Repository,
    signing: &SigningKey,
    snapshots: u64,
) -> Result<()> {
    let writer: MemberId = signing.member_id();
    let group = repository.chain().groups().next().map(|group| group.id);
    let mut previous = Vec::new();
    for n in 0..snapshots {
        let commit = Commit {
            store: repository.store_id(),
            writer,
            n,
            kind: CommitKind::Snapshot,
            time: n as i64,
            previous,
            seen: Vec::new(),
            manifest: Some(ContentName::new(&Digest::from_bytes(random("manifest", n)), [0; 4])),
            snapshot: Some(SnapshotId::from_bytes(random("snapshot", n))),
            list: None,
            group,
            complete: true,
            logical_bytes: 0,
            capture: Some(n as i64),
            origin: None,
            state: Vec::new(),
            dataset_tag: Some(dataset_tag(&IdKey::from_bytes([0; 32]), "another")),
            supersedes: Vec::new(),
        };
        let signed = Signed::sign(signing, repository.id(), Commit::KIND, commit.encode()).to_bytes();
        previous = vec![(n, Digest::of(&signed))];
        put(directory, &names::commit_key(writer, n), &signed)?;
    }
    Ok(())
}

async fn back_up(directory: &Path, megabytes: usize) -> Result<()> {
    let store = LocalFs::open(&store_at(directory), &LocalOptions::default()).await?;
    let key = KeyFile::parse(&std::fs::read_to_string(directory.join("key"))?)?;
    let store = Arc::new(Recording::new(store));
    let shared: Arc<dyn ObjectStore> = Arc::clone(&store) as _;
    let limits = Limits { threads: THREADS, ..Limits::default() };
    let builder = Repository::builder(shared).cache(Cache::directory(directory.join("cache"))).limits(limits);
    let repository = builder.open(key).await?;
    let tree = Tree::generate(20, 50, (megabytes * 1_000_000 / FILE_BYTES) as u64)?;
    let limit = repository.limits().memory_bytes;
    let report = repository.backup(Arc::new(tree), BackupOptions::default()).await?;
    println!("stored {} bytes with {}", report.statistics.new_stored_bytes, store.reset());
    println!("limit {} KiB", limit >> 10);
    println!("peak {} KiB", peak_kib()?);
    Ok(())
}

fn peak_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
