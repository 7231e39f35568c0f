use std::sync::atomic::Ordering;

use backup_core::Repository;
use bytes::Bytes;
use keepwell_catalog::wal::WalPlace;
use keepwell_storage::ObjectStore;

use super::*;
use crate::log::LogMap;
use crate::lsn::{Lsn, Segment};
use crate::testing::{SYSTEM, World, content, put_by, put_history, segment, size};

const MIB: u32 = 1 << 20;

async fn asked(world: &World, timeline: u32, number: u64) -> Result<Fetched, ArchiveError> {
    let timeline = Timeline::new(timeline).unwrap();
    let name = Segment { timeline, number }.file_name(size());
    fetch(&world.repository.wal_reader(SYSTEM).unwrap(), &name).await
}

async fn gaps(world: &World) -> Vec<(u32, u64, u64, GapKind)> {
    let found = survey(&world.repository.wal_reader(SYSTEM).unwrap()).await.unwrap();
    let mib = |at: Lsn| at.get() >> 20;
    found.gaps.iter().map(|g| (g.timeline.get(), mib(g.from), mib(g.to), g.kind)).collect()
}

async fn world() -> (World, Repository) {
    let mut world = World::new().await;
    let second = world.second().await;
    (world, second)
}

#[tokio::test]
async fn what_cannot_be_read_is_trouble_also_when_somebody_has_a_part() {
    let (world, second) = world().await;
    world.put(3, 1, MIB).await;
    let log = world.archive().await;
    let whole = log.pieces_of(1, segment(3).file_number(size())).await.unwrap()[0];
    put_by(&second, 1, 3, 1, 4000).await;
    assert_eq!(asked(&world, 1, 3).await.unwrap(), Fetched::Found(content(SYSTEM, 3, 1)));
    let stored = world.store.get(&whole.key()).await.unwrap();
    world.store.delete(&whole.key()).await.unwrap();
    let mut damaged = stored.to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    world.store.put_new(&whole.key(), Bytes::from(damaged)).await.unwrap();
    let answer = asked(&world, 1, 3).await;
    assert!(matches!(answer, Err(ArchiveError::Repository(_))), "{answer:?}");
    // And the other way round: what is whole is served, whoever else has trouble.
    put_by(&second, 1, 3, 1, MIB).await;
    assert_eq!(asked(&world, 1, 3).await.unwrap(), Fetched::Found(content(SYSTEM, 3, 1)));
}

#[tokio::test]
async fn pieces_of_one_writer_that_overlap_and_differ_are_a_conflict() {
    let world = World::new().await;
    world.put(3, 1, 3000).await;
    let log = world.archive().await;
    let put = async |fill: u8, from: u32, to: u32| {
        let place = WalPlace::Bytes { file: segment(3).file_number(size()), from, to };
        let bytes = content(SYSTEM, 3, fill)[from as usize..to as usize].to_vec();
        log.put(1, place, Bytes::from(bytes), None).await.unwrap();
    };
    put(1, 2000, 4000).await;
    assert!(matches!(asked(&world, 1, 3).await, Ok(Fetched::Found(_))), "they are equal there");
    // From another server, which wrote something else.
    put(2, 3500, 5000).await;
    let answer = asked(&world, 1, 3).await;
    assert!(matches!(answer, Err(ArchiveError::Conflict { .. })), "{answer:?}");
}

#[tokio::test]
async fn of_a_first_file_that_ends_before_its_timeline_begins_the_one_before_is_read() {
    let (world, second) = world().await;
    put_history(&world.repository, 2, &format!("1\t{}\tx\n", size().start_of(4).plus(5000))).await;
    put_by(&second, 2, 4, 1, 3000).await;
    assert!(matches!(asked(&world, 2, 4).await, Ok(Fetched::Found(_))), "nobody has more");
    world.put(3, 1, MIB).await;
    world.put(4, 1, 2000).await;
    assert!(matches!(asked(&world, 2, 4).await, Ok(Fetched::Found(_))), "the one before has less");
    world.put(4, 1, 4000).await;
    let up_to = |end: usize| [content(SYSTEM, 4, 1)[..end].to_vec(), vec![0; MIB as usize - end]].concat();
    assert_eq!(asked(&world, 2, 4).await.unwrap(), Fetched::Found(up_to(4000)));
    // What the first one has behind the switch is nobody's past.
    world.put(4, 1, MIB).await;
    assert_eq!(asked(&world, 2, 4).await.unwrap(), Fetched::Found(up_to(5000)));
    assert!(matches!(asked(&world, 1, 4).await, Ok(Fetched::Found(_))));
    // Who is told to stop at the switch must see that something follows.
    let name = Segment { timeline: Timeline::new(2).unwrap(), number: 4 }.file_name(size());
    let (reader, to_gap) =
        (world.repository.wal_reader(SYSTEM).unwrap(), Asker { to_gap: true, follows: None });
    assert_eq!(fetch_for(&reader, &name, to_gap).await.unwrap(), Fetched::Missing);
    put_by(&second, 2, 4, 1, 6000).await;
    assert!(matches!(asked(&world, 2, 4).await, Ok(Fetched::Found(_))), "it has begun");
}

#[tokio::test]
async fn of_a_copy_of_a_copy_the_first_counts() {
    let (world, second) = world().await;
    let at = |offset| size().start_of(4).plus(offset);
    put_history(&world.repository, 3, &format!("1\t{}\tx\n2\t{}\tx\n", at(5000), at(6000))).await;
    for timeline in [2, 3] {
        put_by(&second, timeline, 4, 1, 3000).await;
    }
    world.put(4, 1, 4000).await;
    let expected = [content(SYSTEM, 4, 1)[..4000].to_vec(), vec![0; MIB as usize - 4000]].concat();
    assert_eq!(asked(&world, 3, 4).await.unwrap(), Fetched::Found(expected));
}

#[tokio::test(start_paused = true)]
async fn a_gap_between_two_writers_is_not_the_end_of_the_log() {
    let (world, second) = world().await;
    world.put(3, 1, MIB).await;
    world.put(4, 1, 4000).await;
    put_by(&second, 1, 6, 1, MIB).await;
    put_by(&second, 1, 7, 1, 4000).await;
    for number in [4, 5] {
        let answer = asked(&world, 1, number).await;
        assert!(matches!(answer, Err(ArchiveError::Gap { .. })), "{number}: {answer:?}");
    }
    assert_eq!(gaps(&world).await, [(1, 4, 6, GapKind::Missing)]);
    // A server that is to end before it is given what there is.
    let reader = world.repository.wal_reader(SYSTEM).unwrap();
    let short = [content(SYSTEM, 4, 1)[..4000].to_vec(), vec![0; MIB as usize - 4000]].concat();
    for (number, expected) in [(4, Fetched::Found(short)), (5, Fetched::Missing)] {
        let name = segment(number).file_name(size());
        let to_gap = Asker { to_gap: true, ..Asker::default() };
        assert_eq!(fetch_for(&reader, &name, to_gap).await.unwrap(), expected, "{number}");
        let answer = fetch_for(&reader, &name, Asker::default()).await;
        assert!(matches!(answer, Err(ArchiveError::Gap { .. })), "{number}: {answer:?}");
    }
    assert!(matches!(asked(&world, 1, 7).await, Ok(Fetched::Found(_))), "the end may be short");
    assert_eq!(asked(&world, 1, 8).await.unwrap(), Fetched::Missing);
    let answer = asked(&world, 1, 2).await;
    assert!(matches!(answer, Err(ArchiveError::BeginsLater { .. })), "{answer:?}");
    // What one lacks the other has.
    put_by(&second, 1, 4, 1, MIB).await;
    put_by(&second, 1, 5, 1, MIB).await;
    assert_eq!(asked(&world, 1, 4).await.unwrap(), Fetched::Found(content(SYSTEM, 4, 1)));
    assert_eq!(gaps(&world).await, []);
}

#[tokio::test(start_paused = true)]
async fn the_log_before_a_switch_is_missed_whoever_archived_what_comes_after() {
    let (world, second) = world().await;
    world.put(3, 1, MIB).await;
    world.put(4, 1, 4000).await;
    let switch = size().start_of(6).plus(5000);
    put_history(&second, 2, &format!("1\t{switch}\tx\n")).await;
    assert!(matches!(asked(&world, 1, 4).await, Ok(Fetched::Found(_))), "nothing follows yet");
    assert_eq!(asked(&world, 1, 5).await.unwrap(), Fetched::Missing);
    put_by(&second, 2, 6, 1, MIB).await;
    for number in [4, 5] {
        let answer = asked(&world, 1, number).await;
        assert!(matches!(answer, Err(ArchiveError::Gap { .. })), "{number}: {answer:?}");
    }
    assert_eq!(gaps(&world).await, [(1, 4, 6, GapKind::BeforeSwitch)]);
    // A server that follows the first timeline does not come to the second.
    let (reader, follows) = (world.repository.wal_reader(SYSTEM).unwrap(), Timeline::new(1));
    let first = Asker { follows, ..Asker::default() };
    let of_first =
        async |number| fetch_for(&reader, &segment(number).file_name(size()), first).await.unwrap();
    assert!(matches!(of_first(4).await, Fetched::Found(_)));
    assert_eq!(of_first(5).await, Fetched::Missing);
    // The later timeline's first file begins with what the earlier one has up to the switch.
    assert_eq!(asked(&world, 1, 6).await.unwrap(), Fetched::Missing);
    put_by(&second, 1, 4, 1, MIB).await;
    put_by(&second, 1, 5, 1, MIB).await;
    assert_eq!(gaps(&world).await, []);
    assert!(matches!(asked(&world, 1, 5).await, Ok(Fetched::Found(_))));
    assert_eq!(asked(&world, 1, 7).await.unwrap(), Fetched::Missing, "what follows nobody's past needs");
    // The first file of a timeline that began in the middle of one is missing, and later ones are there.
    put_history(&second, 3, &format!("1\t{switch}\tx\n2\t{}\tx\n", size().start_of(7).plus(9))).await;
    put_by(&second, 3, 8, 1, MIB).await;
    assert!(matches!(asked(&world, 3, 7).await, Err(ArchiveError::Gap { .. })));
}

#[tokio::test(start_paused = true)]
async fn two_writers_different_bytes_are_a_conflict_whatever_their_pieces() {
    for to in [MIB, 4000] {
        let (world, second) = world().await;
        world.put(3, 1, MIB).await;
        put_by(&second, 1, 3, 2, to).await;
        let answer = asked(&world, 1, 3).await;
        assert!(matches!(answer, Err(ArchiveError::Conflict { .. })), "{to}: {answer:?}");
        let (reader, name) = (world.repository.wal_reader(SYSTEM).unwrap(), segment(3).file_name(size()));
        let to_gap = Asker { to_gap: true, ..Asker::default() };
        assert_eq!(
            fetch_for(&reader, &name, to_gap).await.unwrap(),
            Fetched::Missing,
            "its target is before"
        );
        if to == MIB {
            assert_eq!(gaps(&world).await, [(1, 3, 4, GapKind::Conflict)]);
            let reader = world.repository.wal_reader(SYSTEM).unwrap();
            let map = LogMap::read(&reader, size(), 0).await.unwrap();
            let first = crate::history::History::root(Timeline::FIRST);
            assert_eq!(map.file_for(&first, 3), None, "recovery must not get across it");
        }
    }
}

#[tokio::test]
async fn a_timeline_with_two_histories_is_taken_and_nobody_follows_it() {
    let (world, second) = world().await;
    put_history(&world.repository, 2, "1\t0/5000000\tx\n").await;
    put_history(&second, 2, "1\t0/6000000\tx\n").await;
    let reader = world.repository.wal_reader(SYSTEM).unwrap();
    let asked = async |follows| {
        let asker = Asker { follows, ..Asker::default() };
        fetch_for(&reader, "00000002.history", asker).await
    };
    for follows in [None, Timeline::new(2)] {
        let answer = asked(follows).await;
        assert!(matches!(answer, Err(ArchiveError::Conflict { .. })), "{answer:?}");
    }
    // A server that ends on the first begins one that is not taken.
    let answer = asked(Timeline::new(1)).await;
    assert!(matches!(answer, Ok(Fetched::Found(_))), "{answer:?}");
}

#[tokio::test]
async fn what_both_archived_is_read_once() {
    let (world, second) = world().await;
    world.put(3, 1, MIB).await;
    put_by(&second, 1, 3, 1, MIB).await;
    let before = world.store.reads.load(Ordering::SeqCst);
    assert!(matches!(asked(&world, 1, 3).await, Ok(Fetched::Found(_))));
    assert_eq!(world.store.reads.load(Ordering::SeqCst), before + 1);
}

#[tokio::test]
async fn a_file_in_more_tails_than_a_listing_shows_at_once_is_served_to_its_end() {
    let world = World::new().await;
    let (log, content) = (world.archive().await, content(SYSTEM, 3, 1));
    let file = segment(3).file_number(size());
    for (number, tail) in content[..1100 * 40].chunks(40).enumerate() {
        let from = number as u32 * 40;
        let place = WalPlace::Bytes { file, from, to: from + 40 };
        log.put(1, place, Bytes::copy_from_slice(tail), None).await.unwrap();
    }
    let reader = world.repository.wal_reader(SYSTEM).unwrap();
    let found = fetch_segment(&reader, &segment(3).file_name(size())).await.unwrap().unwrap();
    assert_eq!(found.end, 1100 * 40);
}

/// Time is made up: it moves when everybody waits.
#[tokio::test(start_paused = true)]
async fn what_is_on_its_way_while_later_files_are_there_is_no_gap() {
    let arrives = async |world: &World, number| {
        tokio::time::sleep(MOMENT / 2).await;
        world.put(number, 1, MIB).await;
    };
    let world = World::new().await;
    for number in [3, 4, 6] {
        world.put(number, 1, MIB).await;
    }
    let reader = world.repository.wal_reader(SYSTEM).unwrap();
    let (found, ()) = tokio::join!(survey(&reader), arrives(&world, 5));
    assert_eq!(found.unwrap().gaps, []);
    world.put(8, 1, MIB).await;
    let (map, ()) = tokio::join!(LogMap::read(&reader, size(), 0), arrives(&world, 7));
    let first = crate::history::History::root(Timeline::FIRST);
    let end = size().start_of(9);
    assert_eq!(map.unwrap().reach(&first, size().start_of(3)).end, end);
    // What does not come is one.
    world.put(10, 1, MIB).await;
    assert_eq!(gaps(&world).await, [(1, 9, 10, GapKind::Missing)]);
    let map = LogMap::read(&reader, size(), 0).await.unwrap();
    assert_eq!(map.reach(&first, size().start_of(3)).end, end);
}

#[tokio::test(start_paused = true)]
async fn a_gap_that_is_being_filled_is_one_until_it_is_full() {
    let world = World::new().await;
    for number in [3, 20] {
        world.put(number, 1, MIB).await;
    }
    let fill = async {
        tokio::time::sleep(MOMENT / 2).await;
        for number in 4..14 {
            world.put(number, 1, MIB).await;
            tokio::time::sleep(MOMENT).await;
        }
    };
    let (found, ()) = tokio::join!(gaps(&world), fill);
    let [(1, from, 20, GapKind::Missing)] = found[..] else { panic!("{found:?}") };
    assert!(from > 4, "it was looked for again");
}
