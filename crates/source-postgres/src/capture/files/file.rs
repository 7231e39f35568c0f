//! Contents that the engine's workers read from the server's files, and what they have to say when they are over.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backup_core::source::{Content, Piece};
use crc_fast::{CrcAlgorithm, Digest};
use keepwell_catalog::MapKey;

use super::super::content::CHUNK;
use super::super::intake::BadFile;
use super::super::manifest::Read;
use super::super::page::{PAGE, SEGMENT_PAGES, is_sound};
use super::super::pagemap::{Compare, PageMap};
use super::super::place::Relation;
use super::changes::Stretch;
use crate::lsn::Lsn;

/// Read at once: little enough to stay in the processor's cache until it is chunked.
const READ: usize = 256 << 10;
/// A page that does not fit its checksum may be half written. It is read again, after these pauses in milliseconds.
const PAUSES: [u64; 4] = [0, 1, 10, 100];
/// Only so many pages of a file are waited for.
const WAITED_MAX: u64 = 16;
/// Blocks that are named of one file.
const BLOCKS_MAX: usize = 100;

/// The bytes of a file, wherever it is read from.
pub(super) trait Bits: Send {
    /// Reads until the buffer is full or the file is over, further back with every call.
    fn read_at(&mut self, buffer: &mut [u8], at: u64) -> io::Result<usize>;

    /// Reads a page anew that was read before.
    fn read_again(&mut self, page: &mut [u8], at: u64) -> io::Result<usize>;
}

impl Bits for File {
    fn read_at(&mut self, mut buffer: &mut [u8], mut at: u64) -> io::Result<usize> {
        let mut got = 0;
        while !buffer.is_empty() {
            match FileExt::read_at(self, buffer, at) {
                Ok(0) => break,
                Ok(bytes) => {
                    buffer = &mut buffer[bytes..];
                    (got, at) = (got + bytes, at + bytes as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(got)
    }

    fn read_again(&mut self, page: &mut [u8], at: u64) -> io::Result<usize> {
        Bits::read_at(self, page, at)
    }
}

/// What the contents of one capture share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    over: Condvar,
    map: Mutex<MapState>,
}

#[derive(Debug, Default)]
struct State {
    open: usize,
    files: Vec<Read>,
    bad: Vec<BadFile>,
}

#[derive(Debug, Default)]
struct MapState {
    map: Option<PageMap>,
    lost: Option<io::Error>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn new(map: Option<PageMap>) -> Self {
        Self { map: Mutex::new(MapState { map, lost: None }), ..Self::default() }
    }

    /// Waits until every content was read or given up.
    pub fn wait(&self) {
        let mut state = lock(&self.state);
        while state.open > 0 {
            state = self.over.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A file that came along without a [`Reader`].
    pub fn add(&self, file: Read) {
        lock(&self.state).files.push(file);
    }

    /// Files that were read to their end, and those of them with pages that do not fit.
    pub fn take(&self) -> (Vec<Read>, Vec<BadFile>) {
        let mut state = lock(&self.state);
        (std::mem::take(&mut state.files), std::mem::take(&mut state.bad))
    }

    /// The page map, or why there is none any more.
    pub fn take_map(&self) -> Result<Option<PageMap>, io::Error> {
        let mut state = lock(&self.map);
        state.lost.take().map_or_else(|| Ok(state.map.take()), Err)
    }

    fn compare(&self, key: &MapKey) -> Option<Compare> {
        lock(&self.map).map.as_ref().map(|map| map.begin(key))
    }

    /// A map that cannot be written is given up.
    fn remember(&self, key: &MapKey, compare: &Compare) {
        let mut state = lock(&self.map);
        if let Some(Err(error)) = state.map.as_mut().map(|map| map.end(key, compare)) {
            *state = MapState { map: None, lost: Some(error) };
        }
    }
}

/// Counts a content for as long as it is there.
#[derive(Debug)]
struct Ticket(Arc<Shared>);

impl Ticket {
    fn new(shared: &Arc<Shared>) -> Self {
        lock(&shared.state).open += 1;
        Self(Arc::clone(shared))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        lock(&self.0.state).open -= 1;
        self.0.over.notify_all();
    }
}

/// What is to be read.
pub(super) struct Plan {
    pub key: MapKey,
    /// Below the data directory.
    pub path: String,
    /// `None` for what is not made of pages.
    pub relation: Option<Relation>,
    /// Pages changed before this place are judged by their checksum; `None` when pages bear none.
    pub judge: Option<Lsn>,
    /// Up to the size that the file had when it was opened.
    pub stretches: Vec<Stretch>,
    /// Whether pages are compared with the page map.
    pub compare: bool,
}

/// A part of what comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Run {
    Kept(u64),
    /// Bytes at the front of the buffer.
    Data(usize),
}

/// The content of a file that the server goes on writing to. What is cut off meanwhile, or torn, recovery mends.
pub(super) struct Reader {
    file: Box<dyn Bits>,
    plan: Plan,
    ticket: Ticket,
    at: u64,
    next: usize,
    size: u64,
    runs: VecDeque<Run>,
    /// Kept bytes that were not said yet, so that neighbours become one part.
    kept: u64,
    buffer: Vec<u8>,
    given: usize,
    compare: Option<Compare>,
    sum: Option<Digest>,
    bad: Option<BadFile>,
}

impl Reader {
    pub fn new(file: Box<dyn Bits>, plan: Plan, shared: &Arc<Shared>) -> Self {
        let whole = plan.stretches.iter().all(|stretch| !stretch.kept);
        Self {
            file,
            ticket: Ticket::new(shared),
            at: 0,
            next: 0,
            size: 0,
            runs: VecDeque::new(),
            kept: 0,
            buffer: Vec::new(),
            given: 0,
            compare: None,
            sum: whole.then(|| Digest::new(CrcAlgorithm::Crc32Iscsi)),
            bad: None,
            plan,
        }
    }

    /// Finds out what comes next. `false` at the end.
    fn fill(&mut self) -> io::Result<bool> {
        let Some(stretch) = self.plan.stretches.get(self.next).copied() else { return Ok(false) };
        if self.at == 0 && self.plan.compare && self.compare.is_none() {
            self.compare = self.ticket.0.compare(&self.plan.key);
        }
        let left = stretch.end - self.at;
        if stretch.kept {
            self.runs.push_back(Run::Kept(left));
            (self.at, self.size, self.next) = (stretch.end, stretch.end, self.next + 1);
            return Ok(true);
        }
        let wanted = usize::try_from(left).unwrap_or(READ).min(READ);
        self.buffer.resize(wanted, 0);
        self.given = 0;
        let mut got = self.file.read_at(&mut self.buffer, self.at)?;
        if self.plan.relation.is_some() {
            // The rest of a page that was not there when the capture began is written by recovery.
            got -= got % PAGE;
        }
        self.buffer.truncate(got);
        self.look()?;
        if let Some(sum) = &mut self.sum {
            sum.update(&self.buffer);
        }
        self.at += got as u64;
        self.size = self.at;
        if got < wanted {
            self.next = self.plan.stretches.len();
        } else if self.at == stretch.end {
            self.next += 1;
        }
        Ok(true)
    }

    /// Looks at the pages that were read: whether they are sound, and which are as they were.
    fn look(&mut self) -> io::Result<()> {
        if let (Some(relation), Some(start)) = (self.plan.relation, self.plan.judge) {
            self.judge(relation, start)?;
        }
        let Some(compare) = &mut self.compare else {
            if !self.buffer.is_empty() {
                self.runs.push_back(Run::Data(self.buffer.len()));
            }
            return Ok(());
        };
        for page in self.buffer.chunks(PAGE) {
            let bytes = page.len();
            match (compare.is_as_it_was(page), self.runs.back_mut()) {
                (true, Some(Run::Kept(kept))) => *kept += bytes as u64,
                (true, _) => self.runs.push_back(Run::Kept(bytes as u64)),
                (false, Some(Run::Data(data))) => *data += bytes,
                (false, _) => self.runs.push_back(Run::Data(bytes)),
            }
        }
        Ok(())
    }

    fn judge(&mut self, relation: Relation, start: Lsn) -> io::Result<()> {
        let first = (self.at / PAGE as u64) as u32;
        for (block, page) in (first..).zip(self.buffer.as_chunks_mut::<PAGE>().0) {
            let number = relation.segment.wrapping_mul(SEGMENT_PAGES).wrapping_add(block);
            if is_sound(page, number, start) {
                continue;
            }
            let waits = self.bad.as_ref().is_none_or(|bad| bad.count < WAITED_MAX);
            let is_sound = |page: &[u8; PAGE]| is_sound(page, number, start);
            if !mended(self.file.as_mut(), page, u64::from(block) * PAGE as u64, waits, is_sound)? {
                let bad = self.bad.get_or_insert_with(|| BadFile {
                    key: self.plan.key.clone(),
                    relation,
                    blocks: Vec::new(),
                    count: 0,
                });
                bad.count += 1;
                if bad.blocks.len() < BLOCKS_MAX {
                    bad.blocks.push(number);
                }
            }
        }
        Ok(())
    }

    /// The end was said.
    fn finish(&mut self) {
        let shared = &self.ticket.0;
        if let Some(compare) = &self.compare {
            shared.remember(&self.plan.key, compare);
        }
        let crc = self.sum.as_ref().map(|sum| sum.finalize() as u32);
        let file = Read { path: std::mem::take(&mut self.plan.path), size: self.size, crc };
        let mut state = lock(&shared.state);
        state.files.push(file);
        state.bad.extend(self.bad.take());
    }
}

/// Reads a page again until it is sound. `false` if it does not become so; what was read last is then in `page`.
fn mended(
    file: &mut dyn Bits,
    page: &mut [u8; PAGE],
    at: u64,
    waits: bool,
    is_sound: impl Fn(&[u8; PAGE]) -> bool,
) -> io::Result<bool> {
    for pause in &PAUSES[..if waits { PAUSES.len() } else { 1 }] {
        if *pause > 0 {
            std::thread::sleep(Duration::from_millis(*pause));
        }
        let mut again = [0; PAGE];
        // What was cut off meanwhile is no longer there to be judged.
        if file.read_again(&mut again, at)? < PAGE {
            return Ok(true);
        }
        *page = again;
        if is_sound(page) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Content for Reader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<Piece> {
        loop {
            match self.runs.pop_front() {
                Some(Run::Kept(bytes)) => {
                    self.kept += bytes;
                    // They lie in the buffer only if they were compared.
                    if self.compare.is_some() {
                        self.given += bytes as usize;
                    }
                }
                Some(Run::Data(left)) if self.kept > 0 => {
                    self.runs.push_front(Run::Data(left));
                    return Ok(Piece::Kept(std::mem::take(&mut self.kept)));
                }
                Some(Run::Data(left)) => {
                    let bytes = left.min(buf.len());
                    buf[..bytes].copy_from_slice(&self.buffer[self.given..self.given + bytes]);
                    self.given += bytes;
                    if left > bytes {
                        self.runs.push_front(Run::Data(left - bytes));
                    }
                    return Ok(Piece::Data(bytes));
                }
                None if self.fill()? => {}
                None if self.kept > 0 => return Ok(Piece::Kept(std::mem::take(&mut self.kept))),
                None => {
                    self.finish();
                    return Ok(Piece::End);
                }
            }
        }
    }

    fn changed_while_read(&mut self) -> io::Result<bool> {
        Ok(false)
    }

    fn chunk_bytes(&self) -> Option<usize> {
        self.plan.relation.map(|_| CHUNK)
    }
}

#[cfg(test)]
mod tests;
