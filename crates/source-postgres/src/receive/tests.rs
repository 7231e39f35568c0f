use keepwell_catalog::wal::{WalHash, WalName, WalPlace};
use keepwell_crypto::MemberId;
use keepwell_storage::{StorageError, StorageErrorKind};

use super::ReceiveError;
use super::block::{Block, Different, block_bytes};
use crate::lsn::{Lsn, SegmentSize, Timeline};

/// A hash that a test can tell: length and first byte.
fn hash(bytes: &[u8]) -> WalHash {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&(bytes.len() as u64).to_be_bytes());
    out[8] = bytes.first().copied().unwrap_or(0);
    WalHash::from_bytes(out)
}

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

fn start() -> Lsn {
    size().start_of(5)
}

fn bounds(place: WalPlace) -> (u64, u32, u32) {
    match place {
        WalPlace::Bytes { file, from, to } => (file, from, to),
        WalPlace::History => panic!("no stretch"),
    }
}

fn archived(from: u32, to: u32, hash: WalHash) -> WalName {
    let place = WalPlace::Bytes { file: 5, from, to };
    WalName { writer: MemberId::from_bytes([1; 8]), system: 1, timeline: 1, place, hash }
}

#[test]
fn tails_follow_each_other_and_the_whole_follows_the_block_before() {
    let mut block = Block::new(size(), Timeline::FIRST, start(), &[]);
    assert_eq!(block.tail(hash), None, "nothing is no tail");
    assert_eq!(block.take(&[1; 100], hash), Ok(100));
    let first = block.tail(hash).unwrap();
    assert_eq!((bounds(first.place), first.previous, first.end), ((5, 0, 100), None, start().plus(100)));
    assert_eq!(block.tail(hash), None);
    assert_eq!(block.take(&[2; 50], hash), Ok(50));
    let second = block.tail(hash).unwrap();
    assert_eq!((bounds(second.place), second.previous), ((5, 100, 150), Some(hash(&[1; 100]))));
    assert_eq!(block.take(&vec![3; 2 << 20], hash), Ok((1 << 20) - 150), "only what fits");
    assert!(block.is_full());
    let whole = block.whole();
    assert_eq!((bounds(whole.place), whole.previous, whole.bytes.len()), ((5, 0, 1 << 20), None, 1 << 20));
    let mut next = block.next(hash(&whole.bytes));
    assert_eq!(next.take(&[4; 10], hash), Ok(10));
    let tail = next.tail(hash).unwrap();
    assert_eq!((bounds(tail.place), tail.previous), ((6, 0, 10), Some(hash(&whole.bytes))));
}

#[test]
fn what_is_archived_is_compared_and_not_sent_again() {
    let names = [archived(0, 100, hash(&[1; 100])), archived(100, 150, hash(&[2; 50]))];
    let mut block = Block::new(size(), Timeline::FIRST, start(), &names);
    assert_eq!(block.take(&[1; 60], hash), Ok(60));
    assert_eq!(block.unsent(), 60, "not known yet");
    assert_eq!(block.take(&[1; 40], hash), Ok(40));
    assert_eq!(block.unsent(), 0);
    assert_eq!(block.take(&[2; 51], hash), Ok(51));
    let tail = block.tail(hash).unwrap();
    assert_eq!((bounds(tail.place), tail.previous), ((5, 150, 151), Some(hash(&[2; 50]))));
}

#[test]
fn other_bytes_than_those_archived_are_refused() {
    let names = [archived(0, 100, hash(&[1; 100])), archived(100, 150, hash(&[9; 50]))];
    let mut block = Block::new(size(), Timeline::FIRST, start(), &names);
    assert_eq!(block.take(&[1; 100], hash), Ok(100));
    assert_eq!(block.take(&[2; 50], hash), Err(Different(start().plus(100))));
}

#[test]
fn blocks_behind_a_hole_are_compared_with_what_is_archived_of_them() {
    let later = |from, to, content: &[u8]| {
        let place = WalPlace::Bytes { file: 6, from, to };
        WalName { place, ..archived(0, 1, hash(content)) }
    };
    let names = [archived(0, 100, hash(&[1; 100])), later(0, 100, &[2; 100]), later(100, 150, &[9; 50])];
    let mut block = Block::new(size(), Timeline::FIRST, start(), &names);
    assert_eq!(block.take(&vec![1; 1 << 20], hash), Ok(1 << 20));
    let whole = block.whole();
    let mut next = block.next(hash(&whole.bytes));
    assert_eq!(next.take(&[2; 100], hash), Ok(100));
    assert_eq!(next.unsent(), 0);
    let second = start().plus(1 << 20);
    assert_eq!(next.take(&[3; 50], hash), Err(Different(second.plus(100))));
}

#[test]
fn large_segments_are_cut_into_blocks() {
    let size = SegmentSize::new(64 << 20).unwrap();
    assert_eq!(block_bytes(size), 16 << 20);
    let second = size.start_of(5).plus(16 << 20);
    let whole_first = WalPlace::Bytes { file: 5, from: 0, to: 16 << 20 };
    let names = [WalName { place: whole_first, ..archived(0, 1, hash(b"")) }];
    let mut block = Block::new(size, Timeline::FIRST, second, &names);
    assert_eq!(block.take(&[7; 10], hash), Ok(10));
    let tail = block.tail(hash).unwrap();
    assert_eq!(bounds(tail.place), (5, 16 << 20, (16 << 20) + 10));
}

#[test]
fn pieces_of_the_file_before_say_nothing_about_this_one() {
    let before =
        WalName { place: WalPlace::Bytes { file: 4, from: 0, to: 100 }, ..archived(0, 100, hash(&[1; 100])) };
    let mut block = Block::new(size(), Timeline::FIRST, start(), &[before]);
    assert_eq!(block.take(&[2; 200], hash), Ok(200));
    assert_eq!(block.unsent(), 200);
}

#[test]
fn a_store_that_is_away_is_waited_for_also_when_a_connection_begins() {
    use StorageErrorKind as Kind;
    for (kind, passes) in [
        (Kind::Unavailable, true),
        (Kind::Throttled, true),
        (Kind::NoSpace, true),
        (Kind::NotMounted, true),
        (Kind::PermissionDenied, false),
        (Kind::Suspect, false),
    ] {
        let error = StorageError::new(kind, "list", "wal/", "no");
        assert_eq!(ReceiveError::from(backup_core::Error::from(error)).is_passing(), passes, "{kind:?}");
    }
}
