//! Putting the files of a cluster back.

mod error;
mod hollow;
mod standing;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::target::{RestoreTarget, TargetError};
use backup_core::{Depth, Repository, RestoreOptions, RestorePlan, RestoreReport, Tree};
use keepwell_catalog::{Entry, EntryKind, MapKey};

use self::error::failed;
use super::backups::{BaseBackup, child};
use super::owned::Owned;
use super::settings::{RecoverySettings, tablespace_map};
use crate::cluster::{DATA, TABLESPACES};

pub use self::error::RestoreError;
pub use hollow::{HOLLOW_CONTROL_FILE, HollowPart, LeftHollow, complete, restore_hollow};

const CONTROL_FILE: [&str; 2] = ["global", "pg_control"];
/// It has 8 KiB.
const CONTROL_BYTES_MAX: u64 = 1 << 20;
const SETTINGS_FILE: &str = "postgresql.auto.conf";
/// `ALTER SYSTEM` writes a line per setting.
const SETTINGS_BYTES_MAX: u64 = 16 << 20;

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

/// One directory with the part of the snapshot that goes there.
struct Part {
    place: PathBuf,
    key: MapKey,
    /// Of a tablespace only the snapshot's directories for a version of the server; other clusters' may lie beside them.
    only: Option<Vec<Vec<u8>>>,
}

impl Layout {
    async fn parts(&self, tree: &Tree, backup: &BaseBackup) -> Result<Vec<Part>, RestoreError> {
        let key = child(&backup.root, &[DATA])?;
        let mut parts = vec![Part { place: self.directory.clone(), key, only: None }];
        for tablespace in &backup.cluster.tablespaces {
            let oid = tablespace.oid;
            let place = self.tablespaces.get(&oid).ok_or(RestoreError::NoPlace { oid })?.clone();
            let key = child(&backup.root, &[TABLESPACES, &oid.to_string()])?;
            let mut only = Vec::new();
            let visit = |key: &MapKey, _: &Entry| {
                only.extend(key.name().map(Cow::into_owned).filter(|name| name.starts_with(b"PG_")));
                ControlFlow::Continue(())
            };
            tree.list(&key, Depth::Children, visit).await?;
            parts.push(Part { place, key, only: Some(only) });
        }
        Ok(parts)
    }

    /// Says what would be written where; changes nothing but that directories are made.
    pub async fn plan(
        &self,
        repository: &Repository,
        backup: &BaseBackup,
        places: &dyn Places,
    ) -> Result<Vec<(PathBuf, RestorePlan)>, RestoreError> {
        let mut plans = Vec::new();
        let saves_wal = self.standing_wal()?.is_some();
        for part in self.parts(&backup.tree(repository).await?, backup).await? {
            let mut target = self.owned(places, &part.place, part.only.clone())?;
            if saves_wal && part.place == self.directory {
                // It is moved aside, and not removed.
                target = target.without("pg_wal");
            }
            let target = Arc::new(target);
            let plan = repository.plan_restore(&backup.snapshot, target, part.options(None)).await?;
            plans.push((part.place, plan));
        }
        Ok(plans)
    }
}

impl Part {
    fn options(&self, except: Option<MapKey>) -> RestoreOptions {
        let (depth, only) = (self.key.depth(), self.only.clone());
        let select: backup_core::Select = Arc::new(move |key, _| {
            let is_ours = |only: &Vec<Vec<u8>>| {
                key.components().nth(depth).is_some_and(|name| only.iter().any(|own| **own == *name))
            };
            except.as_ref() != Some(key) && only.as_ref().is_none_or(is_ours)
        });
        RestoreOptions { below: Some(self.key.clone()), select: Some(select), delete: true }
    }
}

/// Fails for a base backup that holds anything but files and directories; links to tablespaces apart, which are made anew.
async fn refuse_others(tree: &Tree, backup: &BaseBackup) -> Result<(), RestoreError> {
    let links = child(&backup.root, &[DATA, "pg_tblspc"])?;
    let mut other = None;
    let mut visit = |key: &MapKey, entry: &Entry| {
        let is_link =
            entry.kind == EntryKind::Symlink && key.starts_with(&links) && key.depth() == links.depth() + 1;
        match entry.kind {
            EntryKind::File | EntryKind::Object | EntryKind::Directory => ControlFlow::Continue(()),
            _ if is_link => ControlFlow::Continue(()),
            kind => {
                other = Some((key.display_path(), kind));
                ControlFlow::Break(())
            }
        }
    };
    for name in [DATA, TABLESPACES] {
        let key = child(&backup.root, &[name])?;
        if tree.entry(&key).await?.is_some() {
            tree.list(&key, Depth::All, &mut visit).await?;
        }
    }
    match other {
        None => Ok(()),
        Some((path, EntryKind::Symlink)) => Err(RestoreError::NoFile { path, kind: "symlink" }),
        Some((path, EntryKind::HardLink)) => Err(RestoreError::NoFile { path, kind: "hard link" }),
        Some((path, _)) => Err(RestoreError::NoFile { path, kind: "special file" }),
    }
}

/// Restores a cluster and tells it how to recover.
///
/// Only what differs is written; what the snapshot does not have is removed. `pg_control` goes first and comes back last,
/// when everything else is on the disk: a restore that was interrupted leaves a directory that no server starts in, and
/// is completed by restoring again. Fails as [`Layout::check_running`] and [`Layout::check_place`] do.
pub async fn restore(
    repository: &Repository,
    backup: &BaseBackup,
    layout: &Layout,
    settings: &RecoverySettings,
    places: &dyn Places,
) -> Result<ClusterReport, RestoreError> {
    layout.check_running()?;
    layout.check_place()?;
    let tree = backup.tree(repository).await?;
    refuse_others(&tree, backup).await?;
    let mut report = ClusterReport { saved_wal: save_wal(layout)?, ..ClusterReport::default() };
    let data = Data { target: layout.open(places, &layout.directory, None)?, time: backup.cluster.stop_time };
    data.remove(CONTROL_FILE)?;
    let control = child(&backup.root, &[DATA, CONTROL_FILE[0], CONTROL_FILE[1]])?;
    for part in layout.parts(&tree, backup).await? {
        let target = layout.open(places, &part.place, part.only.clone())?;
        let options = part.options(Some(control.clone()));
        let restored = repository.restore(&backup.snapshot, target, options).await?;
        report.files.add(restored);
        layout.take(&part.place, if part.place == layout.directory { DATA_MODE } else { None })?;
    }
    if let Some((first, reason)) = report.files.problems.first().cloned() {
        return Err(RestoreError::Incomplete { count: report.files.problem_count, first, reason });
    }
    link_tablespaces(backup, layout, &data)?;
    write_settings(&data, settings)?;
    places.sync().map_err(backup_core::Error::from)?;
    report.files.bytes_written += data.put_control(&tree, &control, CONTROL_FILE).await?;
    report.files.files_written += 1;
    places.sync().map_err(backup_core::Error::from)?;
    Ok(report)
}

/// The bits that a server accepts on its data directory.
const DATA_MODE: Option<u32> = Some(0o750);

impl Layout {
    /// Where only some names directly in a directory are ours, those are all that is seen there.
    fn open(
        &self,
        places: &dyn Places,
        directory: &Path,
        only: Option<Vec<Vec<u8>>>,
    ) -> Result<Arc<dyn RestoreTarget>, RestoreError> {
        Ok(Arc::new(self.owned(places, directory, only)?))
    }

    fn owned(
        &self,
        places: &dyn Places,
        directory: &Path,
        only: Option<Vec<Vec<u8>>>,
    ) -> Result<Owned, RestoreError> {
        let target = places.open(directory).map_err(backup_core::Error::from)?;
        Ok(Owned::new(target, self.owner, only))
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

    /// The WAL that stands there, if any does.
    fn standing_wal(&self) -> Result<Option<PathBuf>, RestoreError> {
        let wal = self.directory.join("pg_wal");
        let entries = match fs::read_dir(&wal) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("list", &wal)(error)),
        };
        for entry in entries {
            if entry.map_err(failed("list", &wal))?.file_name().len() == 24 {
                return Ok(Some(wal));
            }
        }
        Ok(None)
    }

    /// Fails when WAL stands in the data directory that could not be moved aside: another file system begins there.
    pub fn check_wal(&self) -> Result<(), RestoreError> {
        let Some(wal) = self.standing_wal()? else { return Ok(()) };
        let place = self.saved_wal.parent().unwrap_or(Path::new("/"));
        let device = |path: &Path| fs::symlink_metadata(path).map(|found| found.dev());
        // The place is where it is whatever links lead there.
        let there =
            place.canonicalize().and_then(|place| device(&place)).map_err(failed("look at", place))?;
        if device(&wal).map_err(failed("look at", &wal))? == there {
            return Ok(());
        }
        let (wal, place) = (wal.display().to_string(), self.saved_wal.display().to_string());
        Err(RestoreError::OtherFileSystem { wal, place })
    }
}

/// The last WAL of a broken server may be nowhere else.
fn save_wal(layout: &Layout) -> Result<Option<PathBuf>, RestoreError> {
    let Some(wal) = layout.standing_wal()? else { return Ok(None) };
    layout.check_wal()?;
    fs::rename(&wal, &layout.saved_wal).map_err(failed("move away", &wal))?;
    Ok(Some(layout.saved_wal.clone()))
}

/// Single files of the data directory, which are written as the snapshot's are: confined to it, whatever links stand there.
struct Data {
    target: Arc<dyn RestoreTarget>,
    /// Nanoseconds since 1970.
    time: i64,
}

impl Data {
    fn key<const N: usize>(names: [&str; N]) -> Result<MapKey, RestoreError> {
        Ok(MapKey::from_components(names).map_err(backup_core::Error::from)?)
    }

    fn entry(&self, kind: EntryKind) -> Entry {
        let (seconds, nanoseconds) =
            (self.time.div_euclid(1_000_000_000), self.time.rem_euclid(1_000_000_000));
        Entry { mode: 0o600, mtime: (seconds, nanoseconds as u32), ..Entry::new(kind) }
    }

    fn remove<const N: usize>(&self, names: [&str; N]) -> Result<(), RestoreError> {
        Ok(self.target.remove(&Self::key(names)?).map_err(backup_core::Error::from)?)
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), RestoreError> {
        let entry = Entry { size: content.len() as u64, ..self.entry(EntryKind::File) };
        let written = self.target.write_file(&Self::key([name])?, &entry, content);
        Ok(written.map_err(backup_core::Error::from)?)
    }

    /// The text of a file; empty when there is none.
    fn text(&self, name: &str) -> Result<String, RestoreError> {
        let key = Self::key([name])?;
        let engine = |error: TargetError| RestoreError::from(backup_core::Error::from(error));
        let entry = match self.target.existing(&key).map_err(engine)? {
            Some(entry) if entry.kind == EntryKind::File && entry.size <= SETTINGS_BYTES_MAX => entry,
            Some(_) => {
                let reason = "it is no file of settings".to_owned();
                return Err(engine(TargetError::Refused { path: name.to_owned(), reason }));
            }
            None => return Ok(String::new()),
        };
        let mut content = vec![0; entry.size as usize];
        self.target
            .open_existing(&key, &entry)
            .and_then(|file| file.read_at(0, &mut content))
            .map_err(engine)?;
        Ok(String::from_utf8_lossy(&content).into_owned())
    }

    /// Puts `pg_control` back under a name; gives its length.
    async fn put_control(&self, tree: &Tree, control: &MapKey, name: [&str; 2]) -> Result<u64, RestoreError> {
        let entry = tree.entry(control).await?.filter(|entry| entry.size <= CONTROL_BYTES_MAX);
        let Some(entry) = entry.filter(|entry| entry.kind.has_content()) else {
            return Err(RestoreError::Incomplete {
                count: 1,
                first: control.display_path(),
                reason: "the snapshot has no such file".to_owned(),
            });
        };
        let mut content = Vec::new();
        tree.dump_file(control, &mut content).await?;
        let written = self.target.write_file(&Self::key(name)?, &entry, &content);
        written.map_err(backup_core::Error::from)?;
        Ok(entry.size)
    }
}

fn link_tablespaces(backup: &BaseBackup, layout: &Layout, data: &Data) -> Result<(), RestoreError> {
    let mut places = Vec::new();
    for tablespace in &backup.cluster.tablespaces {
        let oid = tablespace.oid;
        let place = layout.tablespaces.get(&oid).ok_or(RestoreError::NoPlace { oid })?;
        let link_target = Some(place.as_os_str().as_bytes().to_vec());
        let link = Entry { link_target, mode: 0o777, ..data.entry(EntryKind::Symlink) };
        let key = Data::key(["pg_tblspc", &oid.to_string()])?;
        data.target.make_other(&key, &link).map_err(backup_core::Error::from)?;
        places.push((oid, place.to_string_lossy().into_owned()));
    }
    match places.is_empty() {
        true => Ok(()),
        false => {
            let map = tablespace_map(places.iter().map(|(oid, place)| (*oid, place.as_str())));
            data.write("tablespace_map", map.as_bytes())
        }
    }
}

fn write_settings(data: &Data, settings: &RecoverySettings) -> Result<(), RestoreError> {
    let before = data.text(SETTINGS_FILE)?;
    data.write(SETTINGS_FILE, settings.apply(&before).as_bytes())?;
    for other in ["recovery.signal", "standby.signal"] {
        data.remove([other])?;
    }
    data.write(settings.signal_file(), b"")
}

#[cfg(test)]
mod tests;
