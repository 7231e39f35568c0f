//! Maps whose nodes are not what a writer writes.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use crate::common::{self, Records, build, nodes};
use bytes::Bytes;
use keepwell_catalog::{MapError, MapReader, MemoryNodes, NODE_BYTES_MAX, NodeSource, diff, walk_nodes};
use keepwell_crypto::ChunkId;
use proptest::prelude::*;
use proptest::sample::Index;

/// Delivers some nodes with other bytes than they were stored with.
struct Forged {
    nodes: MemoryNodes,
    forged: HashMap<ChunkId, Bytes>,
}

impl Forged {
    fn with(forged: impl IntoIterator<Item = (u8, &'static str)>) -> Self {
        let decode = |text: &str| {
            Bytes::from(
                hex::decode(
                    text.replace(' ', "").replace("ID2", &"02".repeat(32)).replace("ID3", &"03".repeat(32)),
                )
                .unwrap(),
            )
        };
        let forged = forged.into_iter().map(|(id, text)| (ChunkId::from_bytes([id; 32]), decode(text)));
        Self { nodes: nodes(), forged: forged.collect() }
    }
}

impl NodeSource for Forged {
    fn node(&self, id: &ChunkId) -> Result<Bytes, MapError> {
        self.forged.get(id).map_or_else(|| self.nodes.node(id), |bytes| Ok(bytes.clone()))
    }
}

fn read(source: &dyn NodeSource, root: ChunkId) -> Result<Records, MapError> {
    MapReader::new(source, root).iter()?.collect()
}

#[test]
fn every_rule_of_a_node_is_checked() {
    // Node 1 is the root; the two leaves of a sound tree are [a, b] under 02.. and [c] under 03...
    let (leaf2, leaf3) = ("82 00 82 83 00 41 61 40 83 00 41 62 40", "82 00 81 83 00 41 63 40");
    let root = "82 01 82 84 00 41 61 58 20 ID2 02 84 00 41 63 58 20 ID3 01";
    assert_eq!(
        read(&Forged::with([(1, root), (2, leaf2), (3, leaf3)]), ChunkId::from_bytes([1; 32])).unwrap().len(),
        3
    );
    for (root, leaf, what) in [
        ("82 00 80 00", "", "it is empty"),
        ("82 01 80", "", "it is empty"),
        ("82 18 40 80", "", "its level is too high"),
        ("82 00 81 83 00 41 61 40 00", "", "bytes follow its end"),
        ("82 00 82 83 00 41 61 40", "", "it is cut short"),
        ("82 00 9b ffffffffffffffff", "", "it is cut short"),
        ("82 00 81 83 01 41 61 40", "", "its first key is not whole"),
        ("82 00 82 83 00 41 61 40 83 00 41 61 40", "", "its keys do not ascend"),
        ("82 00 82 83 00 42 6162 40 83 00 42 6163 40", "", "its keys do not ascend"),
        ("82 00 82 83 00 41 61 40 83 01 40 40", "", "its keys do not ascend"),
        ("82 00 82 83 00 41 61 40 83 02 41 61 40", "", "its keys do not ascend"),
        ("82 00 81 84 00 41 61 40 00", "", "an array has the wrong length"),
        ("82 01 81 84 00 41 61 41 00 01", "", "a chunk id has the wrong length"),
        ("82 01 81 84 00 41 61 58 20 ID2 00", leaf2, "a child is empty"),
        ("82 01 81 84 00 41 61 58 20 ID2 01", leaf2, "its number of records does not match its parent"),
        ("82 02 81 84 00 41 61 58 20 ID2 02", leaf2, "its level does not match its parent"),
        ("82 01 81 84 00 41 62 58 20 ID2 02", leaf2, "its first key does not match its parent"),
        ("82 01 81 84 00 41 61 58 20 ID2 02", "82 00 80", "its number of records does not match its parent"),
        (
            "82 01 82 84 00 41 61 58 20 ID2 02 84 00 41 63 58 20 ID3 01",
            "82 00 82 83 00 41 61 40 83 00 41 64 40",
            "its children overlap",
        ),
        (
            "82 02 81 84 00 41 61 58 20 ID2 05",
            "82 01 81 84 00 41 61 58 20 ID3 04",
            "it has fewer entries than its parent says",
        ),
        (
            "82 02 81 84 00 41 61 58 20 ID2 03",
            "82 01 81 84 00 41 61 58 20 ID3 04",
            "it has more entries than its parent says",
        ),
    ] {
        let forged = Forged::with([(1, root), (2, leaf), (3, leaf3)]);
        match read(&forged, ChunkId::from_bytes([1; 32])) {
            Err(MapError::Node { what: found, .. }) => assert_eq!(found, what, "{root} / {leaf}"),
            other => panic!("{root} / {leaf} gave {other:?}, not {what}"),
        }
    }
}

#[test]
fn a_node_that_is_too_large_is_refused() {
    let mut forged = Forged::with([]);
    forged.forged.insert(ChunkId::from_bytes([1; 32]), vec![0x82; NODE_BYTES_MAX + 1].into());
    let error = read(&forged, ChunkId::from_bytes([1; 32])).unwrap_err();
    assert_eq!(error.to_string(), format!("tree node {} is damaged: it is too large", "01".repeat(32)));
}

#[test]
fn a_node_that_lists_itself_is_not_followed_for_ever() {
    let id = ChunkId::from_bytes([2; 32]);
    let forged = Forged::with([(2, "82 01 81 84 00 41 61 58 20 ID2 01")]);
    assert!(read(&forged, id).is_err());
    assert!(walk_nodes(&forged, &id, &mut |_| true, &mut |_, _| {}).is_err());
}

#[test]
fn a_missing_node_is_named() {
    let forged = Forged::with([(1, "82 01 81 84 00 41 61 58 20 ID2 01")]);
    let error = read(&forged, ChunkId::from_bytes([1; 32])).unwrap_err();
    assert_eq!(error.to_string(), format!("read tree node {}", "02".repeat(32)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever decodes has one encoding, so a forged node that is accepted rebuilds to itself.
    #[test]
    fn a_changed_leaf_is_refused_or_canonical(at: Index, flip in 1u8.., cut: bool) {
        let records: Records = (0..20u8).map(|n| (vec![b'k', n / 4, n], vec![n; usize::from(n)])).collect();
        let mut nodes = nodes();
        let root = build(&records, &mut nodes);
        let mut bytes = nodes.node(&root.id).unwrap().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if cut {
            bytes.truncate(at);
        }
        let forged = Forged { nodes, forged: HashMap::from([(root.id, bytes.clone().into())]) };
        if let Ok(found) = read(&forged, root.id) {
            let mut again = common::nodes();
            let root = build(&found, &mut again);
            prop_assert_eq!(again.node(&root.id).unwrap(), bytes);
        }
    }

    #[test]
    fn damage_anywhere_in_a_tree_is_handled(which: Index, at: Index, flip in 1u8.., cut: bool) {
        let records: Records = (0..60u8).map(|n| (vec![n], vec![n; 3000])).collect();
        let mut nodes = nodes();
        let root = build(&records, &mut nodes);
        let mut ids = Vec::new();
        walk_nodes(&nodes, &root.id, &mut |id| { ids.push(*id); true }, &mut |_, _| {}).unwrap();
        prop_assert!(ids.len() > 2);
        let id = ids[which.index(ids.len())];
        let mut bytes = nodes.node(&id).unwrap().to_vec();
        let at = at.index(bytes.len().min(64));
        bytes[at] ^= flip;
        if cut {
            bytes.truncate(at);
        }
        let forged = Forged { nodes, forged: HashMap::from([(id, bytes.into())]) };
        let _ = read(&forged, root.id);
        let reader = MapReader::new(&forged, root.id);
        for key in records.keys() {
            let _ = reader.get(key);
        }
        let other = MapReader::new(&forged, ids[1]);
        if let Ok(changes) = diff(&reader, &other) {
            changes.for_each(drop);
        }
    }

    #[test]
    fn any_bytes_are_handled_as_a_root(bytes: Vec<u8>, level in 0u8..3, records in 0u8..4) {
        let head = [&[0x82, level, 0x80 | records][..], &bytes].concat();
        for bytes in [bytes, head] {
            let forged = Forged { nodes: nodes(), forged: HashMap::from([(ChunkId::from_bytes([1; 32]), bytes.into())]) };
            let _ = read(&forged, ChunkId::from_bytes([1; 32]));
            let _ = MapReader::new(&forged, ChunkId::from_bytes([1; 32])).get(b"a");
        }
    }
}
