//! One file to be restored.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use keepwell_catalog::{Entry, MapKey};

use super::Work;
use crate::Error;
use crate::target::TargetFile;

/// A file and how far it has come. Pieces of it may arrive from several threads.
pub(super) struct Job {
    pub key: MapKey,
    pub entry: Entry,
    /// Pieces still to come; the thread that writes the last one finishes the file.
    pub missing: AtomicU32,
    /// What of a file this is, if not all of it.
    pub part: Option<Part>,
    failed: AtomicBool,
    file: Mutex<Option<Box<dyn TargetFile>>>,
}

/// A part of a file that is delivered in several.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// Where it begins.
    pub at: u64,
    /// Whether what the file holds there may be right already.
    pub compare: bool,
}

impl Job {
    pub fn new(key: MapKey, entry: Entry) -> Self {
        Self {
            key,
            entry,
            missing: AtomicU32::new(0),
            part: None,
            failed: AtomicBool::new(false),
            file: Mutex::new(None),
        }
    }

    /// A part of a file; its entry has the extents of that part alone.
    pub fn of_part(key: MapKey, entry: Entry, part: Part, file: Option<Box<dyn TargetFile>>) -> Self {
        Self { part: Some(part), file: Mutex::new(file), ..Self::new(key, entry) }
    }

    /// The file, for the next part. `None` if something of this one could not be restored.
    pub fn into_file(self) -> Option<Box<dyn TargetFile>> {
        let file = self.file.into_inner().unwrap_or_else(PoisonError::into_inner);
        file.filter(|_| !self.failed.into_inner())
    }

    /// The file that is at hand from the part before.
    pub fn take_file(&self) -> Option<Box<dyn TargetFile>> {
        self.lock().take()
    }

    /// Notes that nothing of this can be restored.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Uses a file that exists instead of a new one.
    pub fn use_file(&self, file: Box<dyn TargetFile>) {
        *self.lock() = Some(file);
    }

    /// Whether one chunk is the whole content.
    pub fn is_one_piece(&self, length: u64) -> bool {
        self.entry.content.len() == 1 && self.entry.size == length && self.lock().is_none()
    }

    /// Writes a piece where it belongs.
    pub fn write(&self, work: &Work, at: u64, data: &[u8]) -> Result<(), Error> {
        let mut file = self.lock();
        if file.is_none() {
            *file = Some(work.target.create_file(&self.key, &self.entry)?);
        }
        file.as_ref().expect("created above").write_at(at, data)?;
        Ok(())
    }

    /// Notes that a piece has arrived, or never will; finishes the file after the last one.
    pub fn piece_done(&self, work: &Work, piece: Result<(), Error>) -> Result<(), Error> {
        if let Err(error) = piece
            && !self.failed.swap(true, Ordering::Relaxed)
        {
            work.problem(&self.key, error)?;
        }
        if self.missing.fetch_sub(1, Ordering::AcqRel) > 1 || self.part.is_some() {
            return Ok(());
        }
        let file = self.lock().take();
        if self.failed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let finished = match file {
            Some(file) => file.finish(&self.entry).map_err(Error::from),
            None => Ok(()),
        };
        match finished {
            Ok(()) => {
                work.tally.files_written.fetch_add(1, Ordering::Relaxed);
                work.repository.monitor().advance(1, 0);
                Ok(())
            }
            Err(error) => work.problem(&self.key, error),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Box<dyn TargetFile>>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
