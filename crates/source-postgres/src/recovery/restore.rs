//! Putting the files of a cluster back.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::target::{RestoreTarget, TargetError};
use backup_core::{Repository, RestoreOptions, RestorePlan, RestoreReport};
use keepwell_catalog::MapKey;

use super::backups::{BaseBackup, child};
use super::owned::Owned;
use super::settings::{RecoverySettings, tablespace_map};

const CONTROL_FILE: &str = "global/pg_control";

/// Gives the directories that are restored into.
pub trait Places: Send + Sync {
    /// Opens a directory, making it if need be.
    fn open(&self, directory: &Path) -> Result<Arc<dyn RestoreTarget>, TargetError>;

    /// Waits until everything written to them is on the disk.
    fn sync(&self) -> Result<(), TargetError>;
}

/// Where a cluster goes, and whose it becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The data directory.
    pub directory: PathBuf,
    /// Where each tablespace goes, by its number.
    pub tablespaces: BTreeMap<u32, PathBuf>,
    /// User and group that own every file; `None` leaves what the snapshot says.
    pub owner: Option<(u32, u32)>,
    /// What stands in `pg_wal` is moved here first, if anything does.
    pub saved_wal: PathBuf,
}

/// What a restore did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterReport {
    /// Of the data directory and all tablespaces together.
    pub files: RestoreReport,
    /// Where WAL that stood there before is now.
    pub saved_wal: Option<PathBuf>,
}

/// Why a cluster could not be restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The repository or the target.
    #[error(transparent)]
    Engine(#[from] backup_core::Error),
    /// A server runs in the directory.
    #[error("a server runs in `{directory}` (process {pid})")]
    Running {
        /// The data directory.
        directory: String,
        /// The process in its `postmaster.pid`.
        pid: u32,
    },
    /// A tablespace has no place.
    #[error("tablespace {oid} has no place to go")]
    NoPlace {
        /// Its number.
        oid: u32,
    },
    /// Some files could not be restored: the cluster must not be started.
    #[error("{count} files could not be restored, the first is `{first}`: {reason}")]
    Incomplete {
        /// How many.
        count: u64,
        /// The first.
        first: String,
        /// Why not.
        reason: String,
    },
    /// An operation on a file failed.
    #[error("{operation} `{path}`")]
    Io {
        /// The verb.
        operation: &'static str,
        /// Where.
        path: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

impl RestoreError {
    /// What the operator may do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Engine(error) => error.hint(),
            Self::Running { directory, .. } => Some(format!("Stop it first: `pg_ctl stop -D {directory}`.")),
            Self::Incomplete { .. } => {
                Some("`keepwell check` says what is damaged; a copy may have it.".into())
            }
            Self::NoPlace { .. } | Self::Io { .. } => None,
        }
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RestoreError {
    let path = path.display().to_string();
    move |source| RestoreError::Io { operation, path, source }
}

/// One directory with the part of the snapshot that goes there.
struct Part {
    place: PathBuf,
    key: MapKey,
}

impl Layout {
    fn parts(&self, backup: &BaseBackup) -> Result<Vec<Part>, RestoreError> {
        let mut parts = vec![Part { place: self.directory.clone(), key: child(&backup.root, &["data"])? }];
        for tablespace in &backup.cluster.tablespaces {
            let oid = tablespace.oid;
            let place = self.tablespaces.get(&oid).ok_or(RestoreError::NoPlace { oid })?.clone();
            parts.push(Part { place, key: child(&backup.root, &["tablespaces", &oid.to_string()])? });
        }
        Ok(parts)
    }

    /// The process of a server that runs in the data directory.
    pub fn running(&self) -> Option<u32> {
        let text = fs::read_to_string(self.directory.join("postmaster.pid")).ok()?;
        let pid: u32 = text.lines().next()?.trim().parse().ok()?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        String::from_utf8_lossy(&command).contains("postgres").then_some(pid)
    }

    /// Says what would be written where; changes nothing but that directories are made.
    pub async fn plan(
        &self,
        repository: &Repository,
        backup: &BaseBackup,
        places: &dyn Places,
    ) -> Result<Vec<(PathBuf, RestorePlan)>, RestoreError> {
        let mut plans = Vec::new();
        for part in self.parts(backup)? {
            let target = places.open(&part.place).map_err(backup_core::Error::from)?;
            let plan = repository.plan_restore(&backup.snapshot, target, options(part.key, None)).await?;
            plans.push((part.place, plan));
        }
        Ok(plans)
    }
}

fn options(below: MapKey, except: Option<MapKey>) -> RestoreOptions {
    let select = except.map(|except| {
        let select: backup_core::Select = Arc::new(move |key, _| *key != except);
        select
    });
    RestoreOptions { below: Some(below), select, delete: true }
}

/// Restores a cluster and tells it how to recover.
///
/// Only what differs is written; what the snapshot does not have is removed. `pg_control` goes first and comes back last,
/// when everything else is on the disk: a restore that was interrupted leaves a directory that no server starts in, and
/// is completed by restoring again. Fails with [`RestoreError::Running`] while a server runs there.
pub async fn restore(
    repository: &Repository,
    backup: &BaseBackup,
    layout: &Layout,
    settings: &RecoverySettings,
    places: &dyn Places,
) -> Result<ClusterReport, RestoreError> {
    if let Some(pid) = layout.running() {
        return Err(RestoreError::Running { directory: layout.directory.display().to_string(), pid });
    }
    let mut report = ClusterReport { saved_wal: save_wal(layout)?, ..ClusterReport::default() };
    remove(&layout.directory.join(CONTROL_FILE))?;
    let control = child(&backup.root, &["data", "global", "pg_control"])?;
    for part in layout.parts(backup)? {
        let target = layout.open(places, &part.place)?;
        let options = options(part.key, Some(control.clone()));
        let restored = repository.restore(&backup.snapshot, target, options).await?;
        report.files.add(restored);
        layout.take(&part.place, if part.place == layout.directory { DATA_MODE } else { None })?;
    }
    if let Some((first, reason)) = report.files.problems.first().cloned() {
        return Err(RestoreError::Incomplete { count: report.files.problem_count, first, reason });
    }
    link_tablespaces(backup, layout)?;
    write_settings(layout, settings)?;
    places.sync().map_err(backup_core::Error::from)?;
    let global = layout.open(places, &layout.directory.join("global"))?;
    let options = RestoreOptions { delete: false, ..options(control, None) };
    let restored = repository.restore(&backup.snapshot, global, options).await?;
    if let Some((first, reason)) = restored.problems.first().cloned() {
        return Err(RestoreError::Incomplete { count: 1, first, reason });
    }
    report.files.add(restored);
    places.sync().map_err(backup_core::Error::from)?;
    Ok(report)
}

/// The bits that a server accepts on its data directory.
const DATA_MODE: Option<u32> = Some(0o750);

impl Layout {
    fn open(&self, places: &dyn Places, directory: &Path) -> Result<Arc<dyn RestoreTarget>, RestoreError> {
        let target = places.open(directory).map_err(backup_core::Error::from)?;
        Ok(match self.owner {
            Some(owner) => Arc::new(Owned::new(target, owner)),
            None => target,
        })
    }

    /// Makes a thing the owner's; takes away permissions beyond `mode`.
    fn take(&self, path: &Path, mode: Option<u32>) -> Result<(), RestoreError> {
        if let Some((user, group)) = self.owner {
            chown(path, Some(user), Some(group)).map_err(failed("change the owner of", path))?;
        }
        if let Some(mode) = mode {
            let now = fs::metadata(path).map_err(failed("look at", path))?.permissions().mode();
            // A server accepts 0700 and 0750; what has neither group bit gets the first.
            let wanted = if now & 0o050 == 0o050 && now & 0o007 == 0 { mode } else { 0o700 };
            fs::set_permissions(path, fs::Permissions::from_mode(wanted))
                .map_err(failed("change the mode of", path))?;
        }
        Ok(())
    }

    fn write(&self, name: &str, content: &str) -> Result<(), RestoreError> {
        let path = self.directory.join(name);
        fs::write(&path, content).map_err(failed("write", &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
            .map_err(failed("change the mode of", &path))?;
        self.take(&path, None)
    }
}

/// The last WAL of a broken server may be nowhere else.
fn save_wal(layout: &Layout) -> Result<Option<PathBuf>, RestoreError> {
    let wal = layout.directory.join("pg_wal");
    let holds_wal = match fs::read_dir(&wal) {
        Ok(mut entries) => entries.any(|e| e.is_ok_and(|e| e.file_name().len() == 24)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(failed("list", &wal)(error)),
    };
    if !holds_wal {
        return Ok(None);
    }
    fs::rename(&wal, &layout.saved_wal).map_err(failed("move away", &wal))?;
    Ok(Some(layout.saved_wal.clone()))
}

fn remove(path: &Path) -> Result<(), RestoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn link_tablespaces(backup: &BaseBackup, layout: &Layout) -> Result<(), RestoreError> {
    let mut places = Vec::new();
    for tablespace in &backup.cluster.tablespaces {
        let oid = tablespace.oid;
        let place = layout.tablespaces.get(&oid).ok_or(RestoreError::NoPlace { oid })?;
        let link = layout.directory.join("pg_tblspc").join(oid.to_string());
        remove(&link)?;
        symlink(place, &link).map_err(failed("link", &link))?;
        places.push((oid, place.to_string_lossy().into_owned()));
    }
    match places.is_empty() {
        true => Ok(()),
        false => layout.write(
            "tablespace_map",
            &tablespace_map(places.iter().map(|(oid, place)| (*oid, place.as_str()))),
        ),
    }
}

fn write_settings(layout: &Layout, settings: &RecoverySettings) -> Result<(), RestoreError> {
    let path = layout.directory.join("postgresql.auto.conf");
    let before = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(failed("read", &path)(error)),
    };
    layout.write("postgresql.auto.conf", &settings.apply(&before))?;
    for other in ["recovery.signal", "standby.signal"] {
        remove(&layout.directory.join(other))?;
    }
    layout.write(settings.signal_file(), "")
}
