//! A file of more extents than a window holds.

use std::sync::atomic::Ordering;

use keepwell_catalog::{Entry, EntryKind, Extent, MapKey};

use super::Work;
use super::deliver::deliver;
use super::job::{Job, Part};
use crate::Error;
use crate::target::TargetFile;

/// A file with so many extents that it is delivered in parts.
pub(super) struct Parts {
    at: u64,
    compare: bool,
    written_before: u64,
    file: Option<Box<dyn TargetFile>>,
}

impl Parts {
    pub fn begin(work: &Work, key: &MapKey) -> Result<Self, Error> {
        let compare = !work.fresh && work.target.existing(key)?.is_some_and(|e| e.kind == EntryKind::File);
        let written_before = work.tally.bytes_written.load(Ordering::Relaxed);
        Ok(Self { at: 0, compare, written_before, file: None })
    }

    /// Delivers the next part, of which `entry` has the extents. `false` if that did not succeed, which was noted as a
    /// problem.
    pub fn deliver(&mut self, work: &Work, key: &MapKey, entry: Entry) -> Result<bool, Error> {
        let bytes: u64 = entry.content.iter().map(Extent::length).sum();
        let part = Part { at: self.at, compare: self.compare };
        let job = Job::of_part(key.clone(), entry, part, self.file.take());
        deliver(work, std::slice::from_ref(&job))?;
        self.file = job.into_file();
        self.at += bytes;
        Ok(self.file.is_some())
    }

    /// Puts the file under its name.
    pub fn finish(self, work: &Work, entry: &Entry) -> Result<(), Error> {
        if let Some(file) = self.file {
            file.finish(entry)?;
        }
        let written = work.tally.bytes_written.load(Ordering::Relaxed) > self.written_before;
        let counter =
            if written || !self.compare { &work.tally.files_written } else { &work.tally.files_unchanged };
        counter.fetch_add(1, Ordering::Relaxed);
        work.repository.monitor().advance(1, 0);
        Ok(())
    }
}
