//! Serving WAL to a recovering server over a local socket, ahead of what it asks for.
//!
//! PostgreSQL asks for one file at a time and waits for each. Whoever serves it opens the repository once, and fetches
//! the next segments while the last one is replayed.
//!
//! A request is the name of a file and a newline. The answer begins with a byte: `F` and the file (its length as u64 LE,
//! then its bytes), `M` when the archive does not have it, `G` and a message (likewise) where the archive has a gap, `B` and
//! a message where it begins only later, `E` and a message for any other trouble. Before it stands a `W` for each while that
//! it took to find out.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backup_core::wal::WalReader;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::archive::{
    ArchiveError, Asker, Fetched, SegmentFile, fetch_for, fetch_segment, fetch_segment_for,
};
use crate::lsn::{Segment, SegmentSize};

/// Segments that are fetched ahead take so much memory at most, and twice that while they are put together.
const AHEAD_BYTES_MAX: usize = 128 << 20;
/// And there are so many of them at most.
const AHEAD_MAX: u64 = 8;
/// A request is the name of a file.
const NAME_BYTES_MAX: usize = 64;
/// A client that neither asks nor takes its answer for so long is not waited for; the store may take longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// It is told that often in that time that its answer is on its way.
const PULSES: u32 = 3;
/// A server that says nothing for so long is not waited for: it was stopped, or hangs.
const SILENCE: Duration = Duration::from_secs(60);
/// What a client accepts: the largest segment, and some.
const ANSWER_BYTES_MAX: u64 = (1 << 30) + 1;

type Fetching = JoinHandle<Result<Option<SegmentFile>, ArchiveError>>;

/// Fetches files of one cluster's log, and those that will be asked for next.
#[derive(Debug)]
pub struct WalServer {
    reader: WalReader,
    ahead: Mutex<HashMap<String, Fetching>>,
    ahead_max: u64,
    asker: Asker,
    patience: Duration,
    waits: AtomicU64,
}

impl WalServer {
    /// Serves the log that `reader` reads to servers of which this is known.
    pub fn new(reader: WalReader, asker: Asker) -> Arc<Self> {
        Self::with_ahead(reader, AHEAD_MAX, asker)
    }

    /// The same for whoever has little memory: at most so many segments are fetched ahead, and no more than
    /// [`WalServer::new`] would.
    pub fn with_ahead(reader: WalReader, segments: u64, asker: Asker) -> Arc<Self> {
        let mut server = Self::patient(reader, PATIENCE);
        (server.ahead_max, server.asker) = (segments.min(AHEAD_MAX), asker);
        Arc::new(server)
    }

    fn patient(reader: WalReader, patience: Duration) -> Self {
        let (ahead, waits) = (Mutex::default(), AtomicU64::new(0));
        Self { reader, ahead, ahead_max: AHEAD_MAX, asker: Asker::default(), patience, waits }
    }

    /// Gives a file as [`fetch_for`] does, and begins to fetch the next ones.
    ///
    /// Only whole segments are remembered: that something is missing, damaged or short is found out anew each time.
    pub async fn get(self: &Arc<Self>, name: &str) -> Result<Fetched, ArchiveError> {
        let fetched = self.ahead().remove(name);
        if !fetched.as_ref().is_some_and(JoinHandle::is_finished) {
            self.waits.fetch_add(1, Ordering::Relaxed);
        }
        let ready = match fetched {
            Some(task) => match task.await {
                Ok(Ok(Some(file))) if file.is_whole() => Some(file),
                _ => None,
            },
            None => None,
        };
        if name.ends_with(".history") {
            return fetch_for(&self.reader, name, self.asker).await;
        }
        let file = match ready {
            Some(file) => Some(file),
            None => fetch_segment_for(&self.reader, name, self.asker).await?,
        };
        let Some(file) = file else { return Ok(Fetched::Missing) };
        if file.is_whole() {
            self.look_ahead(name, file.content.len());
        }
        Ok(Fetched::Found(file.content))
    }

    /// How often a file that was asked for was not there yet.
    pub fn waits(&self) -> u64 {
        self.waits.load(Ordering::Relaxed)
    }

    fn ahead(&self) -> std::sync::MutexGuard<'_, HashMap<String, Fetching>> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to fetch what follows a segment, and forgets what does not.
    fn look_ahead(&self, name: &str, length: usize) {
        let Some(size) = SegmentSize::new(length as u64) else { return };
        let Ok(segment) = Segment::parse(name, size) else { return };
        let count = self.ahead_max.min((AHEAD_BYTES_MAX / length) as u64).max(1);
        let names: Vec<String> = (1..=count)
            .map(|step| Segment { number: segment.number + step, ..segment }.file_name(size))
            .collect();
        let mut ahead = self.ahead();
        ahead.retain(|name, task| {
            let stays = names.contains(name);
            if !stays {
                task.abort();
            }
            stays
        });
        for name in names {
            let reader = self.reader.clone();
            ahead
                .entry(name.clone())
                .or_insert_with(|| tokio::spawn(async move { fetch_segment(&reader, &name).await }));
        }
    }

    /// Answers requests until `stopped` says so, or until nobody asked for `idle`.
    pub async fn run(
        self: Arc<Self>,
        listener: UnixListener,
        idle: Option<Duration>,
        mut stopped: watch::Receiver<bool>,
    ) -> io::Result<()> {
        loop {
            let patience = async {
                match idle {
                    Some(idle) => tokio::time::sleep(idle).await,
                    None => std::future::pending().await,
                }
            };
            let stream = tokio::select! {
                accepted = listener.accept() => accepted?.0,
                _ = stopped.wait_for(|stop| *stop) => return Ok(()),
                () = patience => return Ok(()),
            };
            let this = Arc::clone(&self);
            tokio::spawn(async move {
                // A client that went away says so by itself: its server asks again.
                let _ = this.answer(stream).await;
            });
        }
    }

    async fn answer(self: Arc<Self>, mut stream: UnixStream) -> io::Result<()> {
        let name = tokio::time::timeout(self.patience, asked(&mut stream)).await??;
        let name = String::from_utf8_lossy(&name);
        let mut getting = std::pin::pin!(self.get(&name));
        let got = loop {
            tokio::select! {
                got = &mut getting => break got,
                () = tokio::time::sleep(self.patience / PULSES) => {
                    tokio::time::timeout(self.patience, stream.write_all(b"W")).await??;
                }
            }
        };
        let (kind, content) = match got {
            Ok(Fetched::Found(content)) => (b'F', content),
            Ok(Fetched::Missing) => (b'M', Vec::new()),
            Err(error @ ArchiveError::Gap { .. }) => (b'G', crate::one_line(&error).into_bytes()),
            Err(error @ ArchiveError::BeginsLater { .. }) => (b'B', crate::one_line(&error).into_bytes()),
            Err(error) => (b'E', crate::one_line(&error).into_bytes()),
        };
        let written = async {
            stream.write_all(&[kind]).await?;
            stream.write_all(&(content.len() as u64).to_le_bytes()).await?;
            stream.write_all(&content).await?;
            stream.flush().await
        };
        tokio::time::timeout(self.patience, written).await?
    }
}

/// Reads the name of a file.
async fn asked(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let (mut name, mut byte) = (Vec::new(), [0]);
    while stream.read(&mut byte).await? == 1 && byte[0] != b'\n' && name.len() < NAME_BYTES_MAX {
        name.push(byte[0]);
    }
    Ok(name)
}

impl Drop for WalServer {
    fn drop(&mut self) {
        self.ahead().drain().for_each(|(_, task)| task.abort());
    }
}

/// Asks a [`WalServer`] for a file. Any trouble, also that nobody answers, is an error and never [`Fetched::Missing`].
pub fn ask(socket: &Path, name: &str) -> io::Result<Fetched> {
    ask_within(socket, name, SILENCE).map_err(|error| match error.kind() {
        // What a socket calls it.
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "who serves the WAL is silent"),
        _ => error,
    })
}

fn ask_within(socket: &Path, name: &str, silence: Duration) -> io::Result<Fetched> {
    let mut stream = StdStream::connect(socket)?;
    stream.set_read_timeout(Some(silence))?;
    stream.set_write_timeout(Some(silence))?;
    stream.write_all(format!("{name}\n").as_bytes())?;
    let (mut kind, mut length) = ([b'W'], [0; 8]);
    while kind == [b'W'] {
        stream.read_exact(&mut kind)?;
    }
    stream.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > ANSWER_BYTES_MAX {
        return Err(io::Error::other("the answer is longer than any file of WAL"));
    }
    let mut content = Vec::new();
    stream.take(length).read_to_end(&mut content)?;
    if content.len() as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    match kind[0] {
        b'F' => Ok(Fetched::Found(content)),
        b'M' => Ok(Fetched::Missing),
        kind => {
            let message = String::from_utf8_lossy(&content).into_owned();
            Err(match kind {
                b'G' => io::Error::other(Lacking { begins_later: false, message }),
                b'B' => io::Error::other(Lacking { begins_later: true, message }),
                _ => io::Error::other(message),
            })
        }
    }
}

/// Whether [`ask`] failed because the archive has a gap at the file.
pub fn is_gap(error: &io::Error) -> bool {
    lacking(error).is_some_and(|lacking| !lacking.begins_later)
}

/// Whether [`ask`] failed because the archive begins behind the file.
pub fn begins_later(error: &io::Error) -> bool {
    lacking(error).is_some_and(|lacking| lacking.begins_later)
}

fn lacking(error: &io::Error) -> Option<&Lacking> {
    error.get_ref()?.downcast_ref()
}

/// The archive answered, does not have the file, and has later ones.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Lacking {
    begins_later: bool,
    message: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{SYSTEM, World, content, segment, size};

    fn name(number: u64) -> String {
        segment(number).file_name(size())
    }

    async fn settled(server: &WalServer) {
        while server.ahead().values().any(|task| !task.is_finished()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn the_next_segments_are_there_before_they_are_asked_for() {
        let world = World::new().await;
        for number in 3..20 {
            world.put(number, number as u8, size().get()).await;
        }
        let server = WalServer::new(world.repository.wal_reader(SYSTEM).unwrap(), Asker::default());
        server.get(&name(3)).await.unwrap();
        settled(&server).await;
        let reads = world.store.reads.load(Ordering::SeqCst);
        world.store.away.store(true, Ordering::SeqCst);
        for number in 4..=3 + AHEAD_MAX {
            let expected = Fetched::Found(content(SYSTEM, number, number as u8));
            // What comes behind it fails now, and must not be remembered.
            assert_eq!(server.get(&name(number)).await.unwrap(), expected);
        }
        assert_eq!(world.store.reads.load(Ordering::SeqCst), reads, "nothing is fetched twice");
        assert!(
            server.get(&name(4 + AHEAD_MAX)).await.is_err(),
            "a store that is away is not the end of the log"
        );
        world.store.away.store(false, Ordering::SeqCst);
        assert!(matches!(server.get(&name(4 + AHEAD_MAX)).await, Ok(Fetched::Found(_))));
    }

    /// A fetch costs several requests, one after the other, and that of the last segment the most: nothing behind it says
    /// that it is no gap. The clock is a made-up one: it moves when everything waits, by as much as it takes.
    #[tokio::test(start_paused = true)]
    async fn a_replay_waits_for_no_segment_but_the_first_two_though_each_fetch_takes_longer_than_its_replay()
    {
        const SEGMENTS: u64 = 60;
        let world = World::new().await;
        for number in 3..3 + SEGMENTS {
            world.put(number, number as u8, size().get()).await;
        }
        let replay = async |server: &Arc<WalServer>| {
            for number in 3..3 + SEGMENTS {
                let expected = Fetched::Found(content(SYSTEM, number, number as u8));
                assert_eq!(server.get(&name(number)).await.unwrap(), expected);
                tokio::time::sleep(Duration::from_millis(40)).await;
            }
        };
        *world.store.latency.lock().unwrap() = Duration::from_millis(50);
        let server = WalServer::new(world.repository.wal_reader(SYSTEM).unwrap(), Asker::default());
        replay(&server).await;
        assert_eq!(server.waits(), 2, "of {SEGMENTS}");
        // Eight ahead do not suffice when a fetch takes as long as twenty-five replays: then it shows.
        *world.store.latency.lock().unwrap() = Duration::from_millis(250);
        let server = WalServer::new(world.repository.wal_reader(SYSTEM).unwrap(), Asker::default());
        replay(&server).await;
        assert!(server.waits() > 2, "{}", server.waits());
    }

    #[tokio::test]
    async fn the_end_of_the_log_is_looked_for_anew_each_time() {
        let world = World::new().await;
        world.put(3, 3, size().get()).await;
        world.put(4, 4, 1000).await;
        let server = WalServer::new(world.repository.wal_reader(SYSTEM).unwrap(), Asker::default());
        server.get(&name(3)).await.unwrap();
        settled(&server).await;
        // Meanwhile the log grew.
        world.put(4, 4, size().get()).await;
        world.put(5, 5, 500).await;
        assert_eq!(server.get(&name(4)).await.unwrap(), Fetched::Found(content(SYSTEM, 4, 4)));
        assert!(matches!(server.get(&name(5)).await, Ok(Fetched::Found(_))));
        assert_eq!(server.get(&name(6)).await.unwrap(), Fetched::Missing);
    }

    #[tokio::test]
    async fn a_server_that_ends_before_a_gap_is_served_up_to_it_and_reads_ahead() {
        let world = World::new().await;
        world.put(3, 3, size().get()).await;
        world.put(4, 4, 1000).await;
        world.put(6, 6, size().get()).await;
        let reader = world.repository.wal_reader(SYSTEM).unwrap();
        let short = [content(SYSTEM, 4, 4)[..1000].to_vec(), vec![0; size().get() as usize - 1000]].concat();
        let server = WalServer::new(reader.clone(), Asker { to_gap: true, ..Asker::default() });
        assert_eq!(server.get(&name(3)).await.unwrap(), Fetched::Found(content(SYSTEM, 3, 3)));
        assert_eq!(server.get(&name(4)).await.unwrap(), Fetched::Found(short));
        assert_eq!(server.get(&name(5)).await.unwrap(), Fetched::Missing);
        let other = WalServer::new(reader, Asker::default());
        for number in [4, 5] {
            assert!(matches!(other.get(&name(number)).await, Err(ArchiveError::Gap { .. })), "{number}");
        }
    }

    #[tokio::test]
    async fn a_client_waits_for_a_slow_store_and_is_not_waited_for_itself() {
        let world = World::new().await;
        world.put(3, 3, size().get()).await;
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("wal");
        let (_stop, stopped) = watch::channel(false);
        let patience = Duration::from_secs(5); // far more than the asking thread needs between two of its calls
        let server = Arc::new(WalServer::patient(world.repository.wal_reader(SYSTEM).unwrap(), patience));
        tokio::spawn(server.run(UnixListener::bind(&socket).unwrap(), None, stopped));
        let held = world.store.gate.lock().await;
        let asked = socket.clone();
        let asking = tokio::task::spawn_blocking(move || super::ask(&asked, &name(3)));
        // This one says nothing; that it is sent away shows that patience is over for the other one, too, which was told
        // meanwhile that its answer is on its way.
        let mut silent = UnixStream::connect(&socket).await.unwrap();
        assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
        drop(held);
        assert_eq!(asking.await.unwrap().unwrap(), Fetched::Found(content(SYSTEM, 3, 3)));
    }

    #[test]
    fn a_server_that_is_silent_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("wal");
        // It takes the request, as one does that was stopped.
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let silent = ask_within(&socket, &name(3), Duration::from_millis(20)).unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::WouldBlock, "{silent}");
    }

    #[tokio::test]
    async fn over_the_socket_missing_is_missing_and_a_gap_or_a_dead_server_is_not() {
        let world = World::new().await;
        world.put(3, 3, size().get()).await;
        world.put(5, 5, size().get()).await;
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("wal");
        let (stop, stopped) = watch::channel(false);
        let server = WalServer::new(world.repository.wal_reader(SYSTEM).unwrap(), Asker::default());
        let listener = UnixListener::bind(&socket).unwrap();
        let running = tokio::spawn(server.run(listener, None, stopped));
        let ask = |name: String| {
            let socket = socket.clone();
            tokio::task::spawn_blocking(move || super::ask(&socket, &name))
        };
        let answer = ask(name(3)).await.unwrap().unwrap();
        assert_eq!(answer, Fetched::Found(content(SYSTEM, 3, 3)));
        assert_eq!(ask(name(9)).await.unwrap().unwrap(), Fetched::Missing);
        assert_eq!(ask("00000002.history".into()).await.unwrap().unwrap(), Fetched::Missing);
        let gap = ask(name(4)).await.unwrap().unwrap_err();
        assert!(is_gap(&gap) && !begins_later(&gap));
        let before = ask(name(2)).await.unwrap().unwrap_err();
        assert!(begins_later(&before) && !is_gap(&before));
        world.store.away.store(true, Ordering::SeqCst);
        // What is ahead is served all the same; this one has to be fetched.
        let error = ask(name(3)).await.unwrap().unwrap_err();
        assert!(!is_gap(&error) && error.to_string().contains("it is away"), "{error}");
        stop.send(true).unwrap();
        running.await.unwrap().unwrap();
        assert!(ask(name(3)).await.unwrap().is_err());
    }
}
