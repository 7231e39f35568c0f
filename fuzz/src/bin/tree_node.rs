//! Nodes of the map: a hostile tree can be walked, searched and listed, and an honest leaf builds again byte for byte.
//!
//! The input is a list of nodes, each behind a big endian u16 length; the first is the root. A child id names a node by
//! its first byte.
#![no_main]
use bytes::Bytes;
use keepwell_catalog::{MapBuilder, MapError, MapReader, MemoryNodes, NodeSource};
use keepwell_crypto::{ChunkId, IdKey};

struct Nodes(Vec<Bytes>);

impl NodeSource for Nodes {
    fn node(&self, id: &ChunkId) -> Result<Bytes, MapError> {
        let found = self.0.get(usize::from(id.as_bytes()[0])).cloned();
        found.ok_or_else(|| MapError::Read { node: *id, source: "no such node".into() })
    }
}

fn split(mut data: &[u8]) -> Vec<Bytes> {
    let mut nodes = Vec::new();
    while let Some((length, rest)) = data.split_at_checked(2) {
        let length = usize::from(u16::from_be_bytes([length[0], length[1]])).min(rest.len());
        nodes.push(Bytes::copy_from_slice(&rest[..length]));
        data = &rest[length..];
    }
    nodes
}

/// Builds the map anew from its records; `None` if a record is refused.
fn rebuild(records: &[(Vec<u8>, Vec<u8>)]) -> Option<Bytes> {
    let key = IdKey::from_bytes([7; 32]);
    let mut builder = MapBuilder::new(key.boundary());
    let mut nodes = MemoryNodes::new(key);
    for (key, value) in records {
        builder.push(key, value, &mut nodes).ok()?;
    }
    let root = builder.finish(&mut nodes).ok()?;
    assert_eq!(root.entries, records.len() as u64);
    nodes.node(&root.id).ok()
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let source = Nodes(split(data));
    let map = MapReader::new(&source, ChunkId::from_bytes([0; 32]));
    let Ok(records) = map.iter().and_then(|records| records.take(10_000).collect::<Result<Vec<_>, _>>())
    else {
        return;
    };
    assert!(records.windows(2).all(|pair| pair[0].0 < pair[1].0));
    for (key, value) in records.iter().take(16) {
        assert_eq!(map.get(key).expect("its path was read before").as_ref(), Some(value));
    }
    if let Ok(entries) = map.entries() {
        entries.take(1000).for_each(drop);
    }
    let root = &source.0[0];
    let is_leaf = root.get(1) == Some(&0);
    if is_leaf
        && root.len() < 8 << 10
        && let Some(built) = rebuild(&records)
    {
        assert_eq!(built, root);
    }
});
