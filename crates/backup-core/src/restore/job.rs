//! One file to be restored.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard};

use keepwell_catalog::{Entry, MapKey};

use super::Work;
use super::prepare::Existing;
use crate::Error;
use crate::target::TargetFile;

/// A file and how far it has come. Pieces of it may arrive from several threads.
pub(super) struct Job {
    pub key: MapKey,
    pub entry: Entry,
    /// Stretches of which nobody knows yet what is needed.
    pub unprepared: AtomicU32,
    /// Pieces still to come; the thread that writes the last one finishes the file.
    pub missing: AtomicU32,
    /// What of a file this is, if not all of it.
    pub part: Option<Part>,
    failed: AtomicBool,
    file: RwLock<Option<Box<dyn TargetFile>>>,
    /// Bytes of the file that stood there before, once that was looked for.
    had_bytes: OnceLock<Option<u64>>,
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
            unprepared: AtomicU32::new(0),
            missing: AtomicU32::new(0),
            part: None,
            failed: AtomicBool::new(false),
            file: RwLock::new(None),
            had_bytes: OnceLock::new(),
        }
    }

    /// A part of a file; its entry has the extents of that part alone.
    pub fn of_part(key: MapKey, entry: Entry, part: Part, file: Option<Box<dyn TargetFile>>) -> Self {
        Self { part: Some(part), file: RwLock::new(file), ..Self::new(key, entry) }
    }

    /// The file, for the next part. `None` if something of this one could not be restored.
    pub fn into_file(self) -> Option<Box<dyn TargetFile>> {
        let file = self.file.into_inner().unwrap_or_else(PoisonError::into_inner);
        file.filter(|_| !self.failed.into_inner())
    }

    /// Looks for what stands there, once, unless the file is at hand from the part before.
    pub fn open(&self, existing: impl FnOnce() -> Result<Option<Existing>, Error>) -> Result<(), Error> {
        if self.had_bytes.get().is_some() {
            return Ok(());
        }
        let mut file = self.file.write().unwrap_or_else(PoisonError::into_inner);
        if self.had_bytes.get().is_none() {
            let (found, bytes) = if file.is_some() { (None, None) } else { existing()?.unzip() };
            if found.is_some() {
                *file = found;
            }
            let _ = self.had_bytes.set(bytes);
        }
        Ok(())
    }

    /// Bytes of the file that stood there before.
    pub fn had_bytes(&self) -> Option<u64> {
        self.had_bytes.get().copied().flatten()
    }

    /// The file, once there is one.
    pub fn file(&self) -> RwLockReadGuard<'_, Option<Box<dyn TargetFile>>> {
        self.file.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes it.
    pub fn take_file(&self) -> Option<Box<dyn TargetFile>> {
        self.file.write().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Notes that nothing of this can be restored. `false` if that was known.
    pub fn fail(&self) -> bool {
        !self.failed.swap(true, Ordering::Relaxed)
    }

    /// Whether something of it could not be restored.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Uses this file.
    pub fn use_file(&self, file: Box<dyn TargetFile>) {
        *self.file.write().unwrap_or_else(PoisonError::into_inner) = Some(file);
    }

    /// Whether one chunk is the whole content.
    pub fn is_one_piece(&self, length: u64) -> bool {
        self.entry.content.len() == 1 && self.entry.size == length && self.file().is_none()
    }

    /// Writes a piece where it belongs.
    pub fn write(&self, work: &Work, at: u64, data: &[u8]) -> Result<(), Error> {
        loop {
            if let Some(file) = self.file().as_ref() {
                return Ok(file.write_at(at, data)?);
            }
            let mut file = self.file.write().unwrap_or_else(PoisonError::into_inner);
            if file.is_none() {
                *file = Some(work.target.create_file(&self.key, &self.entry)?);
            }
        }
    }

    /// Notes that a piece has arrived, or never will; finishes the file after the last one.
    pub fn piece_done(&self, work: &Work, piece: Result<(), Error>) -> Result<(), Error> {
        if let Err(error) = piece
            && self.fail()
        {
            work.problem(&self.key, error)?;
        }
        if self.missing.fetch_sub(1, Ordering::AcqRel) > 1 || self.part.is_some() {
            return Ok(());
        }
        let file = self.take_file();
        if self.has_failed() {
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
}
