//! One hollow file: which blocks of it stand in the directory, and how the others get there.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use backup_core::{Error, OpenFile, Tree};
use keepwell_catalog::MapKey;

/// What is fetched and marked as one; a page of PostgreSQL.
pub(super) const BLOCK: u64 = 8192;
/// Of one file, so much is fetched at once.
const FETCH_BYTES_MAX: u64 = 1 << 20;

/// A hollow file. What is changed in it before it was fetched is never overwritten by what the snapshot has.
#[derive(Debug)]
pub(super) struct Pending {
    pub key: MapKey,
    /// Bytes of it in the snapshot; what lies behind was written since.
    size: u64,
    /// Where it is read from while anybody has it open.
    source: Mutex<Weak<OpenFile>>,
    blocks: Mutex<Blocks>,
}

#[derive(Debug)]
struct Blocks {
    /// A bit for each that stands in the directory; empty before the first does.
    there: Vec<u64>,
    missing: u64,
}

impl Blocks {
    fn is_there(&self, block: u64) -> bool {
        self.there.get((block / 64) as usize).is_some_and(|word| word >> (block % 64) & 1 == 1)
    }

    /// The first stretch of a range that is missing, as far as `most` blocks.
    fn first_missing(&self, range: &Range<u64>, most: u64) -> Option<Range<u64>> {
        let first = range.clone().find(|block| !self.is_there(*block))?;
        let most = range.end.min(first.saturating_add(most));
        let end = (first..most).find(|block| self.is_there(*block)).unwrap_or(most);
        Some(first..end)
    }

    fn mark(&mut self, blocks: Range<u64>, count: u64) {
        if self.there.is_empty() && !blocks.is_empty() {
            self.there = vec![0; count.div_ceil(64) as usize];
        }
        for block in blocks {
            let bit = 1 << (block % 64);
            let word = &mut self.there[(block / 64) as usize];
            self.missing -= u64::from(*word & bit == 0);
            *word |= bit;
        }
    }
}

impl Pending {
    pub fn new(key: MapKey, size: u64) -> Self {
        let blocks = Blocks { there: Vec::new(), missing: size.div_ceil(BLOCK) };
        Self { key, size, source: Mutex::new(Weak::new()), blocks: Mutex::new(blocks) }
    }

    /// The file in the snapshot, shared by all who have it open.
    pub fn source(&self, tree: &Tree) -> Result<Arc<OpenFile>, Error> {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = source.upgrade() {
            return Ok(open);
        }
        let open = Arc::new(tree.open_blocking(&self.key)?);
        if open.size() != self.size {
            return Err(Error::Invalid("the file in the snapshot has another size".to_owned()));
        }
        *source = Arc::downgrade(&open);
        Ok(open)
    }

    /// Bytes that are to be fetched yet, to a block.
    pub fn missing_bytes(&self) -> u64 {
        self.lock().missing.saturating_mul(BLOCK)
    }

    /// How many blocks the snapshot has of it.
    fn count(&self) -> u64 {
        self.size.div_ceil(BLOCK)
    }

    fn lock(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first stretch of blocks in a range that is missing, of a length that is fetched at once.
    fn first_missing(&self, range: &Range<u64>) -> Option<Range<u64>> {
        self.lock().first_missing(range, FETCH_BYTES_MAX / BLOCK)
    }

    /// Makes these bytes stand in `file`, as far as the snapshot has them. `read` gives a stretch of the snapshot's file.
    ///
    /// Nothing is held while it waits for the repository; what was written meanwhile stays.
    pub fn fetch(
        &self,
        file: &File,
        bytes: Range<u64>,
        read: &dyn Fn(u64, usize) -> Result<bytes::Bytes, Error>,
    ) -> Result<(), FetchError> {
        let mut range = bytes.start / BLOCK..bytes.end.div_ceil(BLOCK).min(self.count());
        while let Some(wanted) = self.first_missing(&range) {
            range.start = wanted.end;
            let start = wanted.start * BLOCK;
            let end = (wanted.end * BLOCK).min(self.size);
            let data = read(start, (end - start) as usize)?;
            if data.len() as u64 != end - start {
                return Err(Error::Invalid("the file in the snapshot ends early".to_owned()).into());
            }
            let mut blocks = self.lock();
            let mut left = wanted;
            while let Some(run) = blocks.first_missing(&left, left.end) {
                let from = run.start * BLOCK - start;
                let to = (run.end * BLOCK - start).min(data.len() as u64);
                file.write_all_at(&data[from as usize..to as usize], start + from)?;
                left.start = run.end;
                blocks.mark(run, self.count());
            }
        }
        Ok(())
    }

    /// Writes: of blocks that are covered in part the rest is fetched first.
    pub fn write(
        &self,
        file: &File,
        data: &[u8],
        offset: u64,
        read: &dyn Fn(u64, usize) -> Result<bytes::Bytes, Error>,
    ) -> Result<(), FetchError> {
        let end = offset.saturating_add(data.len() as u64);
        if !offset.is_multiple_of(BLOCK) {
            self.fetch(file, offset..offset + 1, read)?;
        }
        if !end.is_multiple_of(BLOCK) && end < self.size {
            self.fetch(file, end - 1..end, read)?;
        }
        let mut blocks = self.lock();
        file.write_all_at(data, offset)?;
        let covered_to = if end >= self.size { self.count() } else { end / BLOCK };
        let first = offset.div_ceil(BLOCK).min(covered_to);
        blocks.mark(first..covered_to, self.count());
        Ok(())
    }

    /// Changes the size: what is cut off is never fetched again.
    pub fn truncate(
        &self,
        file: &File,
        size: u64,
        read: &dyn Fn(u64, usize) -> Result<bytes::Bytes, Error>,
    ) -> Result<(), FetchError> {
        if !size.is_multiple_of(BLOCK) && size < self.size {
            self.fetch(file, size..size + 1, read)?;
        }
        let mut blocks = self.lock();
        file.set_len(size)?;
        let first = size.div_ceil(BLOCK).min(self.count());
        blocks.mark(first..self.count(), self.count());
        Ok(())
    }

    /// Fetches everything that is missing, a stretch at a time; `go_on` is asked before each.
    pub fn fetch_all(
        &self,
        file: &File,
        read: &dyn Fn(u64, usize) -> Result<bytes::Bytes, Error>,
        go_on: &dyn Fn() -> bool,
    ) -> Result<(), FetchError> {
        let mut left = 0..self.count();
        while let Some(wanted) = self.first_missing(&left) {
            left.start = wanted.end;
            if !go_on() {
                return Err(Error::Cancelled.into());
            }
            self.fetch(file, wanted.start * BLOCK..wanted.end * BLOCK, read)?;
        }
        Ok(())
    }
}

/// Either side of a fetch may fail.
#[derive(Debug)]
pub(super) enum FetchError {
    Snapshot(Error),
    Directory(io::Error),
}

impl From<Error> for FetchError {
    fn from(error: Error) -> Self {
        Self::Snapshot(error)
    }
}

impl From<io::Error> for FetchError {
    fn from(error: io::Error) -> Self {
        Self::Directory(error)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// A file in a snapshot that counts what is asked of it.
    struct Stored {
        content: Vec<u8>,
        asked: RefCell<Vec<(u64, usize)>>,
    }

    impl Stored {
        fn new(len: usize) -> Self {
            let content = (0..len).map(|n| (n / 7 + n / 8192) as u8 | 1).collect();
            Self { content, asked: RefCell::default() }
        }

        fn read(&self, offset: u64, len: usize) -> Result<bytes::Bytes, Error> {
            self.asked.borrow_mut().push((offset, len));
            Ok(bytes::Bytes::copy_from_slice(&self.content[offset as usize..offset as usize + len]))
        }
    }

    fn hollow(stored: &Stored) -> (File, Pending) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(stored.content.len() as u64).unwrap();
        (file, Pending::new(MapKey::root(), stored.content.len() as u64))
    }

    fn content(file: &File) -> Vec<u8> {
        let mut all = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut all, 0).unwrap();
        all
    }

    #[test]
    fn whatever_is_done_to_a_hollow_file_it_is_what_a_full_one_would_be() {
        let mut seed = 1_u64;
        let mut roll = move |sides: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % sides
        };
        for round in 0..60 {
            let stored = Stored::new(1 + roll(300_000) as usize);
            let read = |offset: u64, len: usize| stored.read(offset, len);
            let (file, pending) = hollow(&stored);
            let mut full = stored.content.clone();
            for _ in 0..40 {
                let at = roll(full.len() as u64 + 20_000);
                let at = if roll(2) == 0 { at / BLOCK * BLOCK } else { at };
                let len = [BLOCK, 1 + roll(50_000)][roll(2) as usize];
                match roll(5) {
                    0 => {
                        pending.truncate(&file, at, &read).unwrap();
                        full.resize(at as usize, 0);
                    }
                    1 | 2 => {
                        let data = vec![roll(256) as u8; len as usize];
                        pending.write(&file, &data, at, &read).unwrap();
                        full.resize(full.len().max((at + len) as usize), 0);
                        full[at as usize..(at + len) as usize].copy_from_slice(&data);
                    }
                    _ => {
                        pending.fetch(&file, at..at + len, &read).unwrap();
                        let end = full.len().min((at + len) as usize);
                        let from = end.min(at as usize);
                        assert_eq!(content(&file)[from..end], full[from..end], "round {round}");
                    }
                }
            }
            pending.fetch_all(&file, &read, &|| true).unwrap();
            assert_eq!(pending.missing_bytes(), 0);
            assert!(content(&file) == full, "round {round}");
        }
    }

    #[test]
    fn nothing_is_fetched_that_is_overwritten_or_was_fetched_already() {
        let stored = Stored::new(100 * BLOCK as usize);
        let read = |offset: u64, len: usize| stored.read(offset, len);
        let (file, pending) = hollow(&stored);
        pending.write(&file, &[7; 2 * BLOCK as usize], 4 * BLOCK, &read).unwrap();
        pending.truncate(&file, 50 * BLOCK, &read).unwrap();
        assert_eq!(*stored.asked.borrow(), []);
        pending.fetch(&file, 3 * BLOCK + 5..5 * BLOCK, &read).unwrap();
        pending.fetch(&file, 3 * BLOCK..4 * BLOCK, &read).unwrap();
        assert_eq!(*stored.asked.borrow(), [(3 * BLOCK, BLOCK as usize)]);
        assert_eq!(pending.missing_bytes(), 47 * BLOCK);
    }

    #[test]
    fn what_cannot_be_fetched_is_no_zeros_and_can_be_fetched_later() {
        let stored = Stored::new(3 * BLOCK as usize);
        let (file, pending) = hollow(&stored);
        let fails = |_: u64, _: usize| Err(Error::Cancelled);
        assert!(pending.fetch(&file, 0..1, &fails).is_err());
        assert!(pending.write(&file, b"x", 5, &fails).is_err());
        assert_eq!(pending.missing_bytes(), 3 * BLOCK);
        pending.fetch(&file, 0..1, &|offset, len| stored.read(offset, len)).unwrap();
        assert_eq!(content(&file)[..BLOCK as usize], stored.content[..BLOCK as usize]);
    }
}
