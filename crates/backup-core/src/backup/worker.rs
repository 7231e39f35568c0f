//! A worker: opens items, chunks and stores what is new.

use std::io;

use crossbeam_channel::Sender;
use keepwell_catalog::{Entry, EntryKind, Extent, MapKey, RECORD_VALUE_BYTES_MAX, Statistics};
use keepwell_crypto::{ChunkKind, IdKey};

use super::encoded::Encoded;
use super::queue::{Queue, Task, Work};
use super::result::{Outcome, Step};
use super::runs::{KEPT, Runs};
use super::scan::Alarm;
use crate::Error;
use crate::cancel::Cancel;
use crate::chunker::Chunker;
use crate::error::one_line;
use crate::monitor::Monitor;
use crate::pack::FrameBuilder;
use crate::source::{Content, Item, Opened, Order, Piece, Source, SourceError};
use crate::write::{Known, OWN_FRAME_MIN, Packer, buffer_bytes};

/// What all workers of one capture share.
#[derive(Clone, Copy)]
pub(super) struct Shop<'a> {
    pub source: &'a dyn Source,
    pub queue: &'a Queue,
    pub known: &'a Known,
    pub chunker: &'a Chunker,
    pub id_key: &'a IdKey,
    pub monitor: &'a dyn Monitor,
    pub window: &'a super::scan::Window,
    pub cancel: &'a Cancel,
}

pub(super) struct Worker<'a> {
    shop: Shop<'a>,
    packer: Packer<'a>,
    results: Sender<Step>,
    buffer: Vec<u8>,
}

impl<'a> Worker<'a> {
    pub fn new(shop: Shop<'a>, packer: Packer<'a>, results: Sender<Step>) -> Self {
        let buffer = vec![0; buffer_bytes(shop.chunker.sizes())];
        Self { shop, packer, results, buffer }
    }

    /// Works until the queue ends; a failure aborts the queue for everyone.
    pub fn run(mut self) -> Result<(), Error> {
        let alarm = Alarm(self.shop.queue, self.shop.window);
        self.work()?;
        std::mem::forget(alarm);
        Ok(())
    }

    fn work(&mut self) -> Result<(), Error> {
        let mut flushes = 0;
        while let Some(task) = self.shop.queue.next(&mut flushes) {
            match task {
                Task::Frame(frame) => self.packer.add_frame(&frame)?,
                Task::Flush => {
                    self.packer.finish()?;
                    self.shop.queue.flushed();
                }
                Task::Batch(batch) => {
                    let outcomes: Result<Vec<_>, _> =
                        batch.items.into_iter().map(|work| self.process(work)).collect();
                    self.shop.queue.done();
                    let step = Step::Batch { number: batch.number, outcomes: outcomes? };
                    if self.results.send(step).is_err() {
                        return Err(Error::Cancelled);
                    }
                }
            }
        }
        self.packer.finish()
    }

    fn process(&mut self, work: Work) -> Result<Outcome, Error> {
        match work {
            Work::Reuse(outcome) => Ok(*outcome),
            Work::Capture { item, seen } => self.capture(item, seen),
            Work::Opened { item, opened } => self.take_in(item, *opened, false),
        }
    }

    fn capture(&mut self, item: Item, seen: bool) -> Result<Outcome, Error> {
        self.shop.cancel.check()?;
        let opened = match self.shop.source.open(&item) {
            Ok(Some(opened)) => opened,
            Ok(None) => return Ok(Outcome::gone(item.key, "vanished before it could be read".into())),
            Err(failed @ SourceError::Failed(_)) => return Err(failed.into()),
            Err(error) => return Ok(Outcome::lost(item.key, one_line(&error))),
        };
        self.take_in(item, opened, seen)
    }

    fn take_in(&mut self, item: Item, opened: Opened, seen: bool) -> Result<Outcome, Error> {
        let mut counts = Statistics::default();
        let mut entry = opened.entry;
        let mut problem = None;
        let mut fingerprint = item.fingerprint;
        if let Some(mut content) = opened.content {
            match self.store(content.as_mut(), &mut entry, &mut counts)? {
                Ok(false) => {}
                Ok(true) => {
                    problem = Some("changed while it was read".to_owned());
                    fingerprint = [0; 16];
                }
                Err(error) => return unread(item.key, error),
            }
        }
        // Without an order it turns out at the end what is new.
        if self.shop.source.order() == Order::Ascending {
            count_kind(&mut counts, &entry, if seen { Novelty::Changed } else { Novelty::New });
        }
        self.shop.monitor.advance(1, 0);
        let first_name = entry.hard_link.clone();
        let (encoded, lacks) = encode(&item.key, entry)?;
        if lacks.is_some() {
            fingerprint = [0; 16];
        }
        Ok(Outcome {
            key: item.key,
            entry: Some(encoded),
            is_item: true,
            first_name,
            fingerprint,
            lost: lacks.is_some(),
            problem: lacks.or(problem),
            reused: false,
            follows: false,
            counts,
        })
    }

    /// Chunks and stores a content. The outer error ends the backup, the inner one only this item.
    /// `true` means that the content changed while it was read.
    fn store(
        &mut self,
        content: &mut dyn Content,
        entry: &mut Entry,
        counts: &mut Statistics,
    ) -> Result<io::Result<bool>, Error> {
        let (mut from, mut to) = (0, 0);
        let mut runs = Runs::default();
        let fixed = content.chunk_bytes().map(|bytes| bytes.min(self.buffer.len() / 2));
        entry.content.clear();
        entry.size = 0;
        loop {
            self.shop.cancel.check()?;
            if to == self.buffer.len() {
                self.buffer.copy_within(from..to, 0);
                (from, to) = (0, to - from);
            }
            let piece = match content.read(&mut self.buffer[to..]) {
                Ok(piece) => piece,
                Err(error) => return Ok(Err(error)),
            };
            if let Piece::Data(n) = piece {
                let n = n.min(self.buffer.len() - to);
                runs.extend(&mut entry.content, n);
                to += n;
                counts.bytes_read += n as u64;
                self.shop.monitor.advance(0, n as u64);
            }
            let at_end = match piece {
                Piece::Data(_) => false,
                // What is new on either side of them may share a chunk.
                Piece::Hole(_) | Piece::Kept(_) => fixed.is_none(),
                Piece::End => true,
            };
            while let Some(n) = self.cut(fixed, &self.buffer[from..to], at_end) {
                self.store_chunk(from..from + n, entry, &mut runs, counts)?;
                from += n;
            }
            if from == to {
                (from, to) = (0, 0);
            }
            match piece {
                Piece::Data(_) => {}
                Piece::Hole(length) => {
                    runs.close();
                    entry.content.push(Extent::Hole { length });
                    entry.size += length;
                    self.shop.monitor.advance(0, length);
                }
                Piece::Kept(length) => {
                    runs.close();
                    keep(length, entry);
                    self.shop.monitor.advance(0, length);
                }
                Piece::End => return Ok(content.changed_while_read()),
            }
        }
    }

    /// Length of the first chunk, or `None` while more bytes are needed to tell.
    fn cut(&self, fixed: Option<usize>, bytes: &[u8], at_end: bool) -> Option<usize> {
        match fixed {
            None => self.shop.chunker.cut(bytes, at_end),
            Some(length) if bytes.len() >= length => Some(length),
            Some(_) => (at_end && !bytes.is_empty()).then_some(bytes.len()),
        }
    }

    fn store_chunk(
        &mut self,
        range: std::ops::Range<usize>,
        entry: &mut Entry,
        runs: &mut Runs,
        counts: &mut Statistics,
    ) -> Result<(), Error> {
        let chunk = &self.buffer[range];
        let id = self.shop.id_key.chunk_id(ChunkKind::Content, chunk);
        let length = u32::try_from(chunk.len()).expect("a chunk is at most 4 MiB");
        runs.settle(&mut entry.content, id, length);
        entry.size += u64::from(length);
        if !self.shop.known.claim(&id)? {
            return Ok(());
        }
        counts.new_chunks += 1;
        counts.new_plain_bytes += u64::from(length);
        if chunk.len() < OWN_FRAME_MIN {
            return self.packer.add(id, chunk);
        }
        let mut frame = FrameBuilder::default();
        frame.push(id, chunk);
        match self.shop.queue.offer(frame) {
            Ok(()) => Ok(()),
            Err(frame) => self.packer.add_frame(&frame),
        }
    }
}

/// A content that cannot be read costs its item, unless what the source is made from failed.
fn unread(key: MapKey, error: io::Error) -> Result<Outcome, Error> {
    let lost = |error: &dyn std::fmt::Display| Outcome::lost(key, format!("read failed: {error}"));
    match error.downcast::<SourceError>() {
        Ok(failed @ SourceError::Failed(_)) => Err(failed.into()),
        Ok(error) => Ok(lost(&error)),
        Err(error) => Ok(lost(&error)),
    }
}

/// Encodes an entry. One with more extended attributes than a record has room for goes without them and says so: anybody can
/// give that many to a file, and that must not end the capture of all the others.
fn encode(key: &MapKey, mut entry: Entry) -> Result<(Encoded, Option<String>), Error> {
    let encoded = Encoded::new(key, &entry)?;
    let bytes = encoded.value.len();
    if bytes <= RECORD_VALUE_BYTES_MAX || entry.xattrs.is_empty() {
        return Ok((encoded, None));
    }
    entry.xattrs.clear();
    let lacks = format!(
        "has more extended attributes than a snapshot can hold ({bytes} bytes of {RECORD_VALUE_BYTES_MAX}): captured without \
         them"
    );
    Ok((Encoded::new(key, &entry)?, Some(lacks)))
}

/// What these bytes are, the last capture knows; its entry is looked at when all is sorted.
fn keep(mut length: u64, entry: &mut Entry) {
    entry.size += length;
    while length > 0 {
        let part = length.min(1 << 30) as u32;
        entry.content.push(Extent::Chunk { id: KEPT, offset: 0, length: part });
        length -= u64::from(part);
    }
}

/// How an item relates to the previous capture.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Novelty {
    New,
    Changed,
    Unchanged,
}

/// Counts an item under its kind.
pub(crate) fn count_kind(counts: &mut Statistics, entry: &Entry, novelty: Novelty) {
    match entry.kind {
        EntryKind::File | EntryKind::Object => counts.files += 1,
        EntryKind::Directory => counts.directories += 1,
        _ => counts.others += 1,
    }
    if entry.kind.has_content() {
        counts.logical_bytes += entry.size;
        match novelty {
            Novelty::New => counts.new_files += 1,
            Novelty::Changed => counts.changed_files += 1,
            Novelty::Unchanged => counts.unchanged_files += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Thing, TreeModel, World, assert_same, back_up, key, restored, snapshot_of};

    #[tokio::test]
    async fn attributes_that_no_record_holds_cost_nothing_but_themselves() {
        let world = World::new().await;
        let mut large = Thing::file("content");
        large.entry.xattrs = (b'a'..=b'm').map(|name| (vec![name], vec![name; 64 << 10])).collect();
        let tree = TreeModel::default().with("a", large).with("b", Thing::file("other"));
        let mut without = tree.clone();
        without.0.get_mut(&key("a")).unwrap().entry.xattrs.clear();
        // Also when nothing has changed since.
        for _ in 0..2 {
            let report = back_up(&world.repository, &tree).await;
            assert_eq!((report.problem_count, report.complete), (1, false));
            let snapshot = snapshot_of(&world.repository, &report).await;
            assert_same(&restored(&world.repository, &snapshot).await, &without.as_restored());
        }
    }
}
