//! What is said of packs, truly or not.

use keepwell_catalog::{IndexEntry, PackClass, PackRef, SegmentBuilder, names};
use keepwell_crypto::{ChunkId, sign_detached};
use keepwell_storage::Key;

use crate::repository::Repository;
use crate::write::name_of;

/// Stores a segment that says these things of a pack. With `first`, under a name before that of every other.
pub(crate) async fn say(
    repository: &Repository,
    class: PackClass,
    pack: PackRef,
    entries: &[IndexEntry],
    first: bool,
) -> Key {
    loop {
        let mut builder = SegmentBuilder::new(repository.group(), class);
        let number = builder.add_pack(pack);
        entries.iter().for_each(|entry| builder.add(IndexEntry { pack: number, ..*entry }));
        let (_, sealed) = repository.seal_segment(builder, Vec::new()).unwrap();
        let key = names::index_key(repository.group(), &name_of(&sealed, repository.random_suffix()));
        let others = repository.list("index/").await.unwrap();
        if !first || others.iter().all(|other| key < other.key) {
            repository.put_new(&key, sealed).await.unwrap();
            return key;
        }
    }
}

/// The only data pack, with all that the index says of it.
pub(crate) fn data_pack(repository: &Repository) -> (PackRef, Vec<IndexEntry>) {
    let segments = repository.index().segments();
    let (_, segment) = segments.iter().find(|(_, s)| s.class() == PackClass::Data).unwrap();
    assert_eq!(segment.packs().len(), 1);
    (segment.packs()[0], segment.iter().map(|item| item.unwrap().1).collect())
}

/// Stores a segment with so many entries for a pack, one of whose blocks does not begin where its signed tables say.
pub(crate) async fn say_malformed(repository: &Repository, pack: PackRef, entries: u32) -> Key {
    let mut ids: Vec<ChunkId> =
        (0..entries).map(|n| ChunkId::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes())).collect();
    ids.sort_unstable();
    let mut builder = SegmentBuilder::new(repository.group(), PackClass::Data);
    let pack = builder.add_pack(pack);
    for id in &ids {
        builder.add(IndexEntry { id: *id, pack, frame_offset: 0, frame_length: 1, offset: 0, length: 1 });
    }
    let signer = repository.signer("test").unwrap();
    let plain = builder.finish(repository.id(), signer, Vec::new()).unwrap();

    // Both frames are skippable: their content follows a magic number and their length (format §8).
    let (rest, trailer) = plain.split_at(plain.len() - 112);
    let mut trailer = trailer.to_vec();
    let tables_at = u64::from_le_bytes(trailer[8..16].try_into().unwrap()) as usize;
    let (rest, tables_frame) = rest.split_at(tables_at);
    let mut tables = zstd::decode_all(&tables_frame[8..]).unwrap();
    let first_of_block = |id: &ChunkId| tables.windows(ChunkId::LEN).position(|at| at == id.as_bytes());
    let last_block = ids.iter().rev().find_map(first_of_block).unwrap();
    tables[last_block + ChunkId::LEN - 1] ^= 1;
    let stored = zstd::bulk::compress(&tables, 3).unwrap();
    let stored_len = stored.len() as u32;
    trailer[16..20].copy_from_slice(&(stored_len + 8).to_le_bytes());
    trailer[32..96].copy_from_slice(&sign_detached(signer, repository.id(), "index", &tables));
    let plain = [rest, &tables_frame[..4], &stored_len.to_le_bytes(), &stored, &trailer].concat();

    let sealed = keepwell_crypto::seal(&[repository.access().index_recipient().unwrap()], &plain).unwrap();
    let (_, key) = repository.index_name(&sealed, repository.random_suffix());
    repository.put_new(&key, sealed.into()).await.unwrap();
    key
}
