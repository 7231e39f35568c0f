//! The parts: chunks, frames, packs, index, map.

use anyhow::{Context, Result, ensure};
use backup_core::chunker::{ChunkSizes, Chunker};
use backup_core::pack::{FinishedPack, PackDirectory, PackWriter, chunk_from_frame, decode_frame};
use keepwell_catalog::{
    ContentName, Entry, EntryKind, IndexEntry, IndexSet, MapBuilder, MapKey, MapReader, MemoryNodes,
    PackClass, PackRef, PackSet, Root, Segment, SegmentBuilder, push_entry,
};
use keepwell_crypto::{
    ChunkId, ChunkKind, Digest, DomainId, GroupId, IdKey, Identity, RepositoryId, SigningKey, open,
    verify_detached,
};

use crate::{Bench, Work, noise, text, timed};

const CHUNK_BYTES: usize = 1 << 20;
const LEVEL: i32 = 2;
const PACK_CHUNKS: u64 = 16;
const INDEX_ENTRIES: u64 = 50_000;
const LOOKUPS: u64 = 10_000;
const MAP_ENTRIES: u64 = 20_000;

pub(crate) fn all() -> Result<Vec<Bench>> {
    Ok(vec![
        chunker(),
        chunk_id(),
        frame("frame compress", true),
        frame("frame decompress", false),
        pack_seal(),
        pack_open()?,
        index_lookup("index lookup hit", 0)?,
        index_lookup("index lookup miss", INDEX_ENTRIES)?,
        map_build(),
        map_read()?,
    ])
}

fn id_key() -> IdKey {
    IdKey::from_bytes([7; 32])
}

fn chunker() -> Bench {
    let data = noise(1, 32 << 20);
    let chunker = Chunker::new(id_key().gear_table(), ChunkSizes::FILES);
    Bench::new("chunker", move || {
        let (items, took) = timed(|| {
            let (mut rest, mut chunks) = (&data[..], 0);
            while let Some(length) = chunker.cut(rest, true) {
                rest = &rest[length..];
                chunks += 1;
            }
            Ok(chunks)
        })?;
        Ok(Work { items, bytes: data.len() as u64, took, ..Work::default() })
    })
}

fn chunk_id() -> Bench {
    let data = noise(2, 32 << 20);
    let key = id_key();
    Bench::new("chunk id", move || {
        let (ids, took) = timed(|| {
            Ok(data
                .chunks(CHUNK_BYTES)
                .map(|chunk| key.chunk_id(ChunkKind::Content, chunk))
                .collect::<Vec<_>>())
        })?;
        Ok(Work { items: ids.len() as u64, bytes: data.len() as u64, took, ..Work::default() })
    })
}

fn frame(name: &'static str, compress: bool) -> Bench {
    let plain = text(3, CHUNK_BYTES);
    Bench::new(name, move || {
        let (stored, mut took) = timed(|| Ok(zstd::bulk::compress(&plain, LEVEL)?))?;
        if !compress {
            let decoded;
            (decoded, took) = timed(|| Ok(decode_frame(&stored, Some(plain.len()))?))?;
            ensure!(decoded == plain, "a frame decodes to something else");
        }
        Ok(Work {
            items: 1,
            bytes: plain.len() as u64,
            stored_bytes: stored.len() as u64,
            took,
            ..Work::default()
        })
    })
}

/// Chunks with their ids and frames.
struct Packed {
    frames: Vec<(ChunkId, Vec<u8>)>,
    identity: Identity,
}

impl Packed {
    fn new() -> Result<Self> {
        let key = id_key();
        let mut frames = Vec::new();
        for n in 0..PACK_CHUNKS {
            let chunk = noise(n, CHUNK_BYTES);
            frames.push((key.chunk_id(ChunkKind::Content, &chunk), zstd::bulk::compress(&chunk, LEVEL)?));
        }
        Ok(Self { frames, identity: Identity::generate() })
    }

    fn seal(&self) -> Result<FinishedPack> {
        let recipient = self.identity.recipient();
        let capacity = (PACK_CHUNKS as usize + 1) * CHUNK_BYTES;
        let mut writer =
            PackWriter::new(PackClass::Data, DomainId::from_bytes([1; 4]), &recipient, capacity)?;
        for (id, stored) in &self.frames {
            writer.append(stored, CHUNK_BYTES, &[(*id, CHUNK_BYTES as u32)])?;
        }
        Ok(writer.finish([0; 4])?)
    }

    fn work(&self, pack: &FinishedPack) -> Work {
        Work {
            items: PACK_CHUNKS,
            bytes: PACK_CHUNKS * CHUNK_BYTES as u64,
            stored_bytes: pack.bytes.len() as u64,
            ..Work::default()
        }
    }
}

fn pack_seal() -> Bench {
    let mut packed = None;
    Bench::new("pack seal", move || {
        let packed = match &mut packed {
            Some(packed) => packed,
            none => none.insert(Packed::new()?),
        };
        let (pack, took) = timed(|| packed.seal())?;
        Ok(Work { took, ..packed.work(&pack) })
    })
}

fn pack_open() -> Result<Bench> {
    let packed = Packed::new()?;
    let (pack, key) = (packed.seal()?, id_key());
    Ok(Bench::new("pack open", move || {
        let ((), took) = timed(|| {
            let identities = std::slice::from_ref(&packed.identity);
            let plain = open(identities, &pack.bytes, pack.bytes.len() as u64)?;
            let mut at = 0;
            for frame in PackDirectory::of_plaintext(&plain)?.frames {
                let end = at + frame.stored as usize;
                let decoded = decode_frame(&plain[at..end], Some(frame.plain as usize))?;
                let (id, length) = frame.chunks[0];
                chunk_from_frame(&decoded, 0, length, &id, ChunkKind::Content, &key)?;
                at = end;
            }
            Ok(())
        })?;
        Ok(Work { took, ..packed.work(&pack) })
    }))
}

fn numbered_id(n: u64) -> ChunkId {
    id_key().chunk_id(ChunkKind::Content, &n.to_le_bytes())
}

fn index() -> Result<IndexSet> {
    let (repository, signing) = (RepositoryId::from_bytes([1; 16]), SigningKey::generate());
    let mut builder = SegmentBuilder::new(GroupId::from_bytes([2; 4]), PackClass::Data);
    let pack = builder.add_pack(PackRef {
        name: ContentName::new(&Digest::of(b"a pack"), [0; 4]),
        size: 64 << 20,
        header_len: 200,
        domain: DomainId::from_bytes([3; 4]),
    });
    for n in 0..INDEX_ENTRIES {
        let (frame_offset, length) = ((n as u32) << 8, 1 << 20);
        let id = numbered_id(n);
        builder.add(IndexEntry { id, pack, frame_offset, frame_length: 256, offset: 0, length });
    }
    let plain = builder.finish(repository, &signing, Vec::new())?;
    let key = signing.verifying_key();
    let segment = Segment::open(Box::new(bytes::Bytes::from(plain)), &|_, tables, signature| {
        Ok(verify_detached(&key, repository, "index", tables, signature)?)
    })?;
    let index = IndexSet::new(IndexSet::DEFAULT_MEMORY_BUDGET_BYTES);
    index.add("segment", segment)?;
    Ok(index)
}

fn index_lookup(name: &'static str, first: u64) -> Result<Bench> {
    let index = index()?;
    let ids: Vec<ChunkId> = (first..first + LOOKUPS).map(numbered_id).collect();
    Ok(Bench::new(name, move || {
        let (found, took) = timed(|| {
            let dead = PackSet::default();
            let mut found = 0;
            for id in &ids {
                found += u64::from(index.contains_live(id, &dead)?);
            }
            Ok(found)
        })?;
        ensure!(found == if first == 0 { LOOKUPS } else { 0 }, "{found} ids were found");
        Ok(Work { items: LOOKUPS, took, ..Work::default() })
    }))
}

fn build_map(nodes: &mut MemoryNodes) -> Result<Root> {
    let mut builder = MapBuilder::new(id_key().boundary());
    for n in 0..MAP_ENTRIES {
        let key = MapKey::from_components([format!("{:04}", n / 100), format!("{:02}.txt", n % 100)])?;
        let entry = Entry { mode: 0o644, mtime: (n as i64, 0), ..Entry::new(EntryKind::File) };
        push_entry(&mut builder, &key, &entry, nodes)?;
    }
    Ok(builder.finish(nodes)?)
}

fn map_build() -> Bench {
    Bench::new("map build", || {
        let mut nodes = MemoryNodes::new(id_key());
        let (root, took) = timed(|| build_map(&mut nodes))?;
        Ok(Work { items: root.entries, took, ..Work::default() })
    })
}

fn map_read() -> Result<Bench> {
    let mut nodes = MemoryNodes::new(id_key());
    let root = build_map(&mut nodes).context("build the map")?;
    Ok(Bench::new("map read", move || {
        let (items, took) = timed(|| {
            let mut items = 0;
            for entry in MapReader::new(&nodes, root.id).entries()? {
                entry?;
                items += 1;
            }
            Ok(items)
        })?;
        ensure!(items == MAP_ENTRIES, "{items} entries were read");
        Ok(Work { items, took, ..Work::default() })
    }))
}
