//! Entries and extents through a map.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::ops::ControlFlow;

use crate::common::{self, Counting, Records, builder, nodes};
use bytes::Bytes;
use keepwell_catalog::{
    Entry, EntryKind, Extent, Gap, MapError, MapKey, MapReader, MemoryNodes, NodeSource, Root, diff,
    for_each_record, push_entry, walk_nodes, walk_nodes_past,
};
use keepwell_crypto::{ChunkId, ChunkKind};
use proptest::prelude::*;

fn key(path: &str) -> MapKey {
    MapKey::from_components(path.split('/')).unwrap()
}

/// A file of `count` extents, every tenth of them a hole.
fn file(count: u32, seed: u32) -> Entry {
    let extent = |n: u32| {
        let id =
            common::id_key().chunk_id(ChunkKind::Content, &[seed.to_le_bytes(), n.to_le_bytes()].concat());
        if n % 10 == 9 {
            Extent::Hole { length: 4096 }
        } else {
            Extent::Chunk { id, offset: n % 3, length: 1 + n }
        }
    };
    let content: Vec<Extent> = (0..count).map(extent).collect();
    let size = content.iter().map(Extent::length).sum();
    Entry { content, size, ..Entry::new(EntryKind::File) }
}

fn build(entries: &[(MapKey, Entry)], nodes: &mut MemoryNodes) -> Root {
    let mut builder = builder();
    for (key, entry) in entries {
        push_entry(&mut builder, key, entry, nodes).unwrap();
    }
    builder.finish(nodes).unwrap()
}

fn tree() -> Vec<(MapKey, Entry)> {
    let directory = || Entry::new(EntryKind::Directory);
    vec![
        (MapKey::root(), directory()),
        (key("a"), directory()),
        (key("a/big"), file(5000, 1)),
        (key("a/big.txt"), file(3, 2)),
        (key("a/huge"), file(1056, 3)),
        (key("a/sub"), directory()),
        (key("a/sub/file"), file(33, 4)),
        (key("b"), file(32, 5)),
        (key("c"), file(0, 6)),
    ]
}

fn keys(entries: impl Iterator<Item = Result<(MapKey, Entry), MapError>>) -> Vec<String> {
    entries.map(|entry| entry.unwrap().0.display_path()).collect()
}

#[test]
fn entries_come_back_whole() {
    let mut nodes = nodes();
    let root = build(&tree(), &mut nodes);
    let reader = MapReader::new(&nodes, root.id);
    let found: Vec<_> = reader.entries().unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(found, tree());
    for (key, entry) in tree() {
        assert_eq!(reader.entry(&key).unwrap(), Some(entry), "{key}");
    }
    assert_eq!(reader.entry(&key("a/nothing")).unwrap(), None);
    assert_eq!(keys(reader.entries_below(&key("a/sub")).unwrap()), ["a/sub", "a/sub/file"]);
}

#[test]
fn heads_lead_to_all_extents() {
    let mut nodes = nodes();
    let root = build(&tree(), &mut nodes);
    let reader = MapReader::new(&nodes, root.id);
    let heads: Vec<_> = reader.heads_below(&MapKey::root()).unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(heads.len(), tree().len());
    for ((key, head), (_, whole)) in heads.into_iter().zip(tree()) {
        assert_eq!(head.more_extents > 0, whole.content.len() > 32, "{key}");
        for entry in [&head, &whole] {
            let extents: Vec<_> = reader.extents(&key, entry).unwrap().collect::<Result<_, _>>().unwrap();
            assert_eq!(extents, whole.content, "{key}");
        }
    }
}

#[test]
fn a_directory_lists_its_children_alone() {
    let mut nodes = nodes();
    let root = build(&tree(), &mut nodes);
    let reader = MapReader::new(&nodes, root.id);
    for (directory, children) in [
        (MapKey::root(), &["a", "b", "c"][..]),
        (key("a"), &["a/big", "a/big.txt", "a/huge", "a/sub"]),
        (key("a/big"), &[]),
        (key("c"), &[]),
        (key("zzz"), &[]),
    ] {
        assert_eq!(keys(reader.children(&directory).unwrap()), children, "{directory}");
    }
    let mut entries = reader.heads_below(&MapKey::root()).unwrap();
    entries.next().unwrap().unwrap();
    let (a, _) = entries.next().unwrap().unwrap();
    entries.skip_below(&a);
    assert_eq!(keys(entries), ["b", "c"]);
}

#[test]
fn a_listing_does_not_pay_for_what_is_below() {
    let mut nodes = nodes();
    let entries: Vec<_> = (0..60_000)
        .map(|n| (key(&format!("top{}/directory{:03}/file{:03}", n / 30_000, n / 100, n % 100)), file(1, n)))
        .collect();
    let root = build(&entries, &mut nodes);
    let counting = Counting::new(&nodes);
    let reader = MapReader::new(&counting, root.id);
    // Without entries of their own, only what a walk would have given is listed.
    assert_eq!(reader.children(&key("top1/directory455")).unwrap().count(), 100);
    assert!(counting.take() <= 6);
}

#[test]
fn a_chunk_more_in_the_middle_changes_few_records() {
    let before = file(40_000, 1);
    let mut after = before.clone();
    let split = Extent::Chunk { id: *before.content[20_000].chunk().unwrap(), offset: 0, length: 1 };
    let length = before.content[20_000].length() as u32;
    after.content[20_000] = split;
    after
        .content
        .insert(20_001, Extent::Chunk { id: *split.chunk().unwrap(), offset: 7, length: length - 1 });
    let mut nodes = nodes();
    let roots = [&before, &after].map(|entry| build(&[(key("disk.img"), entry.clone())], &mut nodes));
    let [left, right] = roots.map(|root| MapReader::new(&nodes, root.id));
    let changes: Vec<_> = diff(&left, &right).unwrap().collect::<Result<_, _>>().unwrap();
    assert!(changes.len() <= 8, "{} records changed", changes.len());
    assert!(
        changes.iter().all(|change| change.is_sub_record() && change.entry_key().unwrap() == key("disk.img"))
    );
}

#[test]
fn entries_that_break_a_rule_are_not_written() {
    let mut nodes = nodes();
    let mut builder = builder();
    for (entry, what) in [
        (Entry { size: 1, ..Entry::new(EntryKind::File) }, "its extents do not add up to its size"),
        (Entry { mode: 0o100644, ..Entry::new(EntryKind::File) }, "its mode has unknown bits"),
        (Entry { more_extents: 1, size: 1, ..Entry::new(EntryKind::File) }, "it is only a head"),
        (Entry::new(EntryKind::Symlink), "link target and kind disagree"),
    ] {
        let error = push_entry(&mut builder, &key("a/b"), &entry, &mut nodes).unwrap_err();
        assert_eq!(error.to_string(), format!("entry `a/b` is not valid: {what}"));
    }
    assert_eq!(builder.entries(), 0);
    assert!(file(33, 1).encode().is_err());
}

fn records_of(key: &MapKey, entry: &Entry) -> Records {
    let mut records = Records::new();
    for_each_record(key, entry, |key, value| {
        records.insert(key.to_vec(), value.to_vec());
        Ok::<(), MapError>(())
    })
    .unwrap();
    records
}

#[test]
fn lost_or_strange_extent_records_are_noticed() {
    let (path, other) = (key("a"), key("b"));
    let sound = records_of(&path, &file(3000, 1));
    let subs: Vec<_> = sound.keys().skip(1).cloned().collect();
    assert!(subs.len() > 2);
    let edit = |edit: &dyn Fn(&mut Records)| {
        let mut records = sound.clone();
        edit(&mut records);
        records.insert(other.as_bytes().to_vec(), file(1, 1).encode().unwrap());
        let mut nodes = nodes();
        let root = common::build(&records, &mut nodes);
        let reader = MapReader::new(&nodes, root.id);
        let whole: Result<Vec<_>, _> = reader.entries().unwrap().collect();
        let head = reader.heads_below(&path).unwrap().next();
        if let Some(Ok((_, head))) = head {
            let streamed: Result<Vec<_>, _> = reader.extents(&path, &head).unwrap().collect();
            assert!(streamed.is_err() || records.len() > sound.len() + 1);
        }
        whole.unwrap_err().to_string()
    };
    let missing = "entry `a` is not valid: a record of its extents is missing";
    for sub in &subs {
        assert_eq!(edit(&|records| drop(records.remove(sub))), missing);
    }
    let swap = |records: &mut Records| drop(records.insert(subs[0].clone(), sound[&subs[1]].clone()));
    let answer = edit(&swap);
    assert!(
        [missing, "entry `a` is not valid: its extents do not add up to its size"].contains(&answer.as_str())
    );
    let extra =
        |records: &mut Records| drop(records.insert(path.sub_key(1, u64::MAX), sound[&subs[1]].clone()));
    assert!(edit(&extra).ends_with("the record belongs to no entry"));
    let strange = |records: &mut Records| drop(records.insert(path.sub_key(9, 0), Vec::new()));
    assert!(edit(&strange).ends_with("the record belongs to no entry"));
    let orphan = |records: &mut Records| drop(records.remove(path.as_bytes()));
    assert!(edit(&orphan).ends_with("the record belongs to no entry"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_number_of_extents_round_trips(counts in proptest::collection::vec(0u32..3000, 1..4)) {
        let entries: Vec<_> = counts.iter().enumerate().map(|(n, &count)| (key(&format!("f{n}")), file(count, 9))).collect();
        let mut nodes = nodes();
        let root = build(&entries, &mut nodes);
        let reader = MapReader::new(&nodes, root.id);
        let found: Vec<_> = reader.entries().unwrap().collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(found, entries);
    }
}

/// Lacks some nodes.
struct Without<'n>(&'n MemoryNodes, HashSet<ChunkId>);

impl NodeSource for Without<'_> {
    fn node(&self, id: &ChunkId) -> Result<Bytes, MapError> {
        if self.1.contains(id) {
            return Err(MapError::Entry { what: "it is not there" });
        }
        self.0.node(id)
    }
}

#[test]
fn what_cannot_be_read_is_passed_over_and_named() {
    let mut nodes = nodes();
    let entries: Vec<_> =
        (0..6000).map(|n| (key(&format!("d{}/f{n:04}", n / 1000)), file(n % 20, n))).collect();
    let root = build(&entries, &mut nodes);
    let mut ids = Vec::new();
    walk_nodes(
        &nodes,
        &root.id,
        &mut |id| {
            ids.push(*id);
            true
        },
        &mut |_, _| {},
    )
    .unwrap();
    assert!(ids.len() > 10, "{}", ids.len());
    for missing in ids.iter().skip(1) {
        let source = Without(&nodes, HashSet::from([*missing, ids[ids.len() / 2]]));
        let reader = MapReader::new(&source, root.id);
        let mut heads = reader.heads_below(&MapKey::root()).unwrap();
        let (mut found, mut gaps) = (Vec::new(), Vec::new());
        while let Some(item) = heads.next() {
            match item {
                Ok((key, _)) => found.push(key),
                Err(_) => gaps.push(heads.pass().unwrap().unwrap()),
            }
        }
        assert!(heads.pass().unwrap().is_none() && !gaps.is_empty());
        let lies_in =
            |key: &MapKey, gap: &Gap| gap.from <= *key && gap.to.as_ref().is_none_or(|to| key <= to);
        for (key, _) in &entries {
            assert!(found.binary_search(key).is_ok() || gaps.iter().any(|gap| lies_in(key, gap)), "{key}");
        }
        assert!(found.is_sorted() && found.len() > 1000, "{}", found.len());
        let mut visited = 0;
        let mut broken = 0;
        walk_nodes_past(&source, &root.id, &mut |_| true, &mut |_, _| visited += 1, &mut |_| {
            broken += 1;
            ControlFlow::Continue(())
        });
        assert!(visited >= found.len() && broken >= 1);
    }
}
