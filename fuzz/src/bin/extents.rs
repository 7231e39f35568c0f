//! Extents in sub-key records: an entry with these bytes as its records lists extents that add up, or an error.
//!
//! The input is the value of one sub-key record; the file is as long as a u32 in front of it says.
#![no_main]
use keepwell_catalog::{Entry, EntryKind, Extent, MapBuilder, MapKey, MapReader, MemoryNodes};
use keepwell_crypto::{ChunkId, IdKey};

const CHUNK_LENGTH: u64 = 4096;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((more, value)) = data.split_at_checked(4) else { return };
    let more = u64::from(u32::from_be_bytes([more[0], more[1], more[2], more[3]]));
    let mut entry = Entry::new(EntryKind::File);
    entry.content =
        vec![Extent::Chunk { id: ChunkId::from_bytes([1; 32]), offset: 0, length: CHUNK_LENGTH as u32 }];
    (entry.size, entry.more_extents) = (CHUNK_LENGTH + more, 1);

    let id_key = IdKey::from_bytes([7; 32]);
    let mut builder = MapBuilder::new(id_key.boundary());
    let mut nodes = MemoryNodes::new(id_key);
    let key = MapKey::from_components(["file"]).expect("a valid name");
    let Ok(head) = entry.encode() else { return };
    builder.push(key.as_bytes(), &head, &mut nodes).expect("a valid entry");
    builder.push(&key.sub_key(1, CHUNK_LENGTH), value, &mut nodes).expect("a valid sub-key");
    let root = builder.finish(&mut nodes).expect("in memory");

    let map = MapReader::new(&nodes, root.id);
    let extents: Result<Vec<Extent>, _> = map.extents(&key, &entry).and_then(Iterator::collect);
    let whole = map.entry(&key);
    assert_eq!(extents.is_ok(), whole.is_ok());
    if let (Ok(extents), Ok(Some(whole))) = (extents, whole) {
        assert_eq!(extents.iter().map(Extent::length).sum::<u64>(), whole.size);
        assert_eq!(whole.content, extents);
    }
});
