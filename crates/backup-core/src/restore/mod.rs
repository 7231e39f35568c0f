//! Restoring: from a snapshot back to files.
//!
//! The tree is read in windows of bounded size. Of each window, files that exist already are compared chunk by chunk;
//! what is missing is grouped by pack, each pack is fetched once, while the one before it is decoded and verified, by
//! several threads, and written where it belongs. A directory gets its metadata when everything in it is there.

mod chosen;
mod cold;
mod deliver;
mod directories;
mod job;
mod packs;
mod parts;
mod plan;
mod prepare;
mod tree;
mod window;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use keepwell_catalog::{Entry, MapKey};

use crate::Error;
use crate::error::shown;
use crate::monitor::Monitor;
use crate::read::{FrameMemory, Nodes};
use crate::repository::{Repository, Snapshot};
use crate::target::{RestoreTarget, TargetError};

pub use cold::NeededPack;
pub use plan::RestorePlan;

/// Decides by path and entry whether something is restored.
pub type Select = Arc<dyn Fn(&MapKey, &Entry) -> bool + Send + Sync>;

/// What to restore, and how.
#[derive(Clone, Default)]
pub struct RestoreOptions {
    /// Restore only what is below this key (or the one thing at it), with the target in its place. `None`: everything.
    pub below: Option<MapKey>,
    /// Restore only what this accepts; directories on the way are made as needed. `None`: everything.
    pub select: Option<Select>,
    /// Remove what stands in restored directories and is not in the snapshot, as far as `select` accepts it, but nothing on a
    /// file system that is mounted within the target: that stays, and is named. A directory that holds something that `select`
    /// does not accept stays with that; where something else is to go in its place, that is refused.
    pub delete: bool,
}

/// What a restore did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestoreReport {
    /// Files created or changed.
    pub files_written: u64,
    /// Files whose content was right already.
    pub files_unchanged: u64,
    /// Directories made or found.
    pub directories: u64,
    /// Links, devices and the like.
    pub others: u64,
    /// Bytes of content written.
    pub bytes_written: u64,
    /// Bytes of content that were already right.
    pub bytes_unchanged: u64,
    /// Things removed because the snapshot does not have them; a directory counts as one.
    pub removed: u64,
    /// What could not be restored, with the reason; at most 1000.
    pub problems: Vec<(String, String)>,
    /// All such things.
    pub problem_count: u64,
    /// What was left out on purpose: because the snapshot is not trusted, or another file system is mounted there.
    pub left_out: Vec<String>,
}

const LISTED_MAX: usize = 1000;

impl RestoreReport {
    /// Adds what another restore did, for one that is made of several.
    pub fn add(&mut self, other: Self) {
        self.files_written += other.files_written;
        self.files_unchanged += other.files_unchanged;
        self.directories += other.directories;
        self.others += other.others;
        self.bytes_written += other.bytes_written;
        self.bytes_unchanged += other.bytes_unchanged;
        self.removed += other.removed;
        self.problem_count += other.problem_count;
        self.problems.extend(other.problems);
        self.problems.truncate(LISTED_MAX);
        self.left_out.extend(other.left_out);
    }

    /// Says before all other problems what explains them.
    fn with_reason(mut self, monitor: &dyn Monitor, snapshot: &Snapshot, why: Option<String>) -> Self {
        if let Some(why) = why {
            let (what, why) =
                (format!("snapshot {}", snapshot.short()), format!("it is there no longer: {why}"));
            monitor.problem(&what, &why);
            self.problems.insert(0, (what, why));
            self.problems.truncate(LISTED_MAX);
            self.problem_count += 1;
        }
        self
    }
}

/// Collects the report from several threads.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub files_written: AtomicU64,
    pub files_unchanged: AtomicU64,
    pub directories: AtomicU64,
    pub others: AtomicU64,
    pub bytes_written: AtomicU64,
    pub bytes_unchanged: AtomicU64,
    pub removed: AtomicU64,
    problem_count: AtomicU64,
    problems: Mutex<Vec<(String, String)>>,
    left_out: Mutex<Vec<String>>,
}

impl Tally {
    fn report(&self) -> RestoreReport {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RestoreReport {
            files_written: of(&self.files_written),
            files_unchanged: of(&self.files_unchanged),
            directories: of(&self.directories),
            others: of(&self.others),
            bytes_written: of(&self.bytes_written),
            bytes_unchanged: of(&self.bytes_unchanged),
            removed: of(&self.removed),
            problems: self.problems.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            problem_count: of(&self.problem_count),
            left_out: self.left_out.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    pub fn leave_out(&self, what: String) {
        let mut list = self.left_out.lock().unwrap_or_else(PoisonError::into_inner);
        if list.len() < LISTED_MAX {
            list.push(what);
        }
    }
}

/// What every part of a restore needs.
pub(crate) struct Work {
    pub repository: Repository,
    pub target: Arc<dyn RestoreTarget>,
    pub tally: Tally,
    pub delete: bool,
    /// What could not be restored: what stands there, if anything, is not what the snapshot has.
    pub failed: Mutex<HashSet<MapKey>>,
    /// Whether the target was empty: then nothing needs to be compared.
    pub fresh: bool,
    pub handle: tokio::runtime::Handle,
    /// Memory for frames that no thread uses at the moment.
    memory: Mutex<Vec<FrameMemory>>,
}

impl Work {
    /// Memory for frames: what another thread is done with, else fresh.
    pub fn take_memory(&self) -> FrameMemory {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// Keeps it for the next thread.
    pub fn keep_memory(&self, memory: FrameMemory) {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
    }

    /// Whether a problem with this was noted.
    pub fn has_failed(&self, key: &MapKey) -> bool {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
    }

    /// Notes a failure with one thing and goes on, unless it is one that every further thing would meet.
    pub fn problem(&self, key: &MapKey, error: Error) -> Result<(), Error> {
        if is_fatal(&error) {
            return Err(error);
        }
        let (path, message) = (shown(key), crate::error::one_line(&error));
        self.repository.monitor().problem(&path, &message);
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
        self.tally.problem_count.fetch_add(1, Ordering::Relaxed);
        let mut problems = self.tally.problems.lock().unwrap_or_else(PoisonError::into_inner);
        if problems.len() < LISTED_MAX {
            problems.push((path, message));
        }
        Ok(())
    }
}

fn is_fatal(error: &Error) -> bool {
    use std::io::ErrorKind;
    match error {
        Error::Target(target) => match &**target {
            TargetError::Io { source, .. } => {
                matches!(
                    source.kind(),
                    ErrorKind::StorageFull | ErrorKind::ReadOnlyFilesystem | ErrorKind::QuotaExceeded
                )
            }
            TargetError::Refused { .. } => false,
        },
        Error::Storage(storage) => !storage.is_not_found(),
        Error::Catalog(_)
        | Error::Damaged { .. }
        | Error::ChunkLost { .. }
        | Error::Erased { .. }
        | Error::Pack(_)
        | Error::Crypto(_) => false,
        _ => true,
    }
}

impl Repository {
    /// Restores a snapshot into a target.
    ///
    /// Only what differs is written. Damage in the repository costs the files that it touches and is reported; no wrong
    /// byte is written for them. A crash leaves files that are either as they were, or whole, or (new small ones, and
    /// existing ones that were being corrected) in between; restoring again completes it. Of a snapshot that was forgotten
    /// meanwhile, or whose writer was revoked, what only it needs may be gone: then the report says so among its problems,
    /// or it fails with [`Error::NoSuchSnapshot`].
    pub async fn restore(
        &self,
        snapshot: &Snapshot,
        target: Arc<dyn RestoreTarget>,
        options: RestoreOptions,
    ) -> Result<RestoreReport, Error> {
        match self.restore_listed(snapshot, target, options).await {
            Ok(report) if report.problem_count > 0 => {
                let why = self.why_gone(snapshot).await;
                Ok(report.with_reason(self.monitor(), snapshot, why))
            }
            Err(failure) => Err(self.explained(snapshot, failure).await),
            whole => whole,
        }
    }

    async fn restore_listed(
        &self,
        snapshot: &Snapshot,
        target: Arc<dyn RestoreTarget>,
        options: RestoreOptions,
    ) -> Result<RestoreReport, Error> {
        let nodes = Arc::new(Nodes::new(self));
        let planned =
            self.plan_restore_with(Arc::clone(&nodes), snapshot, Arc::clone(&target), options.clone());
        let plan = self.unless_cancelled(planned).await?;
        plan.check_space()?;
        self.monitor().phase("restore");
        self.monitor().total(plan.entries, plan.bytes);
        let root = snapshot.manifest()?.root;
        let work = Work {
            repository: self.clone(),
            fresh: target.is_empty()?,
            target,
            tally: Tally::default(),
            delete: options.delete,
            failed: Mutex::default(),
            handle: tokio::runtime::Handle::current(),
            memory: Mutex::default(),
        };
        let name = snapshot.short();
        let task = tokio::task::spawn_blocking(move || {
            tree::restore(&work, &nodes, root, &options, &name).map(|()| work.tally.report())
        });
        self.unless_cancelled(async { task.await.map_err(|e| Error::Task(e.to_string()))? }).await
    }
}

#[cfg(test)]
mod copies_tests;
#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod tests;
