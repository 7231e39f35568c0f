//! One run of a job: a snapshot, then the rules about the job's older ones.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use backup_core::env::{Clock, Rng, SystemClock, SystemRng, Timestamp};
use backup_core::source::Source;
use backup_core::{BackupOptions, BackupReport, Cache, Error, Repository, Snapshot, SnapshotState, retain};
use jiff::tz::TimeZone;
use keepwell_catalog::retention::RetentionPolicy;
use keepwell_crypto::Secret;
use keepwell_crypto::keyfile::KeyFile;
use keepwell_source_files::{FileOptions, FileSource};
use keepwell_storage::{
    ConnectOptions, ObjectStore, Place, Purpose, RetryPolicy, Retrying, Throttled, connect,
};

use crate::config::{Job, JobName};
use crate::copy::{self, Copied, Places};
use crate::state::State;
use crate::stop::Stop;

/// What a run did.
#[derive(Debug)]
pub struct Done {
    /// The backup.
    pub report: BackupReport,
    /// How many snapshots the rules no longer keep, or why that is not known.
    pub forgotten: Result<usize>,
    /// What came of each copy, by name.
    pub copies: Vec<(String, Result<Copied>)>,
}

impl Done {
    /// Whether everything that the job is to do was done.
    pub fn is_whole(&self, job: &Job) -> bool {
        let copied = self.copies.iter().filter(|(_, copied)| copied.is_ok()).count();
        self.forgotten.is_ok() && copied == job.copies.len()
    }
}

/// Backs up, then forgets what the retention rules of the job do not keep, then brings its copies up to date. The snapshot is
/// there, whatever comes of the rest.
pub async fn run(name: &JobName, job: &Job, state: &State, stop: &Stop, clock: &dyn Clock) -> Result<Done> {
    let source: Arc<dyn Source> = Arc::new(source(job, state)?);
    let repository = open(job, state, stop).await?;
    let report = repository.backup(source, options(name, job)).await?;
    let forgotten = match &job.retention {
        Some(retention) => {
            forget(&repository, name, &retention.policy(), clock.now()).await.context("forget")
        }
        None => Ok(0),
    };
    let mut copies = Vec::new();
    for copy in job.copies.iter().take_while(|_| !stop.is_requested()) {
        let places = Places { name, job, copy, state, stop, clock };
        copies.push((copy.name.as_str().to_owned(), copy::update(&repository, &places).await));
    }
    Ok(Done { report, forgotten, copies })
}

/// Brings one copy up to date, without a backup before.
pub async fn update_copy(places: &Places<'_>) -> Result<Copied> {
    let repository = open(places.job, places.state, places.stop).await?;
    copy::update(&repository, places).await
}

fn source(job: &Job, state: &State) -> Result<FileSource> {
    let options = FileOptions {
        paths: job.paths.to_vec(),
        excludes: job.excludes.clone(),
        one_file_system: job.one_file_system,
        exclude_caches: job.exclude_caches,
        ..FileOptions::default()
    };
    Ok(FileSource::new(&options, Arc::new(SystemClock))?.without(&ours(job, state)?))
}

/// Directories that belong to the backups themselves, which no snapshot has: the repository, the cache, and the copies among
/// what is backed up. Whoever looks at a share whose server is away waits for it: copies elsewhere are left alone.
fn ours(job: &Job, state: &State) -> Result<Vec<PathBuf>> {
    let mut directories = vec![state.cache()];
    if let Place::Directory(path) = job.repository.location()?.place {
        directories.push(path);
    }
    let mut paths = job.paths.to_vec();
    let real: Vec<PathBuf> = paths.iter().filter_map(|path| path.canonicalize().ok()).collect();
    paths.extend(real); // a symlink may lead to them
    for copy in &job.copies {
        if let Place::Directory(path) = copy.to.location()?.place
            && paths.iter().any(|given| path.starts_with(given))
        {
            directories.push(path);
        }
    }
    Ok(directories)
}

async fn open(job: &Job, state: &State, stop: &Stop) -> Result<Repository> {
    warn_if_public(job.key_file.as_path());
    let options = ConnectOptions {
        settings: job.storage.clone(),
        credentials: job.credentials.read()?,
        ambient: job.credentials.ambient.unwrap_or(true),
        ..ConnectOptions::default()
    };
    let store = connect(&job.repository.location()?, &options, Purpose::Open).await?;
    let store = Arc::new(Throttled::new(store, job.limits.rates()));
    open_store(store, job, state, stop).await
}

/// Whoever reads the key reads every backup.
fn warn_if_public(key_file: &Path) {
    if let Ok(metadata) = fs::metadata(key_file)
        && metadata.mode() & 0o077 != 0
        && metadata.is_file()
    {
        let (key_file, mode) = (key_file.display().to_string(), format!("{:04o}", metadata.mode() & 0o777));
        tracing::warn!(key_file, mode, "the key can be read by others: `chmod 600` it");
    }
}

/// Opens the repository in a store with the key of the job.
pub async fn open_store(
    store: Arc<dyn ObjectStore>,
    job: &Job,
    state: &State,
    stop: &Stop,
) -> Result<Repository> {
    let path = job.key_file.as_path();
    let text = fs::read_to_string(path).with_context(|| format!("read `{}`", path.display()))?;
    let text = Secret::new(text);
    ensure!(
        !KeyFile::is_protected(text.expose()),
        "`{}` is under a passphrase, which nobody can give here",
        path.display()
    );
    let key = KeyFile::parse(text.expose()).with_context(|| format!("read `{}`", path.display()))?;
    let builder = Repository::builder(Arc::new(retrying(store)));
    Ok(builder.cache(Cache::directory(state.cache())).cancel(stop.cancel()).open(key).await?)
}

/// Tries again after pauses of random length, so that many hosts do not come back at the same moment.
pub fn retrying<S: ObjectStore>(store: S) -> Retrying<S> {
    Retrying::new(store, RetryPolicy::default()).with_jitter(|| {
        let mut bytes = [0; 8];
        SystemRng.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    })
}

fn options(name: &JobName, job: &Job) -> BackupOptions {
    BackupOptions {
        dataset: name.as_str().to_owned(),
        host: host(),
        tags: job.tags.clone(),
        time_zone: TimeZone::system().iana_name().unwrap_or("UTC").to_owned(),
        program: concat!("keepwell-agent ", env!("CARGO_PKG_VERSION")).to_owned(),
        checkpoint_every: Duration::from_secs(1800),
        ..BackupOptions::default()
    }
}

/// The name of this host.
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Forgets snapshots of this job on this host that no rule keeps.
async fn forget(
    repository: &Repository,
    name: &JobName,
    policy: &RetentionPolicy,
    now: Timestamp,
) -> Result<usize> {
    let role = repository.access().describe();
    // It sees no snapshot of the job, and would forget none for ever.
    ensure!(
        repository.can_read(),
        Error::NotAllowed { action: "decrypt, and so not decide what stays", role }
    );
    let (snapshots, host) = (repository.snapshots().await?, host());
    let own = snapshots.iter().filter(|snapshot| match &snapshot.state {
        SnapshotState::Readable(m) => m.dataset == name.as_str() && m.host == host,
        _ => false,
    });
    let going: Vec<(&Snapshot, String)> = retain(policy, now, own, &repository.checked().await?)
        .into_iter()
        .filter(|verdict| !verdict.keep)
        .map(|verdict| (verdict.snapshot, verdict.reasons.join("; ")))
        .collect();
    if !going.is_empty() {
        repository.forget(&going).await?;
    }
    Ok(going.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn a_copy_is_left_out_where_a_symlink_leads_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        fs::create_dir_all(top.join("data/home")).unwrap();
        std::os::unix::fs::symlink("data", top.join("link")).unwrap();
        let shown = top.display();
        let text = format!(
            "[job.test]\nrepository = \"{shown}/repository\"\nkey-file = \"{shown}/key\"\nevery = \"1h\"\n\
             paths = [\"{shown}/link/home\"]\n[[job.test.copy]]\nname = \"near\"\nto = \"{shown}/data/home/near\"\n\
             [[job.test.copy]]\nname = \"far\"\nto = \"{shown}/far\"\n"
        );
        fs::write(top.join("config"), text).unwrap();
        let config = config::load(&top.join("config")).unwrap();
        let state = State::open(&top.join("state")).unwrap();
        let ours = ours(config.jobs.values().next().unwrap(), &state).unwrap();
        assert_eq!(ours, ["state/cache", "repository", "data/home/near"].map(|name| top.join(name)));
    }
}
