use std::sync::atomic::Ordering;

use super::*;
use crate::archive::{Fetched, fetch};
use crate::testing::{SYSTEM, World, finished, segment, size};

/// A `pg_wal` with these segments, all of them ready.
fn directory(numbers: std::ops::Range<u64>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("archive_status")).unwrap();
    for number in numbers {
        let name = segment(number).file_name(size());
        fs::write(dir.path().join(&name), finished(SYSTEM, number, 1)).unwrap();
        fs::write(dir.path().join("archive_status").join(format!("{name}.ready")), "").unwrap();
    }
    dir
}

#[tokio::test]
async fn a_file_is_archived_once_and_those_ready_behind_it_with_it() {
    let (world, dir) = (World::new().await, directory(3..7));
    let pusher = Pusher::new(world.repository.clone(), "db".into());
    let path = |number: u64| dir.path().join(segment(number).file_name(size()));
    assert_eq!(pusher.push(&path(3), SYSTEM).await.unwrap(), Pushed::Stored);
    for number in 3..7 {
        assert_eq!(pusher.push(&path(number), SYSTEM).await.unwrap(), Pushed::Already, "{number}");
    }
    let reader = world.repository.wal_reader(SYSTEM).unwrap();
    for number in 3..7 {
        let found = fetch(&reader, &segment(number).file_name(size())).await.unwrap();
        assert_eq!(found, Fetched::Found(finished(SYSTEM, number, 1)));
    }
    for file in ["000000010000000000000003.00000028.backup", "000000010000000000000003.partial"] {
        assert_eq!(pusher.push(&dir.path().join(file), SYSTEM).await.unwrap(), Pushed::NotNeeded);
    }
}

#[tokio::test]
async fn what_was_stored_ahead_is_noted_while_it_stays_as_it_is() {
    let (world, dir) = (World::new().await, directory(3..40));
    let ahead = Ahead::new(dir.path().join("cache/note"));
    let pusher = Pusher::new(world.repository.clone(), "db".into()).noting(ahead.clone());
    let path = |number: u64| dir.path().join(segment(number).file_name(size()));
    assert!(!ahead.has(&path(4)));
    pusher.push(&path(3), SYSTEM).await.unwrap();
    let noted: Vec<u64> = (3..40).filter(|number| ahead.has(&path(*number))).collect();
    assert_eq!(noted, (4..4 + AHEAD_MAX as u64).collect::<Vec<_>>());
    let reader = world.repository.wal_reader(SYSTEM).unwrap();
    for number in noted {
        let found = fetch(&reader, &segment(number).file_name(size())).await.unwrap();
        assert_eq!(found, Fetched::Found(finished(SYSTEM, number, 1)));
    }
    // Another file of the same name, one that was written to, and one that is gone.
    fs::copy(path(5), dir.path().join("copy")).unwrap();
    fs::rename(dir.path().join("copy"), path(5)).unwrap();
    fs::OpenOptions::new().append(true).open(path(6)).unwrap().set_len(1).unwrap();
    fs::remove_file(path(7)).unwrap();
    assert_eq!([4, 5, 6, 7, 8].map(|number| ahead.has(&path(number))), [true, false, false, false, true]);
    fs::write(dir.path().join("cache/note"), [0xff; 40]).unwrap();
    assert!(!ahead.has(&path(4)));
}

/// What the server does with files that were archived.
fn asked(dir: &Path, numbers: impl IntoIterator<Item = u64>) {
    for number in numbers {
        let name = segment(number).file_name(size());
        fs::remove_file(dir.join("archive_status").join(format!("{name}.ready"))).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_follows_stores_each_file_once_and_no_more_than_are_asked_for() {
    let (world, dir) = (World::new().await, directory(3..103));
    let ahead = Ahead::new(dir.path().join("note"));
    let pusher = Pusher::new(world.repository.clone(), "db".into()).noting(ahead.clone());
    let path = |number: u64| dir.path().join(segment(number).file_name(size()));
    let noted = || (3..110).filter(|number| ahead.has(&path(*number))).collect::<Vec<u64>>();
    assert_eq!(pusher.follow(&path(3), SYSTEM).await.unwrap(), 64);
    assert_eq!(noted(), (4..68).collect::<Vec<_>>());
    let reader = world.repository.wal_reader(SYSTEM).unwrap();
    for number in noted() {
        let found = fetch(&reader, &segment(number).file_name(size())).await.unwrap();
        assert_eq!(found, Fetched::Found(finished(SYSTEM, number, 1)));
    }
    // Somebody follows while the server asks.
    asked(dir.path(), 3..60);
    let following = tokio::spawn({
        let (pusher, from) = (pusher.clone(), path(67));
        async move { pusher.follow(&from, SYSTEM).await }
    });
    asked(dir.path(), 60..68);
    assert_eq!(following.await.unwrap().unwrap(), 35);
    assert_eq!(noted(), (68..103).collect::<Vec<_>>());
    assert!(is_followed(&path(101)) && !is_followed(&path(102)) && !is_followed(&dir.path().join("note")));
    assert_eq!(pusher.follow(&path(102), SYSTEM).await.unwrap(), 0);
    assert_eq!(pusher.follow(&dir.path().join("nowhere"), SYSTEM).await.unwrap(), 0);
}

/// Time is made up, and stands still while a file is read: what the store takes in meanwhile is what was on its way.
#[tokio::test(start_paused = true)]
async fn whoever_follows_ends_at_what_cannot_be_stored() {
    let (world, dir) = (World::new().await, directory(3..50));
    *world.store.latency.lock().unwrap() = std::time::Duration::from_millis(50);
    let ahead = Ahead::new(dir.path().join("note"));
    let pusher = Pusher::new(world.repository.clone(), "db".into()).noting(ahead.clone());
    let path = |number: u64| dir.path().join(segment(number).file_name(size()));
    fs::write(path(9), finished(SYSTEM + 1, 9, 1)).unwrap();
    let stored = pusher.follow(&path(3), SYSTEM).await.unwrap();
    assert!((5..5 + AT_ONCE as u64).contains(&stored), "{stored}");
    assert!(ahead.has(&path(8)) && !ahead.has(&path(9)));
}

#[tokio::test(start_paused = true)]
async fn one_at_a_time_archives_ahead_and_the_others_wait_while_it_lives() {
    let dir = directory(3..6);
    let ahead = Ahead::new(dir.path().join("cache/note"));
    let path = |number: u64| dir.path().join(segment(number).file_name(size()));
    assert!(!ahead.wait_for(&path(3)).await, "nobody works at it");
    let turn = ahead.turn().unwrap().unwrap();
    assert!(ahead.turn().unwrap().is_none());
    let waiting = tokio::spawn({
        let (ahead, file) = (ahead.clone(), path(3));
        async move { ahead.wait_for(&file).await }
    });
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    assert!(!waiting.is_finished());
    ahead.note(&[(path(3), Stamp::of(&path(3)).unwrap())]);
    assert!(waiting.await.unwrap());
    // Handed on, it lasts as long as the last who has it.
    let copy = turn.into_file().try_clone().unwrap();
    assert!(!ahead.wait_for(&dir.path().join("00000002.history")).await, "nobody archives such ahead");
    let waiting = tokio::spawn({
        let (ahead, file) = (ahead.clone(), path(4));
        async move { ahead.wait_for(&file).await }
    });
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    assert!(!waiting.is_finished());
    drop(copy);
    assert!(!waiting.await.unwrap());
    assert!(ahead.turn().unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_file_that_whoever_archives_ahead_has_left_to_others() {
    let dir = directory(3..6);
    let ahead = Ahead::new(dir.path().join("cache/note"));
    let path = |number: u64| dir.path().join(segment(number).file_name(size()));
    let turn = ahead.turn().unwrap().unwrap();
    turn.behind(&path(4)).unwrap();
    let begun = tokio::time::Instant::now();
    assert!(!ahead.wait_for(&path(3)).await && !ahead.wait_for(&path(4)).await);
    assert_eq!(begun.elapsed(), std::time::Duration::ZERO, "by a clock that moves when all wait");
    let waiting = tokio::spawn({
        let (ahead, file) = (ahead.clone(), path(5));
        async move { ahead.wait_for(&file).await }
    });
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    assert!(!waiting.is_finished());
    drop(turn);
    assert!(!waiting.await.unwrap());
}

#[tokio::test]
async fn what_could_not_be_stored_ahead_is_not_noted() {
    let (world, dir) = (World::new().await, directory(3..8));
    let ahead = Ahead::new(dir.path().join("note"));
    let pusher = Pusher::new(world.repository.clone(), "db".into()).noting(ahead.clone());
    let path = |number: u64| dir.path().join(segment(number).file_name(size()));
    fs::write(path(5), finished(SYSTEM + 1, 5, 1)).unwrap();
    pusher.push(&path(3), SYSTEM).await.unwrap();
    assert_eq!([4, 5, 6, 7].map(|number| ahead.has(&path(number))), [true, false, true, true]);
    assert!(matches!(pusher.push(&path(5), SYSTEM).await, Err(PushError::NotWal { .. })));
}

#[tokio::test]
async fn what_is_wrong_is_refused_and_changes_nothing() {
    let (world, dir) = (World::new().await, directory(3..5));
    let pusher = Pusher::new(world.repository.clone(), "db".into());
    let path = dir.path().join(segment(3).file_name(size()));
    pusher.push(&path, SYSTEM).await.unwrap();
    fs::write(&path, finished(SYSTEM, 3, 2)).unwrap();
    assert!(matches!(pusher.push(&path, SYSTEM).await, Err(PushError::Different { .. })));
    fs::write(&path, finished(SYSTEM, 9, 1)).unwrap();
    assert!(matches!(pusher.push(&path, SYSTEM).await, Err(PushError::NotWal { .. })));
    fs::write(&path, finished(SYSTEM + 1, 3, 1)).unwrap();
    assert!(matches!(pusher.push(&path, SYSTEM).await, Err(PushError::NotWal { .. })));
    let bound = pusher.push(&path, SYSTEM + 1).await.unwrap_err();
    assert!(bound.to_string().starts_with("the log of `db` is that of cluster"), "{bound}");
    assert!(bound.hint().unwrap().contains("--dataset NAME"), "{:?}", bound.hint());
    fs::write(&path, "short").unwrap();
    assert!(matches!(pusher.push(&path, SYSTEM).await, Err(PushError::NotWal { .. })));
    assert!(matches!(pusher.push(&dir.path().join("nowhere"), SYSTEM).await, Err(PushError::NotWal { .. })));
    fs::write(&path, finished(SYSTEM, 3, 1)).unwrap();
    world.store.away.store(true, Ordering::SeqCst);
    assert!(matches!(pusher.push(&path, SYSTEM).await, Err(PushError::Repository(_))));
}

#[tokio::test]
async fn what_a_receiver_archived_in_part_is_completed() {
    let (world, dir) = (World::new().await, directory(3..4));
    let place = WalPlace::Bytes { file: segment(3).file_number(size()), from: 0, to: 4000 };
    let begun = Bytes::from(finished(SYSTEM, 3, 1)).slice(..4000);
    world.archive().await.put(1, place, begun, None).await.unwrap();
    let pusher = Pusher::new(world.repository.clone(), "db".into());
    let path = dir.path().join(segment(3).file_name(size()));
    assert_eq!(pusher.push(&path, SYSTEM).await.unwrap(), Pushed::Stored);
    assert_eq!(pusher.push(&path, SYSTEM).await.unwrap(), Pushed::Already);
}

#[tokio::test]
async fn what_a_standby_has_not_received_to_its_end_is_refused_until_it_has() {
    let (world, root) = (World::new().await, tempfile::tempdir().unwrap());
    let dir = root.path().join("pg_wal");
    fs::rename(directory(3..6).keep(), &dir).unwrap();
    let ahead = Ahead::new(root.path().join("note"));
    let pusher = Pusher::new(world.repository.clone(), "db".into()).noting(ahead.clone());
    let path = |number: u64| dir.join(segment(number).file_name(size()));
    let mut torn = finished(SYSTEM, 4, 1);
    torn[600_000..].fill(0);
    fs::write(path(4), &torn).unwrap();
    fs::write(root.path().join("standby.signal"), "").unwrap();
    pusher.push(&path(3), SYSTEM).await.unwrap();
    assert_eq!([4, 5].map(|number| ahead.has(&path(number))), [false, true]);
    let refused = pusher.push(&path(4), SYSTEM).await.unwrap_err();
    // Pages 0 to 73 begin before byte 600,000.
    let end = size().start_of(4).plus(74 * 8192);
    assert!(matches!(refused, PushError::Unfinished { end: found, .. } if found == end), "{refused}");
    assert!(refused.hint().is_some());
    fs::write(path(4), finished(SYSTEM, 4, 1)).unwrap();
    assert_eq!(pusher.push(&path(4), SYSTEM).await.unwrap(), Pushed::Stored);
    let reader = world.repository.wal_reader(SYSTEM).unwrap();
    let found = fetch(&reader, &segment(4).file_name(size())).await.unwrap();
    assert_eq!(found, Fetched::Found(finished(SYSTEM, 4, 1)));
}

/// Whose disk would fill up for a doubt of ours.
#[tokio::test]
async fn what_a_primary_has_written_is_taken_as_it_is() {
    let (world, dir) = (World::new().await, directory(3..4));
    let path = dir.path().join(segment(3).file_name(size()));
    let mut torn = finished(SYSTEM, 3, 1);
    torn[600_000..].fill(0);
    fs::write(&path, &torn).unwrap();
    let pusher = Pusher::new(world.repository.clone(), "db".into());
    assert_eq!(pusher.push(&path, SYSTEM).await.unwrap(), Pushed::Stored);
}

#[tokio::test]
async fn the_unfinished_end_of_a_timeline_is_not_needed() {
    let (world, dir) = (World::new().await, directory(3..5));
    let pusher = Pusher::new(world.repository.clone(), "db".into());
    let path = |number: u64| dir.path().join(segment(number).file_name(size()));
    let mut torn = finished(SYSTEM, 4, 1);
    torn[600_000..].fill(0);
    fs::write(path(4), &torn).unwrap();
    let ends_at = |number: u64| {
        let text = format!("1\t{}\tno recovery target specified\n", size().start_of(number).plus(500_000));
        fs::write(dir.path().join("00000002.history"), text).unwrap();
    };
    ends_at(4);
    assert_eq!(pusher.push(&path(4), SYSTEM).await.unwrap(), Pushed::NotNeeded);
    assert_eq!(pusher.push(&path(3), SYSTEM).await.unwrap(), Pushed::Stored, "a whole one is taken");
}

#[tokio::test]
async fn a_history_has_one_content() {
    let (world, dir) = (World::new().await, directory(3..3));
    let pusher = Pusher::new(world.repository.clone(), "db".into());
    let path = dir.path().join("00000002.history");
    fs::write(&path, "1\t0/5000000\tx\n").unwrap();
    assert_eq!(pusher.push(&path, SYSTEM).await.unwrap(), Pushed::Stored);
    assert_eq!(pusher.push(&path, SYSTEM).await.unwrap(), Pushed::Already);
    fs::write(&path, "1\t0/6000000\tx\n").unwrap();
    assert!(matches!(pusher.push(&path, SYSTEM).await, Err(PushError::Different { .. })));
    fs::write(&path, "nonsense\n").unwrap();
    assert!(matches!(pusher.push(&path, SYSTEM).await, Err(PushError::History(_))));
}
