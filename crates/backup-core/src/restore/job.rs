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
    failed: AtomicBool,
    file: Mutex<Option<Box<dyn TargetFile>>>,
}

impl Job {
    pub fn new(key: MapKey, entry: Entry) -> Self {
        Self {
            key,
            entry,
            missing: AtomicU32::new(0),
            failed: AtomicBool::new(false),
            file: Mutex::new(None),
        }
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
        if self.missing.fetch_sub(1, Ordering::AcqRel) > 1 {
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
