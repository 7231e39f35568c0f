//! The Merkle map against a model, and what its operations cost.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;

use crate::common::{self, Counting, Records, build, builder, file_like, nodes};
use keepwell_catalog::{MapError, MapKey, MapReader, NodeSource, RECORD_VALUE_BYTES_MAX, diff, walk_nodes};
use keepwell_crypto::{ChunkId, ChunkKind};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::Index;

/// Few and large records, so that small cases have several levels.
fn records() -> impl Strategy<Value = Records> {
    let key = vec(prop_oneof![Just(0u8), Just(1), Just(b'a'), any::<u8>()], 0..12);
    let value = (any::<u8>(), prop_oneof![0..200usize, 3000..9000usize]);
    btree_map(key, value.prop_map(|(byte, length)| vec![byte; length]), 0..250)
}

/// Section 9 of the format once more, a level at a time and by another encoder.
fn root_by_the_book(records: &Records) -> ChunkId {
    let boundary = common::id_key().boundary();
    let mut level: Vec<(Vec<u8>, Below)> =
        records.iter().map(|(key, value)| (key.clone(), Below::Value(value.clone()))).collect();
    for number in 0u8.. {
        let mut above = Vec::new();
        let mut open: Vec<(Vec<u8>, Below)> = Vec::new();
        for (n, record) in level.iter().enumerate() {
            open.push(record.clone());
            let (_, size) = encode_node(number, &open);
            let one_in = if number == 0 { 256 } else { 512 };
            let hit = size >= 8 << 10 && boundary.hash(number, &record.0).is_multiple_of(one_in);
            if hit || size >= 128 << 10 || n + 1 == level.len() {
                let id = common::id_key().chunk_id(ChunkKind::Node, &encode_node(number, &open).0);
                let entries = open.iter().map(|(_, below)| below.entries()).sum();
                above.push((open[0].0.clone(), Below::Node(id, entries)));
                open.clear();
            }
        }
        match above.as_slice() {
            [] => return common::id_key().chunk_id(ChunkKind::Node, &[0x82, 0, 0x80]),
            [(_, Below::Node(id, _))] => return *id,
            _ => level = above,
        }
    }
    unreachable!("a level has fewer nodes than the one below it")
}

#[derive(Clone)]
enum Below {
    Value(Vec<u8>),
    Node(ChunkId, u64),
}

impl Below {
    fn entries(&self) -> u64 {
        match self {
            Self::Value(_) => 1,
            Self::Node(_, entries) => *entries,
        }
    }
}

/// A node, and how many bytes of it are records.
fn encode_node(level: u8, records: &[(Vec<u8>, Below)]) -> (Vec<u8>, usize) {
    let mut node = minicbor::Encoder::new(Vec::new());
    node.array(2).unwrap().u8(level).unwrap().array(records.len() as u64).unwrap();
    let head = node.writer().len();
    let mut previous: &[u8] = &[];
    for (key, below) in records {
        let shared = (0..=key.len()).rev().find(|&n| previous.starts_with(&key[..n])).unwrap();
        node.array(if level == 0 { 3 } else { 4 })
            .unwrap()
            .u64(shared as u64)
            .unwrap()
            .bytes(&key[shared..])
            .unwrap();
        match below {
            Below::Value(value) => node.bytes(value).unwrap(),
            Below::Node(id, entries) => node.bytes(id.as_bytes()).unwrap().u64(*entries).unwrap(),
        };
        previous = key;
    }
    let node = node.into_writer();
    let size = node.len() - head;
    (node, size)
}

fn read_all(reader: &MapReader<'_>) -> Records {
    reader.iter().unwrap().collect::<Result<_, _>>().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_map_reads_like_its_model(records in records(), probes in vec(vec(any::<u8>(), 0..6), 0..20)) {
        let mut nodes = nodes();
        let root = build(&records, &mut nodes);
        prop_assert_eq!(root.entries, records.len() as u64);
        let reader = MapReader::new(&nodes, root.id);
        prop_assert_eq!(&read_all(&reader), &records);
        for probe in probes.iter().chain(records.keys()) {
            prop_assert_eq!(reader.get(probe).unwrap(), records.get(probe).cloned());
            let mut cursor = reader.cursor_from(probe).unwrap();
            let expected = records.range(probe.clone()..).next().map(|(key, value)| (&key[..], &value[..]));
            prop_assert_eq!(cursor.next_record().unwrap(), expected);
        }
    }

    #[test]
    fn a_cursor_that_seeks_ahead_misses_nothing(records in records(), targets in vec(vec(any::<u8>(), 0..4), 1..20)) {
        let mut nodes = nodes();
        let root = build(&records, &mut nodes);
        let reader = MapReader::new(&nodes, root.id);
        let mut cursor = reader.cursor().unwrap();
        let mut at_least = Vec::new();
        for target in targets {
            cursor.seek(&target);
            at_least = at_least.max(target);
            let expected = records.range(at_least.clone()..).next();
            prop_assert_eq!(cursor.next_record().unwrap(), expected.map(|(key, value)| (&key[..], &value[..])));
            match expected {
                Some((key, _)) => at_least = [&key[..], &[0]].concat(),
                None => break,
            }
        }
    }

    #[test]
    fn the_root_depends_on_the_records_alone(records in records(), checkpoints in vec(any::<Index>(), 0..4)) {
        let mut nodes = nodes();
        let root = build(&records, &mut nodes);
        let checkpoints: HashSet<usize> = checkpoints.iter().map(|at| at.index(records.len() + 1)).collect();
        let mut builder = builder();
        let mut so_far = Records::new();
        for (n, (key, value)) in records.iter().enumerate() {
            if checkpoints.contains(&n) {
                let root = builder.checkpoint(&mut nodes).unwrap();
                prop_assert_eq!(&read_all(&MapReader::new(&nodes, root.id)), &so_far);
                prop_assert_eq!(root, build(&so_far, &mut nodes));
            }
            builder.push(key, value, &mut nodes).unwrap();
            so_far.insert(key.clone(), value.clone());
        }
        prop_assert_eq!(builder.finish(&mut nodes).unwrap(), root);
    }

    #[test]
    fn the_root_is_the_one_of_the_format(records in records()) {
        let mut nodes = nodes();
        prop_assert_eq!(build(&records, &mut nodes).id, root_by_the_book(&records));
    }

    #[test]
    fn a_diff_is_the_difference(
        before in records(), after in records(), edits in vec((any::<Index>(), any::<bool>()), 0..5), related: bool,
    ) {
        let mut after = if related { before.clone() } else { after };
        let keys: Vec<_> = before.keys().cloned().collect();
        for (at, remove) in edits.iter().filter(|_| !keys.is_empty()) {
            let key = &keys[at.index(keys.len())];
            if *remove { after.remove(key); } else { after.insert(key.clone(), b"new".to_vec()); }
        }
        let mut nodes = nodes();
        let (left, right) = (build(&before, &mut nodes), build(&after, &mut nodes));
        let (left, right) = (MapReader::new(&nodes, left.id), MapReader::new(&nodes, right.id));
        let found: Vec<_> = diff(&left, &right).unwrap().collect::<Result<_, _>>().unwrap();
        let mut keys: Vec<_> = before.keys().chain(after.keys()).filter(|key| before.get(*key) != after.get(*key)).collect();
        keys.sort();
        keys.dedup();
        prop_assert_eq!(found.iter().map(|change| &change.key).collect::<Vec<_>>(), keys);
        for change in found {
            prop_assert_eq!(change.before.as_ref(), before.get(&change.key));
            prop_assert_eq!(change.after.as_ref(), after.get(&change.key));
        }
    }
}

#[test]
fn a_prefix_has_the_entry_and_all_below_it() {
    let mut nodes = nodes();
    let records = file_like(20_000);
    let root = build(&records, &mut nodes);
    let reader = MapReader::new(&nodes, root.id);
    let directory = MapKey::from_components(["srv", "dir00042"]).unwrap();
    let mut cursor = reader.range_prefix(&directory).unwrap();
    let mut found = 0;
    while let Some((key, _)) = cursor.next_record().unwrap() {
        assert!(key.starts_with(b"srv\0dir00042\0"));
        found += 1;
    }
    assert_eq!(found, 100);
    assert!(cursor.next_record().unwrap().is_none());
}

#[test]
fn nodes_have_about_the_size_the_format_wants() {
    let mut nodes = nodes();
    let root = build(&file_like(100_000), &mut nodes);
    let mut sizes = Vec::new();
    walk_nodes(
        &nodes,
        &root.id,
        &mut |id| {
            sizes.push(nodes.node(id).unwrap().len());
            true
        },
        &mut |_, _| {},
    )
    .unwrap();
    assert_eq!(sizes.len(), nodes.len());
    let mean = sizes.iter().sum::<usize>() / sizes.len();
    assert!((24 << 10..56 << 10).contains(&mean), "mean size of a node is {mean}");
    assert!(sizes.iter().all(|&size| size <= 132 << 10));
}

#[test]
fn one_change_costs_about_one_node_per_level() {
    let mut nodes = nodes();
    let base = file_like(100_000);
    let root = build(&base, &mut nodes);
    let keys: Vec<_> = base.keys().cloned().collect();
    let (mut written, mut fetched) = (0, 0);
    const ROUNDS: usize = 15;
    for round in 0..ROUNDS {
        let mut changed = base.clone();
        let key = &keys[(round * 7919 + 13) % keys.len()];
        match round % 3 {
            0 => changed.insert(key.clone(), b"other".to_vec()),
            1 => changed.remove(key),
            _ => changed.insert([key.as_slice(), b"x\0"].concat(), b"new".to_vec()),
        };
        let nodes_before = nodes.len();
        let new_root = build(&changed, &mut nodes);
        written += nodes.len() - nodes_before;

        let counting = Counting::new(&nodes);
        let (left, right) = (MapReader::new(&counting, root.id), MapReader::new(&counting, new_root.id));
        assert_eq!(diff(&left, &right).unwrap().count(), 1);
        fetched += counting.take();
    }
    // Three levels; a boundary that comes or goes adds a node now and then.
    assert!(written <= ROUNDS * 4, "{written} nodes written for {ROUNDS} changes");
    assert!(fetched <= ROUNDS * 8, "{fetched} nodes fetched for {ROUNDS} differences");
}

#[test]
fn a_lookup_fetches_one_node_per_level() {
    let mut nodes = nodes();
    let records = file_like(100_000);
    let root = build(&records, &mut nodes);
    let counting = Counting::new(&nodes);
    let reader = MapReader::new(&counting, root.id);
    for key in records.keys().step_by(977) {
        assert!(reader.get(key).unwrap().is_some());
        assert_eq!(counting.take(), 3);
    }
    assert_eq!(diff(&reader, &reader).unwrap().count(), 0);
    assert_eq!(counting.take(), 0, "equal roots are equal maps");
}

#[test]
fn a_second_walk_visits_only_what_is_new() {
    let mut nodes = nodes();
    let mut records = file_like(50_000);
    let first = build(&records, &mut nodes);
    records.insert(b"srv\0dir00100\0file50\0".to_vec(), b"changed".to_vec());
    let second = build(&records, &mut nodes);
    let mut seen = HashSet::new();
    let mut values = 0;
    for (root, at_least, at_most) in [(first, 50_000, 50_000), (second, 1, 2_000)] {
        values = 0;
        walk_nodes(&nodes, &root.id, &mut |id| seen.insert(*id), &mut |_, _| values += 1).unwrap();
        assert!((at_least..=at_most).contains(&values), "{values} values");
    }
    assert!(values > 0);
    assert_eq!(seen.len(), nodes.len());
}

#[test]
fn records_out_of_order_or_too_large_are_refused() {
    let mut nodes = nodes();
    let mut builder = builder();
    builder.push(b"b\0", b"", &mut nodes).unwrap();
    let error = builder.push(b"b\0", b"", &mut nodes).unwrap_err();
    assert_eq!(error.to_string(), "`b` does not sort after the entry before it");
    assert!(matches!(builder.push(b"a\0", b"", &mut nodes), Err(MapError::OutOfOrder { .. })));
    let large = vec![0; RECORD_VALUE_BYTES_MAX + 1];
    assert!(matches!(builder.push(b"c\0", &large, &mut nodes), Err(MapError::RecordTooLarge { .. })));
    assert!(matches!(builder.push(&[b'x'; 65_537], b"", &mut nodes), Err(MapError::RecordTooLarge { .. })));
    let root = builder.finish(&mut nodes).unwrap();
    assert_eq!(root.entries, 1, "a refused record leaves no trace");
    assert_eq!(read_all(&MapReader::new(&nodes, root.id)).len(), 1);
}

#[test]
fn the_largest_records_fit() {
    let mut nodes = nodes();
    let mut records = Records::new();
    records.insert(b"a".to_vec(), vec![1; 127 << 10]);
    for first in b'b'..b'z' {
        records.insert([&[first], &[b'k'; 65_535][..]].concat(), vec![first; RECORD_VALUE_BYTES_MAX]);
    }
    let root = build(&records, &mut nodes);
    let reader = MapReader::new(&nodes, root.id);
    assert_eq!(read_all(&reader), records);
}

#[test]
fn roots_of_known_maps_stay_what_they_are() {
    let mut nodes = nodes();
    let ids = [0, 10, 30_000].map(|count| build(&file_like(count), &mut nodes).id.to_string());
    assert_eq!(
        ids,
        [
            "7d05b7075d891c989ac5e72154240d31094ec655f5675ad79eee1429f7b6ce7a",
            "4607b7cf00ea6ee7d8692a892ba6168c99024a44ee9fb01619b102bd2bc95f67",
            "f8a1cbb825c5d9e5b58d54ca81ba7d4b30a0dff1c5446544f17080a69ebc9b4d",
        ]
    );
}
