//! Index segments: bytes as they are, and a block from a hostile but enrolled writer behind honest tables.
#![no_main]
use bytes::Bytes;
use keepwell_catalog::{IndexEntry, IndexSet, Segment};
use keepwell_crypto::ChunkId;
use minicbor::Encoder;

const SKIPPABLE: [u32; 3] = [0x184D_2A52, 0x184D_2A53, 0x184D_2A54];
const PACK: &str = "0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f-01234567";

fn skippable(out: &mut Vec<u8>, kind: usize, content: &[u8]) -> (u64, u32) {
    let offset = out.len() as u64;
    out.extend_from_slice(&SKIPPABLE[kind].to_le_bytes());
    out.extend_from_slice(&(content.len() as u32).to_le_bytes());
    out.extend_from_slice(content);
    (offset, content.len() as u32 + 8)
}

fn short_hash(bytes: &[u8]) -> [u8; 16] {
    blake3::hash(bytes).as_bytes()[..16].try_into().expect("16 of 32 bytes")
}

/// A segment with one block of this plain content, a filter that lets everything pass, and hashes that fit.
fn with_block(block: &[u8]) -> Vec<u8> {
    let entries = block.get(..4).map_or(0, |count| u32::from_le_bytes(count.try_into().expect("4 bytes")));
    let first: [u8; 32] = block.get(4..36).map_or([0; 32], |id| id.try_into().expect("32 bytes"));
    let mut out = zstd::bulk::compress(block, 1).expect("in memory");
    let stored = out.clone();
    let mut filter = 1u32.to_le_bytes().to_vec();
    filter.extend_from_slice(&[7, 0, 0, 0]);
    filter.extend_from_slice(&[0xff; 64]);
    let (filter_offset, filter_length) = skippable(&mut out, 0, &filter);
    let filter_frame = &out[filter_offset as usize..];

    let mut e = Encoder::new(Vec::new());
    let tables = |e: &mut Encoder<Vec<u8>>| -> Result<(), minicbor::encode::Error<std::convert::Infallible>> {
        e.map(7)?.u8(0)?.str("01020304")?.u8(1)?.u8(0)?.u8(2)?.u32(entries)?;
        e.u8(3)?.array(1)?.array(4)?.str(PACK)?.u32(1 << 20)?.u32(200)?.str("05060708")?;
        e.u8(4)?.array(1)?.array(5)?.bytes(&first)?.u8(0)?.u64(stored.len() as u64)?.u32(entries)?;
        e.bytes(&short_hash(&stored))?.u8(5)?.bytes(&short_hash(filter_frame))?.u8(6)?.array(0)?;
        Ok(())
    };
    tables(&mut e).expect("in memory");
    let compressed = zstd::bulk::compress(&e.into_writer(), 1).expect("in memory");
    let (tables_offset, tables_length) = skippable(&mut out, 1, &compressed);

    let mut trailer = tables_offset.to_le_bytes().to_vec();
    trailer.extend_from_slice(&tables_length.to_le_bytes());
    trailer.extend_from_slice(&filter_offset.to_le_bytes());
    trailer.extend_from_slice(&filter_length.to_le_bytes());
    trailer.extend_from_slice(&[0; 72]);
    trailer.extend_from_slice(b"KWINDX\0\x01");
    skippable(&mut out, 2, &trailer);
    out
}

fn open(plain: Vec<u8>) -> Option<Segment> {
    Segment::open(Box::new(Bytes::from(plain)), &|_, _, _| Ok(())).ok()
}

fn use_it(plain: Vec<u8>) {
    let Some(segment) = open(plain.clone()) else { return };
    let read: Result<Vec<IndexEntry>, _> = segment.iter().map(|item| item.map(|(_, entry)| entry)).collect();
    // A lookup in a segment that does not read as a whole finds or misses, but never panics.
    let _ = segment.find(&ChunkId::from_bytes([1; 32]));
    let Ok(entries) = read else { return };
    assert_eq!(entries.len() as u64, segment.len());
    assert!(entries.is_sorted_by_key(|entry| (entry.id, entry.pack, entry.frame_offset)));
    assert!(entries.iter().all(|entry| (entry.pack as usize) < segment.packs().len()));
    for entry in entries.iter().take(16) {
        if segment.may_contain(&entry.id) {
            let found = segment.find(&entry.id).expect("its block was read before");
            assert!(found.iter().any(|(_, found)| found == entry));
        }
    }
    let _ = segment.find(&ChunkId::from_bytes([0x80; 32]));
    let set = IndexSet::new(1 << 20);
    if let Some(segment) = open(plain)
        && set.add("segment", segment).is_ok()
    {
        for entry in entries.iter().take(4) {
            let _ = set.find(&entry.id);
        }
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    use_it(data.to_vec());
    use_it(with_block(data));
});
