//! Measures an index of a given size: `index_scale <entries> [<entries per segment> [<directory>]]`.
//!
//! Streams segments to disk, opens them as one `IndexSet` with default memory, does a million lookups, half of them
//! hits, and prints rates and the peak memory of the whole process. 100 million entries take 4.6 GB of disk and 264 MB
//! of memory (writing them included), of which 125 MB are filters and 88 MB the names of 1.6 million packs.

use std::error::Error;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::time::Instant;

use keepwell_catalog::{
    ContentName, IndexEntry, IndexSet, PackClass, PackRef, PackSet, Segment, SortedSegmentWriter,
};
use keepwell_crypto::{ChunkId, Digest, DomainId, GroupId, RepositoryId, SigningKey, verify_detached};

const REPOSITORY: RepositoryId = RepositoryId::from_bytes([1; 16]);
const GROUP: GroupId = GroupId::from_bytes([2; 4]);
/// Chunks of 1 MiB in packs of 64 MiB.
const CHUNKS_PER_PACK: u64 = 64;
const LOOKUPS: u64 = 500_000;

#[expect(clippy::disallowed_methods, reason = "a program may look where temporary files go")]
fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let entries: u64 = arguments.next().ok_or("how many entries?")?.parse()?;
    let per_segment: u64 = arguments.next().map_or(Ok(10_000_000), |text| text.parse())?;
    let directory = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let scratch = tempfile::tempdir_in(directory)?;
    let key = SigningKey::generate();

    let began = Instant::now();
    let mut sizes = Vec::new();
    let mut stored_bytes = 0;
    while sizes.iter().sum::<u64>() < entries {
        let size = per_segment.min(entries - sizes.iter().sum::<u64>());
        stored_bytes += build(scratch.path(), sizes.len() as u64, size, &key)?;
        sizes.push(size);
    }
    let seconds = began.elapsed().as_secs_f64();
    println!("{entries} entries in {} segments of {:.2} GB", sizes.len(), stored_bytes as f64 / 1e9);
    println!("build   {seconds:.1} s, {:.0} entries/s", entries as f64 / seconds);

    let began = Instant::now();
    let index = open(scratch.path(), sizes.len() as u64, &key)?;
    println!("open    {:.2} s", began.elapsed().as_secs_f64());
    measure(&index, &sizes)?;
    println!("memory  {} at its peak", peak_memory()?);
    Ok(())
}

fn measure(index: &IndexSet, sizes: &[u64]) -> Result<(), Box<dyn Error>> {
    let dead = PackSet::default();
    let hit = |n: u64| {
        let segment = mix(n) % sizes.len() as u64;
        id(segment, mix(n + LOOKUPS) % sizes[segment as usize], sizes[segment as usize])
    };
    let miss = |n: u64| id(u64::MAX, n, LOOKUPS);
    for (name, which) in [("hits", &hit as &dyn Fn(u64) -> ChunkId), ("misses", &miss)] {
        let ids: Vec<ChunkId> = (0..LOOKUPS).map(which).collect();
        let began = Instant::now();
        let mut found = 0;
        for id in &ids {
            found += u64::from(index.contains_live(id, &dead)?);
        }
        let rate = LOOKUPS as f64 / began.elapsed().as_secs_f64();
        println!("{name:7} {rate:.0} lookups/s");
        if found != if name == "hits" { LOOKUPS } else { 0 } {
            return Err(format!("{found} of {LOOKUPS} {name} were found").into());
        }
    }
    Ok(())
}

fn path(directory: &Path, segment: u64) -> PathBuf {
    directory.join(format!("segment-{segment}"))
}

fn build(directory: &Path, segment: u64, size: u64, key: &SigningKey) -> Result<u64, Box<dyn Error>> {
    let file = BufWriter::new(File::create(path(directory, segment))?);
    let mut writer = SortedSegmentWriter::new(file, GROUP, PackClass::Data, size)?;
    let packs: Vec<u32> =
        (0..size.div_ceil(CHUNKS_PER_PACK)).map(|n| writer.add_pack(pack(segment, n))).collect();
    for n in 0..size {
        let random = mix(segment ^ mix(n));
        writer.push(IndexEntry {
            id: id(segment, n, size),
            pack: packs[random as usize % packs.len()],
            frame_offset: (random >> 20) as u32 & 0x03ff_ffff,
            frame_length: (random >> 40) as u32 & 0x000f_ffff,
            offset: 0,
            length: 1 << 20,
        })?;
    }
    let file = writer.finish(REPOSITORY, key, Vec::new())?.into_inner()?;
    Ok(file.metadata()?.len())
}

fn open(directory: &Path, segments: u64, key: &SigningKey) -> Result<IndexSet, Box<dyn Error>> {
    let verifying = key.verifying_key();
    let index = IndexSet::new(IndexSet::DEFAULT_MEMORY_BUDGET_BYTES);
    for segment in 0..segments {
        let file = File::open(path(directory, segment))?;
        let opened = Segment::open(Box::new(file), &|_, tables, signature| {
            Ok(verify_detached(&verifying, REPOSITORY, "index", tables, signature)?)
        })?;
        index.add(&segment.to_string(), opened)?;
    }
    Ok(index)
}

/// The n-th of `size` random ids of a segment, in ascending order.
fn id(segment: u64, n: u64, size: u64) -> ChunkId {
    let step = u64::MAX / size;
    let seed = mix(segment.wrapping_mul(0x1234_5678_9abc_def1) ^ n);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(n * step + seed % step).to_be_bytes());
    for (at, part) in (1..).zip(bytes[8..].chunks_exact_mut(8)) {
        part.copy_from_slice(&mix(seed + at).to_le_bytes());
    }
    ChunkId::from_bytes(bytes)
}

fn pack(segment: u64, n: u64) -> PackRef {
    let digest = Digest::from_bytes(*id(!segment, n, 1 << 40).as_bytes());
    PackRef {
        name: ContentName::new(&digest, [0; 4]),
        size: 64 << 20,
        header_len: 200,
        domain: DomainId::from_bytes([3; 4]),
    }
}

/// The finalizer of SplitMix64.
fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

fn peak_memory() -> Result<String, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    Ok(line.ok_or("no VmHWM")?.trim().to_owned())
}
