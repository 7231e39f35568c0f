//! Copies of a job's snapshots in further places.

use std::sync::Arc;

use anyhow::{Result, bail};
use backup_core::env::{Clock, Timestamp};
use backup_core::{
    Approval, CheckOptions, CopyRules, Error, PruneOptions, ReadData, Repository, RepositoryHint, Retirement,
    Snapshot,
};
use keepwell_storage::{
    ConnectOptions, LocalOptions, ObjectStore, Purpose, StorageError, Throttled, connect,
};

use crate::config::{CopyJob, Job, JobName, Retention};
use crate::run::{host, open_store, retrying};
use crate::state::State;
use crate::stop::Stop;

/// What is copied from where, and where to.
pub struct Places<'p> {
    /// The job.
    pub name: &'p JobName,
    /// What it does.
    pub job: &'p Job,
    /// Its copy.
    pub copy: &'p CopyJob,
    /// Where it is remembered how new the copy is.
    pub state: &'p State,
    /// Whether the agent is to end.
    pub stop: &'p Stop,
    /// What time it is.
    pub clock: &'p dyn Clock,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Copied {
    /// It is not attached, which is no failure.
    pub away: bool,
    /// Snapshots that came.
    pub snapshots: usize,
    /// Bytes stored for them.
    pub bytes: u64,
    /// Snapshots that the copy's rules no longer keep.
    pub forgotten: usize,
    /// Stored bytes that were deleted.
    pub bytes_freed: u64,
    /// Its newest snapshot is older than it may be.
    pub stale: bool,
}

/// Brings a copy up to date: what is missing comes, what its own rules do not keep goes. As of now, and not as of when the
/// run began: what was captured since would seem to be from the future.
pub async fn update(origin: &Repository, places: &Places<'_>) -> Result<Copied> {
    let (copy, now) = (places.copy, places.clock.now());
    let Some(store) = store(places).await? else {
        // One that is still to come was told by a clock that was wrong.
        let newest = places.state.newest_in(places.name, &copy.name)?.filter(|newest| *newest <= now);
        return Ok(Copied { away: true, stale: is_stale(copy, newest, now), ..Copied::default() });
    };
    let retrying = retrying(Arc::clone(&store));
    match RepositoryHint::read(&retrying).await {
        Ok(_) => {}
        Err(Error::NoRepository { .. }) => origin.create_copy(&retrying).await?,
        Err(error) => return Err(error.into()),
    }
    let target = open_store(store, places.job, places.state, places.stop).await?;
    verify(&target, copy).await?;
    let rules = rules(places);
    let (snapshots, there) = (origin.snapshots().await?, target.snapshots().await?);
    let wanted = rules.wanted(now, &snapshots, &there, &target.checked().await?);
    let report = origin.copy_to_store(&target, &wanted).await?;
    let prune = copy.prune.then(PruneOptions::default);
    let retired = rules.retire(now, &target, prune, &mut Telling { job: places.name, copy }).await?;
    let there = target.snapshots().await?;
    let now = places.clock.now();
    let newest = rules.newest(now, &there);
    if let Some(newest) = newest
        && let Err(error) = places.state.remember_copy(places.name, &copy.name, newest)
    {
        // The copy is made, and is looked at once more.
        let (job, copy, error) = (places.name.as_str(), copy.name.as_str(), format!("{error:#}"));
        tracing::warn!(job, copy, error, "how new it is cannot be remembered");
    }
    let (snapshots, bytes) = (report.copied.len(), report.bytes);
    let Retirement { forgotten, bytes_freed } = retired;
    Ok(Copied { away: false, snapshots, bytes, forgotten, bytes_freed, stale: is_stale(copy, newest, now) })
}

/// Says what goes, and objects to nothing.
struct Telling<'a> {
    job: &'a JobName,
    copy: &'a CopyJob,
}

impl Approval for Telling<'_> {
    type Error = Error;

    fn forget(&mut self, going: &[(&Snapshot, String)]) -> Result<bool, Error> {
        let (job, copy) = (self.job.as_str(), self.copy.name.as_str());
        for (snapshot, reason) in going {
            tracing::info!(job, copy, snapshot = snapshot.short(), reason, "forgets");
        }
        Ok(true)
    }
}

/// Whether a copy has nothing as new as the run of its job that began then, as far as is remembered.
pub fn is_behind(state: &State, job: &JobName, copy: &CopyJob, run: Option<Timestamp>) -> bool {
    let remembered = state.newest_in(job, &copy.name);
    let is_older =
        |newest: Option<Timestamp>| run.is_some_and(|run| newest.is_none_or(|newest| newest < run));
    remembered.is_ok_and(is_older)
}

/// Whether a copy failed for something that may pass by itself.
pub fn is_passing(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| match cause.downcast_ref::<Error>() {
        Some(Error::Storage(error)) => error.is_retryable(),
        _ => cause.downcast_ref::<StorageError>().is_some_and(StorageError::is_retryable),
    })
}

/// Whether the place is there now. One that refuses us is there.
pub async fn is_attached(places: &Places<'_>) -> bool {
    !matches!(store(places).await, Ok(None))
}

/// Reads and proves what was not read for too long, before anything relies on it.
async fn verify(target: &Repository, copy: &CopyJob) -> Result<()> {
    let Some(age) = copy.verify else { return Ok(()) };
    let found = target.check(CheckOptions { read: ReadData::OlderThan(age.duration()) }).await?;
    if found.packs_archived > 0 {
        tracing::warn!(
            copy = copy.name.as_str(),
            packs = found.packs_archived,
            "packs in an archive were not verified"
        );
    }
    match found.findings.first() {
        None => Ok(()),
        Some(first) => bail!(
            "the copy is damaged, and nothing was copied: {}: {}{}; `keepwell repair --read-data` heals it from the repository",
            first.object,
            first.what,
            match found.findings.len() {
                1 => String::new(),
                n => format!(" and {} more", n - 1),
            }
        ),
    }
}

/// Opens the place; `None` if it is not there and need not be.
async fn store(places: &Places<'_>) -> Result<Option<Arc<dyn ObjectStore>>> {
    let copy = places.copy;
    let require_mount = copy.require_mount.as_ref().map(|path| path.as_path().to_path_buf());
    let options = ConnectOptions {
        settings: copy.storage.clone(),
        credentials: copy.credentials.read()?,
        ambient: copy.credentials.ambient.unwrap_or(true),
        local: LocalOptions { require_mount, ..LocalOptions::default() },
    };
    let location = copy.to.location()?;
    let opened = match connect(&location, &options, Purpose::Open).await {
        // A mount point that is mounted and empty is a new disk; a directory that is away is no place to begin a copy.
        Err(error) if error.is_not_found() && (copy.require_mount.is_some() || !copy.when_attached) => {
            connect(&location, &options, Purpose::Create).await
        }
        opened => opened,
    };
    let store: Arc<dyn ObjectStore> = match opened {
        Ok(store) => Arc::new(Throttled::new(store, copy.limits.rates())),
        Err(error) if copy.when_attached && error.is_away() => return Ok(None),
        Err(error) => bail!(error),
    };
    if !copy.when_attached {
        return Ok(Some(store));
    }
    match RepositoryHint::read(&*store).await {
        // It may be where a disk is mounted that is away, unless it is known that this one is mounted.
        Err(Error::NoRepository { .. }) if copy.require_mount.is_none() => Ok(None),
        Err(Error::Storage(error)) if error.is_away() => Ok(None),
        _ => Ok(Some(store)),
    }
}

/// The job's own snapshots go there, of this host.
fn rules(places: &Places<'_>) -> CopyRules {
    let of = |copy: &CopyJob| {
        let policy = |rules: &Option<Retention>| rules.as_ref().map(Retention::policy).unwrap_or_default();
        CopyRules {
            datasets: vec![places.name.as_str().to_owned()],
            hosts: vec![host()],
            selection: policy(&copy.select),
            retention: policy(&copy.retention),
            ..CopyRules::default()
        }
    };
    let place = |copy: &CopyJob| copy.to.location().map(|location| location.place).ok();
    let here = place(places.copy);
    let beside = places.job.copies.iter().filter(|copy| place(copy) == here).map(of).collect();
    CopyRules { beside, ..of(places.copy) }
}

fn is_stale(copy: &CopyJob, newest: Option<Timestamp>, now: Timestamp) -> bool {
    let age = |newest: Timestamp| u128::try_from(now.saturating_sub(newest)).unwrap_or(0);
    copy.max_age.is_some_and(|limit| newest.is_none_or(|newest| age(newest) > limit.duration().as_nanos()))
}
