//! Sources without an order, whose items come with their contents.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use keepwell_catalog::{Entry, EntryKind};

use crate::Error;
use crate::source::{Content, Found, Item, Opened, Order, Piece, Preflight, Previous, Source, SourceError};
use crate::testing::{World, key, noise, options, restored, snapshot_of};

/// A stretch of a content.
#[derive(Clone)]
enum Part {
    Data(Vec<u8>),
    Kept(u64),
    Hole(u64),
    Broken,
}

/// Files as they come; a walk can be told to fail at its end.
#[derive(Default)]
struct Stream {
    files: Vec<(&'static str, Vec<Part>)>,
    fails: bool,
    heard: Mutex<Vec<Previous>>,
}

struct Parts(std::vec::IntoIter<Part>, Vec<u8>);

impl Content for Parts {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<Piece> {
        if self.1.is_empty() {
            match self.0.next() {
                Some(Part::Data(data)) => self.1 = data,
                Some(Part::Kept(bytes)) => return Ok(Piece::Kept(bytes)),
                Some(Part::Hole(bytes)) => return Ok(Piece::Hole(bytes)),
                Some(Part::Broken) => return Err(io::Error::other("the line is dead")),
                None => return Ok(Piece::End),
            }
        }
        let bytes = buf.len().min(self.1.len());
        buf[..bytes].copy_from_slice(&self.1[..bytes]);
        self.1.drain(..bytes);
        Ok(Piece::Data(bytes))
    }

    fn changed_while_read(&mut self) -> io::Result<bool> {
        Ok(false)
    }

    fn chunk_bytes(&self) -> Option<usize> {
        Some(512)
    }
}

impl Source for Stream {
    fn kind(&self) -> &str {
        "stream"
    }
    fn paths(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }
    fn preflight(&self) -> Result<Preflight, SourceError> {
        Ok(Preflight::default())
    }
    fn order(&self) -> Order {
        Order::Any
    }
    fn previous(&self, entries: Vec<Previous>) {
        *self.heard.lock().unwrap() = entries;
    }
    fn walk(&self, visit: &mut dyn FnMut(Found) -> ControlFlow<()>) -> Result<(), SourceError> {
        for (name, parts) in &self.files {
            let item = Item {
                key: key(name),
                kind: EntryKind::File,
                size: 0,
                fingerprint: [0; 16],
                hard_link: None,
            };
            let content = Box::new(Parts(parts.clone().into_iter(), Vec::new()));
            let opened = Opened { entry: Entry::new(EntryKind::File), content: Some(content) };
            if visit(Found::Opened(item, Box::new(opened))).is_break() {
                return Ok(());
            }
        }
        if self.fails { Err(SourceError::Other("the server is gone".into())) } else { Ok(()) }
    }
    fn open(&self, _: &Item) -> Result<Option<Opened>, SourceError> {
        panic!("everything comes with its content")
    }
}

/// What is restored of a stream, by name; with the report of its capture.
async fn capture(
    world: &World,
    stream: Stream,
) -> Result<(BTreeMap<String, Vec<u8>>, crate::BackupReport, Vec<Previous>), Error> {
    let stream = Arc::new(stream);
    let report = world.repository.backup(Arc::clone(&stream) as Arc<dyn Source>, options("stream")).await?;
    let snapshot = snapshot_of(&world.repository, &report).await;
    let tree = restored(&world.repository, &snapshot).await;
    let files = tree.0.into_iter().map(|(key, thing)| (key.display_path(), thing.bytes())).collect();
    let heard = stream.heard.lock().unwrap().clone();
    Ok((files, report, heard))
}

fn data(seed: u64, bytes: usize) -> Part {
    Part::Data(noise(seed, bytes))
}

#[tokio::test]
async fn a_stream_is_sorted_and_what_it_kept_is_put_together_with_what_is_new() {
    let world = World::new().await;
    let old = noise(1, 4096);
    let files = vec![
        ("z", vec![Part::Data(old.clone())]),
        ("b", vec![Part::Data(old.clone())]),
        ("a", vec![data(2, 10)]),
        ("m", vec![]),
    ];
    let (first, report, heard) = capture(&world, Stream { files, ..Stream::default() }).await.unwrap();
    assert_eq!(first.keys().collect::<Vec<_>>(), ["a", "b", "m", "z"]);
    assert!(first["z"] == old && first["b"] == old && first["m"].is_empty());
    assert_eq!((report.statistics.new_files, heard.len()), (4, 0));
    assert_eq!(report.statistics.new_chunks - 1, 8 + 1, "eight of 512 bytes, one small one, and the root");

    let files = vec![
        ("b", vec![Part::Kept(4096)]),
        (
            "z",
            vec![
                Part::Kept(300),
                data(3, 100),
                Part::Kept(3000),
                data(4, 50),
                Part::Hole(70),
                Part::Kept(500),
            ],
        ),
        ("new", vec![data(5, 5)]),
    ];
    let (second, report, heard) = capture(&world, Stream { files, ..Stream::default() }).await.unwrap();
    let heard: Vec<_> = heard.iter().map(|e| (e.key.display_path(), e.size, e.extents, e.whole)).collect();
    let expected = [("a", 10, 1, true), ("b", 4096, 8, true), ("m", 0, 0, true), ("z", 4096, 8, true)];
    assert_eq!(heard, expected.map(|(name, size, extents, whole)| (name.to_owned(), size, extents, whole)));
    let merged =
        [&old[..300], &noise(3, 100)[..], &old[400..3400], &noise(4, 50), &[0; 70], &old[3520..4020]]
            .concat();
    assert!(second["z"] == merged && second["b"] == old && second.len() == 3);
    let s = &report.statistics;
    assert_eq!((s.new_files, s.changed_files, s.unchanged_files, s.bytes_read), (1, 1, 1, 155));
    assert_eq!(s.new_chunks - 1, 2, "what is new in a file shares a chunk");

    // Built on what was built.
    let files = vec![("z", vec![Part::Kept(4020)])];
    let (third, report, _) = capture(&world, Stream { files, ..Stream::default() }).await.unwrap();
    assert!(third["z"] == merged && report.statistics.unchanged_files == 1);
    world.repository.check(crate::CheckOptions::default()).await.unwrap();
}

#[tokio::test]
async fn a_stream_that_breaks_off_or_keeps_what_is_not_there_commits_nothing() {
    let world = World::new().await;
    let failing = Stream { files: vec![("a", vec![data(6, 9)])], fails: true, ..Stream::default() };
    assert_eq!(capture(&world, failing).await.unwrap_err().to_string(), "the server is gone");
    for files in [vec![("a", vec![Part::Kept(1)])], vec![("b", vec![data(7, 9)]), ("b", vec![data(8, 9)])]] {
        assert!(capture(&world, Stream { files, ..Stream::default() }).await.is_err());
    }
    assert!(world.repository.snapshots().await.unwrap().is_empty());
    let files = vec![("a", vec![data(6, 700), Part::Broken]), ("b", vec![data(7, 9)])];
    let (found, report, _) = capture(&world, Stream { files, ..Stream::default() }).await.unwrap();
    assert_eq!(found.keys().collect::<Vec<_>>(), ["b"]);
    assert!(!report.complete && report.problem_count == 1);
    let longer = Stream { files: vec![("b", vec![Part::Kept(10)])], ..Stream::default() };
    assert!(capture(&world, longer).await.is_err(), "it kept more than there was");
}
