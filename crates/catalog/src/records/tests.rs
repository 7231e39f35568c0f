//! Golden bytes of every record, and what the decoders refuse.

use std::collections::BTreeMap;
use std::fmt::Debug;

use keepwell_crypto::{ChunkId, Digest, DomainId, GroupId, MemberId, RepositoryId, SnapshotId, StoreId};
use proptest::prelude::*;

use super::*;
use crate::CatalogError;
use crate::cbor::{put_bytes, put_map, put_uint};
use crate::names::{ContentName, PlanName};

type Decode<T> = fn(&[u8]) -> Result<T, CatalogError>;

const SUFFIX: [u8; 4] = [0x0b, 0xad, 0xca, 0xfe];
const STORE: StoreId = StoreId::from_bytes([0x5a; 16]);
const WRITER: MemberId = MemberId::from_bytes([1, 2, 3, 4, 5, 6, 7, 8]);
const TIME: i64 = 1_763_700_000_000_000_000;

fn name(byte: u8) -> ContentName {
    ContentName::new(&Digest::from_bytes([byte; 32]), [0xca, 0xfe, 0, byte])
}

/// The record has exactly these bytes; a cut, an added byte and a key out of order are refused; a key of a later
/// version is passed over.
fn golden<T: PartialEq + Debug>(record: &T, encoded: &[u8], decode: Decode<T>, expected: &str) {
    exact(record, encoded, decode, expected);
    assert_eq!(&decode(&with_field(encoded, 900, b"later")).unwrap(), record);
}

fn exact<T: PartialEq + Debug>(record: &T, encoded: &[u8], decode: Decode<T>, expected: &str) {
    assert_eq!(hex::encode(encoded), expected);
    assert_eq!(decode(encoded).as_ref().unwrap(), record);
    for cut in 0..encoded.len() {
        assert!(decode(&encoded[..cut]).is_err(), "cut at {cut}");
    }
    let malformed = |bytes: &[u8]| matches!(decode(bytes), Err(CatalogError::Malformed { .. }));
    assert!(malformed(&[encoded, &[0]].concat()), "trailing byte");
    assert!(malformed(&with_field(encoded, 0, b"again")), "a key out of order");
}

/// The map with one more pair at its end.
fn with_field(encoded: &[u8], key: u64, value: &[u8]) -> Vec<u8> {
    let (pairs, head) = match encoded[0] {
        short @ 0xa0..=0xb7 => (u64::from(short - 0xa0), 1),
        0xb8 => (u64::from(encoded[1]), 2),
        other => panic!("not a map: {other:02x}"),
    };
    let mut longer = Vec::new();
    put_map(&mut longer, pairs + 1);
    longer.extend_from_slice(&encoded[head..]);
    put_uint(&mut longer, key);
    put_bytes(&mut longer, value);
    longer
}

fn manifest() -> Manifest {
    Manifest {
        repository: RepositoryId::from_bytes([0x11; 16]),
        writer: WRITER,
        seq: 42,
        dataset: "home".into(),
        host: "web1".into(),
        paths: vec![b"/home".to_vec(), b"/srv/\xff".to_vec()],
        tags: vec!["weekly".into()],
        capture_start: TIME,
        capture_end: TIME + 7,
        time_zone: "Europe/Helsinki".into(),
        group: GroupId::from_bytes([0xa1, 0xb2, 0xc3, 0xd4]),
        domain: DomainId::from_bytes([0, 0, 0, 1]),
        root: ChunkId::from_bytes([0x22; 32]),
        entries: 70_000,
        statistics: Statistics { files: 1, new_stored_bytes: 1 << 40, ..Statistics::default() },
        problems: vec![Problem { key: b"a\0".to_vec(), message: "permission denied".into() }],
        problem_count: 1,
        source_kind: "files".into(),
        parent: Some(SnapshotId::from_bytes([0x33; 32])),
        program: "0.1.0".into(),
        original: None,
        keep_until: Some(-1),
        keep_forever: true,
        description: "before the move".into(),
        extra: [("lsn".to_owned(), b"x".to_vec()), ("aaaa".to_owned(), Vec::new())].into(),
        later: Vec::new(),
    }
}

fn commit() -> Commit {
    Commit {
        store: STORE,
        writer: WRITER,
        n: 42,
        kind: CommitKind::Snapshot,
        time: TIME,
        previous: vec![(40, Digest::from_bytes([0x40; 32])), (41, Digest::from_bytes([0x41; 32]))],
        seen: vec![(MemberId::from_bytes([9; 8]), 300)],
        manifest: Some(name(1)),
        snapshot: Some(SnapshotId::from_bytes([0x33; 32])),
        list: Some(Digest::from_bytes([0x44; 32])),
        group: Some(GroupId::from_bytes([0xa1, 0xb2, 0xc3, 0xd4])),
        complete: true,
        logical_bytes: 1 << 33,
        capture: Some(TIME - 60_000_000_000),
        origin: Some(b"envelope".to_vec()),
        state: vec![name(2)],
        dataset_tag: Some([0x16; 16]),
        supersedes: vec![41],
    }
}

#[test]
fn empty_items_by_the_million_are_refused_and_long_lists_are_not() {
    let plan = |condemned| Plan {
        store: STORE,
        name: PlanName::new(1, SUFFIX),
        time: TIME,
        condemned,
        merged: Vec::new(),
    };
    let long = plan(vec![format!("data/7b/{}", name(0x7b)); 100_000]);
    assert_eq!(Plan::decode(&long.encode()).unwrap(), long);
    let bomb = plan(vec![String::new(); 1 << 20]).encode();
    assert!(bomb.len() < 2 << 20);
    assert!(matches!(Plan::decode(&bomb), Err(CatalogError::Malformed { .. })));

    let objects = vec![ListedObject { name: String::new(), size: 0 }; 1 << 20];
    let bomb = List { store: STORE, writer: WRITER, n: 1, objects }.encode();
    assert!(matches!(List::decode(&bomb), Err(CatalogError::Malformed { .. })));
    let many = (0..1 << 20).map(|n: u32| (n.to_string(), Vec::new())).collect();
    let bomb = Manifest { extra: many, ..manifest() }.encode();
    assert!(matches!(Manifest::decode(&bomb), Err(CatalogError::Malformed { .. })));
    let many = (26..1 << 20).map(|key| (key, vec![0])).collect();
    let bomb = Manifest { later: many, ..manifest() }.encode();
    assert!(matches!(Manifest::decode(&bomb), Err(CatalogError::Malformed { .. })));

    let superseding = Commit { supersedes: (0..100_000).collect(), ..commit() };
    assert_eq!(Commit::decode(&superseding.encode()).unwrap(), superseding);
}

#[test]
fn manifest_bytes() {
    let manifest = manifest();
    exact(&manifest, &manifest.encode(), Manifest::decode, MANIFEST);
    let later = with_field(&with_field(&manifest.encode(), 26, b"later"), 900, b"last");
    let found = Manifest::decode(&later).unwrap();
    assert_eq!(found.later.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [26, 900]);
    assert_eq!(found.encode(), later, "what a later version has added stays when it is written anew");
    assert_eq!(Manifest { later: Vec::new(), ..found }, manifest);
    let id = snapshot_id(&manifest.encode());
    assert_eq!(id.to_string(), SNAPSHOT_ID);
}

#[test]
fn commit_bytes() {
    golden(&commit(), &commit().encode(), Commit::decode, COMMIT);
    let fence = Commit::fence(STORE, WRITER, 42, TIME);
    golden(&fence, &fence.encode(), Commit::decode, FENCE);
}

#[test]
fn session_and_list_bytes() {
    let session = Session {
        store: STORE,
        writer: WRITER,
        n: 1,
        k: 23,
        time: TIME,
        kind: SessionKind::Reader,
        nonce: None,
    };
    golden(&session, &session.encode(), Session::decode, SESSION);
    let claim = Session { k: 0, nonce: Some([7; 8]), ..session };
    assert!(claim.encode().ends_with(&[5, 1, 6, 0x48, 7, 7, 7, 7, 7, 7, 7, 7]));
    assert_eq!(Session::decode(&claim.encode()).unwrap(), claim);
    let objects = vec![ListedObject { name: "data/00/x".into(), size: 65_536 }];
    let list = List { store: STORE, writer: WRITER, n: 24, objects };
    golden(&list, &list.encode(), List::decode, LIST);
}

#[test]
fn collection_bytes() {
    let snapshots = vec![RetiredSnapshot { writer: WRITER, seq: 256, reason: "no rule keeps it".into() }];
    let retired = Retired { store: STORE, n: 3, time: TIME, snapshots, undone: vec![(WRITER, 7)] };
    golden(&retired, &retired.encode(), Retired::decode, RETIRED);
    let plan = Plan {
        store: STORE,
        name: PlanName::new(4, SUFFIX),
        time: TIME,
        condemned: vec!["data/00/x".into()],
        merged: vec![PlanName::from_parts(1, None), PlanName::new(2, SUFFIX)],
    };
    golden(&plan, &plan.encode(), Plan::decode, PLAN);
    let kept = Kept { store: STORE, name: PlanName::new(4, SUFFIX), released: vec!["data/00/x".into()] };
    golden(&kept, &kept.encode(), Kept::decode, KEPT);
    let first_version = PlanName::from_parts(4, None);
    let plan = Plan { name: first_version, merged: Vec::new(), ..plan };
    golden(&plan, &plan.encode(), Plan::decode, PLAN_WITHOUT_SUFFIX);
    let kept = Kept { name: first_version, ..kept };
    golden(&kept, &kept.encode(), Kept::decode, KEPT_WITHOUT_SUFFIX);
    let marks =
        Marks { store: STORE, n: 5, snapshots: vec![(SnapshotId::from_bytes([0x33; 32]), "marks".into())] };
    golden(&marks, &marks.encode(), Marks::decode, MARKS);
}

#[test]
fn unknown_kinds_are_refused_by_number() {
    let mut bytes = commit().encode();
    let at = bytes.windows(2).position(|pair| pair == [3, 0]).unwrap();
    bytes[at + 1] = 4;
    let error = Commit::decode(&bytes).unwrap_err();
    assert_eq!(error.to_string(), "commit kind 4 is not known to this version");
    let mut bytes = manifest().encode();
    bytes[3] = 2;
    let error = Manifest::decode(&bytes).unwrap_err();
    assert_eq!(error.to_string(), "manifest format 2 is not known to this version");
}

#[test]
fn a_commit_names_a_manifest_exactly_when_its_kind_has_one() {
    for kind in [CommitKind::Snapshot, CommitKind::Checkpoint, CommitKind::Fence, CommitKind::IndexOnly] {
        let with = Commit { kind, ..commit() };
        let without = Commit { manifest: None, snapshot: None, ..with.clone() };
        assert_eq!(Commit::decode(&with.encode()).is_ok(), kind.has_manifest());
        assert_eq!(Commit::decode(&without.encode()).is_ok(), !kind.has_manifest());
    }
}

/// What is empty is written all the same, so that there is one way to write each record.
#[test]
fn a_field_that_is_missing_is_refused() {
    fn without_last<T: Debug>(encoded: &[u8], last: usize, decode: Decode<T>) {
        let mut shorter = encoded[..encoded.len() - last].to_vec();
        shorter[0] -= 1;
        let error = decode(&shorter).unwrap_err();
        assert!(error.to_string().ends_with("is missing"), "{error}");
    }
    let fence = Commit::fence(STORE, WRITER, 42, TIME).encode();
    without_last(&fence, 2, Commit::decode); // supersedes
    let plan = Plan {
        store: STORE,
        name: PlanName::from_parts(4, None),
        time: TIME,
        condemned: Vec::new(),
        merged: Vec::new(),
    };
    without_last(&plan.encode(), 2, Plan::decode);
    let retired = Retired { store: STORE, n: 3, time: TIME, snapshots: Vec::new(), undone: Vec::new() };
    without_last(&retired.encode(), 2, Retired::decode);
    let bytes = Manifest { extra: BTreeMap::new(), ..manifest() }.encode();
    let mut shorter = bytes[..bytes.len() - 3].to_vec(); // extra
    shorter[1] -= 1;
    let error = Manifest::decode(&shorter).unwrap_err();
    assert_eq!(error.to_string(), "manifest is malformed: its extra map is missing");
}

#[test]
fn a_promised_length_reserves_no_memory() {
    // A list with an array of 2^60 objects.
    let bytes = hex::decode("a1039b1000000000000000").unwrap();
    assert!(List::decode(&bytes).is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
        let _ = (Manifest::decode(&bytes), Commit::decode(&bytes), Session::decode(&bytes), List::decode(&bytes));
        let _ = (Retired::decode(&bytes), Plan::decode(&bytes), Kept::decode(&bytes), Marks::decode(&bytes));
    }
}

/// Every record that differs from `encoded` in one byte.
fn one_byte_changed(encoded: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    (0..encoded.len()).flat_map(move |at| {
        (0..=u8::MAX).filter(move |value| *value != encoded[at]).map(move |value| {
            let mut changed = encoded.to_vec();
            changed[at] = value;
            changed
        })
    })
}

/// What is read at all encodes to the same bytes again, or to fewer where it has keys of a later version that are not
/// kept: a manifest keeps its own, but not those within its counts.
#[test]
fn a_changed_record_is_refused_or_is_what_it_says() {
    for changed in one_byte_changed(&manifest().encode()) {
        let Ok(read) = Manifest::decode(&changed) else { continue };
        let again = read.encode();
        let kept = again == changed || !read.later.is_empty();
        assert!(kept || again.len() < changed.len(), "{}\n{}", hex::encode(&changed), hex::encode(&again));
        assert_eq!(Manifest::decode(&again).unwrap(), read);
    }
    for changed in one_byte_changed(&commit().encode()) {
        let Ok(read) = Commit::decode(&changed) else { continue };
        let again = read.encode();
        assert!(
            again == changed || again.len() < changed.len(),
            "{}\n{}",
            hex::encode(&changed),
            hex::encode(&again)
        );
    }
}

// Computed from the tables of docs/format.md by another encoder.
const MANIFEST: &str = "\
    b81900010150111111111111111111111111111111110248010203040506070803182a0464686f6d6505647765623106\
    82452f686f6d65462f7372762fff0781667765656b6c79081b1879ebce365b4000091b1879ebce365b40070a6f457572\
    6f70652f48656c73696e6b690b6861316232633364340c6830303030303030310d582022222222222222222222222222\
    222222222222222222222222222222222222220e1a000111700fab00010100020003000400050006000700080009000a\
    1b0000010000000000108182426100717065726d697373696f6e2064656e6965641101126566696c6573135820333333\
    33333333333333333333333333333333333333333333333333333333331465302e312e30162017f518186f6265666f72\
    6520746865206d6f76651819a2636c736e4178646161616140";
const SNAPSHOT_ID: &str = "2fbd065012639e2e366d2c2f5d93512e83742a8ed0566baa45164fabbc1d4d05";
const COMMIT: &str = "\
    b200505a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a0148010203040506070802182a0300041b1879ebce365b400005828218\
    285820404040404040404040404040404040404040404040404040404040404040404082182958204141414141414141\
    41414141414141414141414141414141414141414141414106818248090909090909090919012c077849303130313031\
    303130313031303130313031303130313031303130313031303130313031303130313031303130313031303130313031\
    303130313031303130312d63616665303030310858203333333333333333333333333333333333333333333333333333\
    33333333333309582044444444444444444444444444444444444444444444444444444444444444440a686131623263\
    3364340bf50c1b00000002000000000d1b1879ebc03e13e8000e48656e76656c6f70650f817849303230323032303230\
    323032303230323032303230323032303230323032303230323032303230323032303230323032303230323032303230\
    323032303230322d636166653030303210501616161616161616161616161616161611811829";
const FENCE: &str = "\
    ab00505a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a0148010203040506070802182a0302041b1879ebce365b400005800680\
    0bf40c000f801180";
const SESSION: &str =
    "a600505a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a0148010203040506070802010317041b1879ebce365b40000501";
const LIST: &str = "\
    a400505a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a0148010203040506070802181803818269646174612f30302f781a0001\
    0000";
const RETIRED: &str = "\
    a500505a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a0103021b1879ebce365b4000038183480102030405060708190100706e\
    6f2072756c65206b6565707320697404818248010203040506070807";
const PLAN: &str = "\
    a600505a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a0104021b1879ebce365b4000038169646174612f30302f7804826a3030\
    303030303030303173303030303030303030322d306261646361666505440badcafe";
const PLAN_WITHOUT_SUFFIX: &str = "\
    a500505a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a0104021b1879ebce365b4000038169646174612f30302f780480";
const KEPT: &str = "a400505a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a0104028169646174612f30302f7803440badcafe";
const KEPT_WITHOUT_SUFFIX: &str = "a300505a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a0104028169646174612f30302f78";
const MARKS: &str = "\
    a300505a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a0105028182582033333333333333333333333333333333333333333333\
    33333333333333333333656d61726b73";
