//! Streams that break, from servers that are played here.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use backup_core::env::SystemClock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::*;
use crate::history::History;
use crate::lsn::Timeline;
use crate::options::ConnectOptions;
use crate::receive::{CONNECT_MAX, Progress, ReceiveOptions};
use crate::testing::{SYSTEM, Store, World, content, greeted, message, played, row, size, socket};

const LENGTH: u64 = 1 << 20;

fn at(number: u64, offset: u64) -> Lsn {
    size().start_of(number).plus(offset)
}

/// How a stream goes that begins here.
struct Play {
    from: Lsn,
    wal: Vec<u8>,
    then: Then,
}

#[derive(PartialEq)]
enum Then {
    /// The host dies, and the store is away until somebody has it back.
    Dies,
    /// The timeline ends here, and the store is away.
    Ends,
    /// The timeline is said to end behind what was sent.
    Skips,
    /// What follows was removed.
    Gone,
    /// It goes on.
    Stays,
    /// It says nothing any more, and its system keeps the connection.
    Hangs,
}

fn whole(numbers: std::ops::Range<u64>) -> Vec<u8> {
    numbers.flat_map(|number| content(SYSTEM, number, 1)).collect()
}

/// Sends WAL as a walsender does.
async fn send(stream: &mut UnixStream, from: Lsn, wal: &[u8]) {
    stream.write_all(&message(b'W', &[0; 3])).await.unwrap();
    for (number, piece) in wal.chunks(64 << 10).enumerate() {
        let start = from.plus(number as u64 * (64 << 10)).get().to_be_bytes();
        let body = [&b"w"[..], &start, &start, &[0; 8], piece].concat();
        stream.write_all(&message(b'd', &body)).await.unwrap();
    }
}

/// The next message of a client, with its kind; `None` when it is gone.
async fn heard(stream: &mut UnixStream) -> Option<(u8, Vec<u8>)> {
    let tag = stream.read_u8().await.ok()?;
    let mut body = vec![0; stream.read_u32().await.ok()? as usize - 4];
    stream.read_exact(&mut body).await.ok()?;
    Some((tag, body))
}

/// A server that has come to the end of segment 11; each stream that is asked for must be the next of these.
async fn serve(listener: UnixListener, plays: Vec<Play>, store: Arc<Store>) {
    let (mut plays, ready) = (plays.into_iter(), message(b'Z', b"I"));
    let (mut switch, mut answers): (Option<Lsn>, bool) = (None, false);
    let mut stream = greeted(&listener).await;
    let position = at(12, 0).to_string();
    while let Some((tag, body)) = heard(&mut stream).await {
        if tag == b'd' && answers && body.last() == Some(&1) {
            // To a report that asks for an answer.
            let alive = [&b"k"[..], &[0; 17]].concat();
            let _ = stream.write_all(&message(b'd', &alive)).await;
            continue;
        }
        let command = String::from_utf8_lossy(&body).into_owned();
        let answer = match command.as_str() {
            // The end of the stream, and reports.
            _ if tag == b'c' => match switch.take() {
                Some(at) => row(&[("next_tli", "2"), ("next_tli_startpos", &at.to_string())]),
                None => [message(b'c', b""), message(b'C', b"COPY 0\0")].concat(),
            },
            _ if tag != b'Q' => continue,
            text if text.starts_with("IDENTIFY_SYSTEM") => {
                row(&[("systemid", &SYSTEM.to_string()), ("timeline", "1"), ("xlogpos", &position)])
            }
            text if text.starts_with("SELECT setting") => row(&[("bytes", &LENGTH.to_string())]),
            text => {
                let play = plays.next().expect("one stream more than there should be");
                assert_eq!(text, format!("START_REPLICATION PHYSICAL {} TIMELINE 1\0", play.from));
                store.away.store(matches!(play.then, Then::Dies | Then::Ends), Ordering::SeqCst);
                send(&mut stream, play.from, &play.wal).await;
                match play.then {
                    Then::Dies => {
                        // With the report that each stream begins with: one that fails would end it before all is read.
                        heard(&mut stream).await;
                        return;
                    }
                    Then::Ends | Then::Skips => {
                        let skipped = if play.then == Then::Skips { 8 } else { 0 };
                        switch = Some(play.from.plus(play.wal.len() as u64 + skipped));
                        stream.write_all(&message(b'c', b"")).await.unwrap();
                        continue;
                    }
                    Then::Stays => {
                        answers = true;
                        continue;
                    }
                    Then::Hangs => continue,
                    Then::Gone => message(b'E', b"SERROR\0C58P01\0Mit was removed\0\0"),
                }
            }
        };
        stream.write_all(&[answer, ready.clone()].concat()).await.unwrap();
    }
}

/// A receiver at work, and the server that it has.
struct Running {
    _dir: tempfile::TempDir,
    server: JoinHandle<()>,
    receiver: JoinHandle<Result<Progress, ReceiveError>>,
    progress: watch::Receiver<Progress>,
    stop: watch::Sender<bool>,
}

fn start(world: &World, plays: Vec<Play>) -> Running {
    let (_dir, listener, connect) = socket();
    let server = tokio::spawn(serve(listener, plays, Arc::clone(&world.store)));
    let (stop, stopped) = watch::channel(false);
    let options = ReceiveOptions {
        dataset: "db".into(),
        tail_every: Duration::from_secs(3600),
        ..ReceiveOptions::default()
    };
    let receiver = Receiver::new(world.repository.clone(), connect, options, Arc::new(SystemClock), stopped);
    let progress = receiver.progress();
    Running { _dir, server, receiver: tokio::spawn(receiver.run()), progress, stop }
}

/// Receives from such a server until something holds of the progress; gives the last of it.
async fn received(world: &World, plays: Vec<Play>, until: impl FnMut(&Progress) -> bool) -> Progress {
    let all = plays.iter().map(|play| play.from.plus(play.wal.len() as u64)).max().unwrap();
    let Running { _dir, server, receiver, mut progress, stop } = start(world, plays);
    let held = async {
        progress.wait_for(|p| p.received == all).await.unwrap();
        world.store.away.store(false, Ordering::SeqCst);
        *progress.wait_for(until).await.unwrap()
    };
    let held = tokio::time::timeout(Duration::from_secs(60), held).await.expect("it must not hang");
    stop.send(true).unwrap();
    // What it could not say to a server that is gone is its business.
    let _ = receiver.await.unwrap();
    if server.is_finished() {
        server.await.unwrap();
    }
    held
}

/// A repository with these segments.
async fn archived<const N: usize>(numbers: [u64; N]) -> World {
    let world = World::new().await;
    for number in numbers {
        world.put(number, 1, LENGTH as u32).await;
    }
    world
}

#[tokio::test]
async fn what_had_arrived_is_archived_although_the_server_is_gone() {
    let world = archived([1, 2, 3, 4]).await;
    let wal = [whole(5..7), vec![9; 1000]].concat();
    let plays = vec![Play { from: at(5, 0), wal, then: Then::Dies }];
    received(&world, plays, |p| p.durable == at(7, 1000)).await;
    let pieces = world.archive().await.pieces_from(1, 0).await.unwrap();
    assert_eq!(pieces.len(), 7, "four were there; two whole ones and a tail arrived");
}

#[tokio::test]
async fn a_gap_begins_where_the_stream_ended_and_not_where_it_began() {
    let world = archived([1, 2, 3, 4]).await;
    let wal = [whole(5..7), vec![9; 1000]].concat();
    let plays = vec![
        Play { from: at(5, 0), wal, then: Then::Gone },
        Play { from: at(7, 0), wal: Vec::new(), then: Then::Gone },
        Play { from: at(12, 0), wal: vec![9; 100], then: Then::Stays },
    ];
    let progress = received(&world, plays, |_| true).await;
    assert_eq!(progress.gaps, 1);
    let pieces = world.archive().await.pieces_from(1, 0).await.unwrap();
    assert_eq!(pieces.len(), 8, "what had arrived was archived first, and what follows the gap");
}

#[tokio::test]
async fn the_timeline_behind_a_gap_is_archived_with_its_history() {
    let (world, (_dir, _listener, connect)) = (archived([1, 2, 3, 4]).await, socket());
    let (system, position) = (SYSTEM.to_string(), at(12, 0).to_string());
    let history = format!("1\t{}\tx\n", at(9, 50));
    let (_other, mut client) = played(vec![
        ("IDENTIFY_SYSTEM", row(&[("systemid", &system), ("timeline", "2"), ("xlogpos", &position)])),
        ("TIMELINE_HISTORY 2", row(&[("filename", "00000002.history"), ("content", &history)])),
    ])
    .await;
    let (_stop, stopped) = watch::channel(false);
    let (clock, options) = (Arc::new(SystemClock), ReceiveOptions::default());
    let mut receiver = Receiver::new(world.repository.clone(), connect, options, clock, stopped);
    let (archive, first) = (world.archive().await, History::root(Timeline::FIRST));
    // A standby that was on the first when the connection began.
    let begin = begin::fresh(&first, at(5, 0), size());
    let next = receiver.across_gap(&mut client, &archive, size(), &begin).await.unwrap();
    assert_eq!((next.timeline.get(), next.at), (2, at(12, 0)));
    assert_eq!(archive.pieces_from(2, u64::MAX).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_hole_that_was_filled_is_no_gap_and_is_not_gone_back_to() {
    let world = archived([1, 2, 3, 4, 6, 7]).await;
    let plays = vec![
        Play { from: at(5, 0), wal: whole(5..9), then: Then::Gone },
        Play { from: at(9, 0), wal: Vec::new(), then: Then::Gone },
        Play { from: at(12, 0), wal: vec![9; 100], then: Then::Stays },
    ];
    assert_eq!(received(&world, plays, |_| true).await.gaps, 1);
    // A gap that is known is told of once, also when what is behind it is gone later.
    let world = archived([1, 2, 3, 4, 6, 7]).await;
    let plays = vec![
        Play { from: at(5, 0), wal: Vec::new(), then: Then::Gone },
        Play { from: at(8, 0), wal: whole(8..9), then: Then::Gone },
        Play { from: at(5, 0), wal: Vec::new(), then: Then::Gone },
        Play { from: at(9, 0), wal: Vec::new(), then: Then::Gone },
        Play { from: at(12, 0), wal: vec![9; 100], then: Then::Stays },
    ];
    assert_eq!(received(&world, plays, |_| true).await.gaps, 2);
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_although_its_system_keeps_the_connection() {
    let world = archived([1, 2, 3, 4]).await;
    let mut running = start(&world, vec![Play { from: at(5, 0), wal: whole(5..6), then: Then::Hangs }]);
    drop(running.progress.wait_for(|p| p.durable == at(6, 0)).await.unwrap());
    // By a clock that moves when all wait.
    tokio::time::pause();
    let given_up = running.progress.wait_for(|p| !p.streaming);
    drop(tokio::time::timeout(Duration::from_secs(3600), given_up).await.expect("it is silent").unwrap());
    running.stop.send(true).unwrap();
    // What it could not say to a server that hangs is its business.
    let _ = running.receiver.await.unwrap();
}

#[tokio::test]
async fn a_server_that_lets_nobody_in_is_not_waited_for_without_end_nor_by_who_is_told_to_stop() {
    let (world, (_dir, listener, connect)) = (World::new().await, socket());
    let (stop, stopped) = watch::channel(false);
    let receiver = |connect| {
        let (clock, options) = (Arc::new(SystemClock), ReceiveOptions::default());
        Receiver::new(world.repository.clone(), connect, options, clock, stopped.clone())
    };
    let short = ConnectOptions { connect_timeout: Some(Duration::from_secs(5)), ..connect.clone() };
    assert_eq!(receiver(short).connect.connect_timeout, Some(Duration::from_secs(5)));
    let receiver = receiver(connect);
    assert_eq!(receiver.connect.connect_timeout, Some(CONNECT_MAX));
    let running = tokio::spawn(receiver.run());
    // Its system took the connection.
    let _stream = listener.accept().await.unwrap();
    stop.send(true).unwrap();
    let ended = tokio::time::timeout(CONNECT_MAX / 2, running).await.expect("it must not hang");
    ended.unwrap().unwrap();
}

#[tokio::test]
async fn a_timeline_does_not_end_behind_what_was_sent_of_it() {
    let world = archived([1, 2, 3, 4]).await;
    let running = start(&world, vec![Play { from: at(5, 0), wal: whole(5..6), then: Then::Skips }]);
    let ended = running.receiver.await.unwrap().unwrap_err();
    assert!(matches!(ended, ReceiveError::Server(PgError::Protocol(_))), "{ended}");
    assert_eq!(running.progress.borrow().durable, at(6, 0));
}

#[tokio::test]
async fn what_was_given_up_at_the_end_of_a_timeline_is_not_reported_as_durable_on_the_next() {
    let world = archived([1, 2, 3, 4]).await;
    let wal = [whole(5..7), vec![9; 1000]].concat();
    let running = start(&world, vec![Play { from: at(5, 0), wal, then: Then::Ends }]);
    // Two whole ones, and the tail at the end of the stream.
    while world.store.refused.load(Ordering::SeqCst) < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    running.stop.send(true).unwrap();
    // The store is waited for longer than a test should take.
    tokio::time::pause();
    let ended = running.receiver.await.unwrap().unwrap();
    assert_eq!(ended.durable, at(5, 0));
    if running.server.is_finished() {
        running.server.await.unwrap();
    }
}
