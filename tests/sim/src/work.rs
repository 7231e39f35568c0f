//! What processes do: one job at a time, each a call or two of the engine.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backup_core::chunker::ChunkSizes;
use backup_core::wal::{WalFloor, WalTrimReport};
use backup_core::{
    BackupOptions, BackupReport, Cache, Error, Limits, PruneOptions, PruneReport, Repository, RestoreOptions,
    Snapshot, StoreCopyReport,
};
use keepwell_crypto::MemberId;
use keepwell_crypto::keyfile::KeyFile;
use keepwell_storage::{ObjectStore, RetryPolicy, Retrying};

use crate::clock::{HostClock, WorldRng};
use crate::dice::Dice;
use crate::log::{FILE_BYTES, Log, SYSTEM};
use crate::net::{Door, Life, Net};
use crate::target::MemoryTarget;
use crate::tree::{SlowTree, Tree};
use crate::witness::Witness;

/// One thread per stage: which of two workers is faster must not matter.
pub(crate) const LIMITS: Limits = Limits { threads: 1, memory_bytes: 64 << 20 };

/// No checkpoints.
pub(crate) const NEVER: Duration = Duration::from_secs(1 << 40);

/// Where a snapshot was committed.
pub(crate) type Place = (MemberId, u64);

/// A store, and a snapshot in it.
pub(crate) type Chosen = (usize, Place);

/// A job.
#[derive(Debug, Clone)]
pub(crate) enum Job {
    Backup {
        attempt: u64,
        tree: Tree,
        dataset: String,
        checkpoint_every: Duration,
        verify: bool,
        waits: Vec<usize>,
    },
    Prune {
        store: usize,
        max_unused: f64,
        fence_after: Duration,
    },
    /// Forgets each listed snapshot with this chance of ten thousand, but not the newest ones.
    Forget {
        store: usize,
        chance: u32,
        keep: usize,
        dice: Dice,
    },
    Restore {
        store: usize,
        dice: Dice,
    },
    Copy {
        dice: Dice,
    },
    Revoke {
        member: MemberId,
    },
    /// Archives these stretches of the file that the log is at; then it goes on to the next.
    Archive {
        parts: Vec<(u32, u32)>,
    },
    /// Removes what no base backup needs of the log.
    Trim {
        fence_after: Duration,
    },
}

impl Job {
    /// What it is, for the trace.
    pub fn name(&self) -> String {
        match self {
            Self::Backup { attempt, tree, .. } => {
                format!("backup, attempt {attempt}, {} things", tree.0.len())
            }
            Self::Prune { store, max_unused, fence_after } => {
                format!("prune store {store}, {max_unused} unused, fence after {fence_after:?}")
            }
            Self::Forget { store, .. } => format!("forget in store {store}"),
            Self::Restore { store, .. } => format!("restore from store {store}"),
            Self::Copy { .. } => "copy".to_owned(),
            Self::Archive { parts } => format!("archive {parts:?}"),
            Self::Trim { fence_after } => format!("trim the log, fence after {fence_after:?}"),
            Self::Revoke { member } => format!("revoke {member}"),
        }
    }
}

/// How it ended.
#[derive(Debug)]
pub(crate) enum Ended {
    Backup(u64, Result<BackupReport, Error>),
    Prune(Result<PruneReport, Error>),
    Forget(Result<usize, Error>),
    /// Of the snapshot that was chosen, if it came to that.
    Restore(Option<Chosen>, Result<Option<Restored>, Error>),
    Copy(Result<StoreCopyReport, Error>),
    Revoke(Result<u64, Error>),
    Archive(Result<u64, Error>),
    Trim(Result<WalTrimReport, Error>),
}

/// What a restore brought back.
#[derive(Debug)]
pub(crate) struct Restored {
    pub store: usize,
    pub place: Place,
    pub attempt: String,
    pub tree: Tree,
    pub problems: Vec<(String, String)>,
}

/// What one life of a process works with.
#[derive(Clone)]
pub(crate) struct Tools {
    pub net: Net,
    pub log: Log,
    pub life: Life,
    pub key: KeyFile,
    pub cache: Cache,
    pub clock: HostClock,
    pub retry: Option<RetryPolicy>,
    /// Failures of stores that reached the engine.
    pub failures: Arc<AtomicU64>,
    /// Repositories that stay open from job to job.
    pub open: Arc<Mutex<BTreeMap<usize, Repository>>>,
}

impl Tools {
    async fn repository(&self, store: usize) -> Result<Repository, Error> {
        if let Some(open) = self.open.lock().unwrap_or_else(PoisonError::into_inner).get(&store) {
            return Ok(open.clone());
        }
        let door = Door { net: self.net.clone(), life: self.life, store };
        let failures = Arc::clone(&self.failures);
        let door: Arc<dyn ObjectStore> = match self.retry {
            Some(policy) => Arc::new(Witness { inner: Retrying::new(door, policy), failures }),
            None => Arc::new(Witness { inner: door, failures }),
        };
        let repository = open(door, &self.key, self.cache.clone(), self.clock.clone()).await?;
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(store, repository.clone());
        Ok(repository)
    }

    /// Closes every repository: the next job begins as a new command would.
    pub fn close(&self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Does a job.
    pub async fn perform(self, job: Job) -> Ended {
        match job {
            Job::Backup { attempt, tree, dataset, checkpoint_every, verify, waits } => {
                let options = BackupOptions {
                    dataset,
                    description: attempt.to_string(),
                    chunk_sizes: SIZES,
                    checkpoint_every,
                    verify,
                    ..BackupOptions::default()
                };
                let (net, life) = (self.net.clone(), self.life);
                // What makes no checkpoints is a base backup, which needs the log from where it began.
                let log = (checkpoint_every == NEVER).then(|| self.log.clone());
                let begin = Box::new(move || log.iter().for_each(|log| log.begin(attempt)));
                let source = SlowTree { tree, waits, wait: Box::new(move || net.wait(life)), begin };
                let ended = async { self.repository(0).await?.backup(Arc::new(source), options).await };
                Ended::Backup(attempt, ended.await)
            }
            Job::Prune { store, max_unused, fence_after } => {
                let options = PruneOptions { max_unused, fence_after, ..PruneOptions::default() };
                Ended::Prune(async { self.repository(store).await?.prune(options).await }.await)
            }
            Job::Forget { store, chance, keep, dice } => {
                Ended::Forget(self.forget(store, chance, keep, dice).await)
            }
            Job::Restore { store, dice } => {
                let mut chosen = None;
                let ended = self.restore(store, dice, &mut chosen).await;
                Ended::Restore(chosen, ended)
            }
            Job::Copy { dice } => Ended::Copy(self.copy(dice).await),
            Job::Archive { parts } => Ended::Archive(self.archive(parts).await),
            Job::Trim { fence_after } => Ended::Trim(self.trim(fence_after).await),
            Job::Revoke { member } => {
                let ended = async { self.repository(0).await?.revoke(member, None, "by chance").await };
                Ended::Revoke(ended.await)
            }
        }
    }

    async fn forget(&self, store: usize, chance: u32, keep: usize, mut dice: Dice) -> Result<usize, Error> {
        let repository = self.repository(store).await?;
        let mut snapshots = repository.snapshots().await?;
        snapshots.truncate(snapshots.len().saturating_sub(keep));
        snapshots.retain(|_| dice.chance(chance));
        let list: Vec<_> = snapshots.iter().map(|snapshot| (snapshot, "by chance".to_owned())).collect();
        repository.forget(&list).await?;
        Ok(list.len())
    }

    async fn restore(
        &self,
        store: usize,
        mut dice: Dice,
        chosen: &mut Option<Chosen>,
    ) -> Result<Option<Restored>, Error> {
        let repository = self.repository(store).await?;
        let snapshots = repository.snapshots().await?;
        if snapshots.is_empty() {
            return Ok(None);
        }
        let snapshot = dice.pick(&snapshots);
        *chosen = Some((store, (snapshot.commit.writer, snapshot.commit.n)));
        restore(&repository, store, snapshot).await.map(Some)
    }

    async fn copy(&self, mut dice: Dice) -> Result<StoreCopyReport, Error> {
        let (from, to) = (self.repository(0).await?, self.repository(1).await?);
        let mut snapshots = from.snapshots().await?;
        snapshots.retain(|_| dice.chance(4000));
        from.copy_to_store(&to, &snapshots).await
    }

    async fn archive(&self, parts: Vec<(u32, u32)>) -> Result<u64, Error> {
        let archive = self.repository(0).await?.wal_writer("log", SYSTEM, FILE_BYTES, false).await?;
        let file = self.log.file();
        for (from, to) in parts {
            let (place, bytes) = Log::piece(file, from, to);
            archive.put(1, place, bytes, None).await?;
        }
        self.log.leave(file);
        Ok(file)
    }

    async fn trim(&self, fence_after: Duration) -> Result<WalTrimReport, Error> {
        let options = PruneOptions { fence_after, ..PruneOptions::default() };
        let floors = |repository: Repository| async move {
            let mut first: Option<u64> = None;
            for snapshot in repository.snapshots().await? {
                let begun = snapshot.manifest()?.description.parse().ok().and_then(|n| self.log.begun(n));
                first = first.into_iter().chain(begun).min();
            }
            Ok(first.map(|file| WalFloor { system: SYSTEM, file }).into_iter().collect())
        };
        self.repository(0).await?.trim_wal(&options, floors).await
    }
}

/// Small enough for files of a few hundred bytes to have more than one chunk.
pub(crate) const SIZES: ChunkSizes = ChunkSizes { min: 256, average: 1024, max: 4096 };

/// Opens a repository of the simulation.
pub(crate) async fn open(
    store: Arc<dyn ObjectStore>,
    key: &KeyFile,
    cache: Cache,
    clock: HostClock,
) -> Result<Repository, Error> {
    let builder = Repository::builder(store).cache(cache).clock(Arc::new(clock)).rng(Arc::new(WorldRng));
    builder.limits(LIMITS).open(key.clone()).await
}

/// Restores one snapshot into an empty place.
pub(crate) async fn restore(
    repository: &Repository,
    store: usize,
    snapshot: &Snapshot,
) -> Result<Restored, Error> {
    let target = MemoryTarget::default();
    let report = repository.restore(snapshot, Arc::new(target.clone()), RestoreOptions::default()).await?;
    Ok(Restored {
        store,
        place: (snapshot.commit.writer, snapshot.commit.n),
        attempt: snapshot.manifest()?.description.clone(),
        tree: target.tree(),
        problems: report.problems,
    })
}
