//! A restore that writes only what is small: the rest is fetched when a server reads it.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use backup_core::target::{RestoreTarget, TargetError};
use backup_core::{Depth, Repository, Select, Tree};
use keepwell_catalog::{Entry, EntryKind, MapKey};

use super::{
    CONTROL_BYTES_MAX, CONTROL_FILE, DATA_MODE, Data, Layout, Part, Places, RestoreError, SETTINGS_FILE,
    link_tablespaces, refuse_others, write_settings,
};
use crate::cluster::DATA;
use crate::recovery::BaseBackup;
use crate::recovery::backups::child;
use crate::recovery::settings::{RecoverySettings, forget_recovery};

/// The name that `pg_control` has in its directory while some files are holes.
pub const HOLLOW_CONTROL_FILE: &str = "pg_control.incomplete";
/// Smaller files are restored at once: together they are little, and each would cost a request.
const HOLLOW_BYTES_MIN: u64 = 64 << 10;

/// A directory of a cluster, and what of it was left a hole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HollowPart {
    /// The data directory, or that of a tablespace.
    pub directory: PathBuf,
    /// The holes in it.
    pub files: Vec<LeftHollow>,
}

/// A file that was left a hole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftHollow {
    /// Where it stands below the directory.
    pub path: PathBuf,
    /// What it is in the snapshot.
    pub key: MapKey,
    /// Its size in bytes.
    pub size: u64,
}

/// Restores a cluster of which the larger files stay holes, for a server whose reads are answered from the snapshot.
///
/// Into empty directories only; the data directory comes first in what is returned. `pg_control` is written under the
/// name [`HOLLOW_CONTROL_FILE`], so that no server takes holes for data; whoever has filled all of them renames it. Costs
/// the smaller files, and a create for each other one. Nothing waits for the disk.
pub async fn restore_hollow(
    repository: &Repository,
    backup: &BaseBackup,
    layout: &Layout,
    settings: &RecoverySettings,
    places: &dyn Places,
) -> Result<Vec<HollowPart>, RestoreError> {
    let tree = backup.tree(repository).await?;
    refuse_others(&tree, backup).await?;
    let data = Data { target: layout.open(places, &layout.directory, None)?, time: backup.cluster.stop_time };
    let control = child(&backup.root, &[DATA, CONTROL_FILE[0], CONTROL_FILE[1]])?;
    let mut parts = Vec::new();
    for part in layout.parts(&tree, backup).await? {
        let target = layout.open(places, &part.place, part.only.clone())?;
        let mut options = part.options(Some(control.clone()));
        let (root, selected) = (part.key.depth(), options.select.take());
        let select: Select = Arc::new(move |key, entry| {
            selected.as_ref().is_none_or(|selected| selected(key, entry)) && !is_hollow(root, key, entry)
        });
        options.select = Some(select);
        let report = repository.restore(&backup.snapshot, Arc::clone(&target), options).await?;
        if let Some((first, reason)) = report.problems.first().cloned() {
            return Err(RestoreError::Incomplete { count: report.problem_count, first, reason });
        }
        let files = leave_hollow(&tree, &part, &*target).await?;
        layout.take(&part.place, if part.place == layout.directory { DATA_MODE } else { None })?;
        parts.push(HollowPart { directory: part.place, files });
    }
    link_tablespaces(backup, layout, &data)?;
    write_settings(&data, settings)?;
    data.put_control(&tree, &control, [CONTROL_FILE[0], HOLLOW_CONTROL_FILE]).await?;
    Ok(parts)
}

/// Whether a file stays a hole. What stands in the data directory itself is changed before a server runs.
fn is_hollow(root: usize, key: &MapKey, entry: &Entry) -> bool {
    entry.kind == EntryKind::File && entry.size >= HOLLOW_BYTES_MIN && key.depth() > root + 1
}

/// Makes the files of a part that are nothing but holes.
async fn leave_hollow(
    tree: &Tree,
    part: &Part,
    target: &dyn RestoreTarget,
) -> Result<Vec<LeftHollow>, RestoreError> {
    let root = part.key.depth();
    let only = part.options(None).select;
    let make = |key: &MapKey, entry: &Entry| {
        let within = MapKey::from_components(key.components().skip(root))?;
        let path = PathBuf::from(OsStr::from_bytes(&within.to_os_path_bytes()?));
        target.create_file(&within, entry)?.finish(entry)?;
        Ok::<_, backup_core::Error>(LeftHollow { path, key: key.clone(), size: entry.size })
    };
    let (mut files, mut failure) = (Vec::new(), None);
    let visit = |key: &MapKey, entry: &Entry| {
        if !is_hollow(root, key, entry) || only.as_ref().is_some_and(|only| !only(key, entry)) {
            return ControlFlow::Continue(());
        }
        match make(key, entry) {
            Ok(file) => {
                files.push(file);
                ControlFlow::Continue(())
            }
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    };
    tree.list(&part.key, Depth::All, visit).await?;
    match failure {
        None => Ok(files),
        Some(error) => Err(error.into()),
    }
}

/// Makes a cluster whose holes were all filled, and whose server was stopped, one that any server starts in: its recovery
/// is over, so the settings of that go, and `pg_control` gets its own name.
///
/// Nobody may stand over its directories any more. Everything is on the disk before `pg_control` has its name, and that
/// is before this returns; until then it is still no cluster.
pub fn complete(backup: &BaseBackup, layout: &Layout, places: &dyn Places) -> Result<(), RestoreError> {
    let engine = |error: TargetError| RestoreError::from(backup_core::Error::from(error));
    let data = Data { target: layout.open(places, &layout.directory, None)?, time: backup.cluster.stop_time };
    let settings = data.text(SETTINGS_FILE)?;
    data.write(SETTINGS_FILE, forget_recovery(&settings).as_bytes())?;
    places.sync().map_err(engine)?;
    let hollow = Data::key([CONTROL_FILE[0], HOLLOW_CONTROL_FILE])?;
    let found = data.target.existing(&hollow).map_err(engine)?;
    let Some(entry) = found.filter(|entry| entry.kind == EntryKind::File && entry.size <= CONTROL_BYTES_MAX)
    else {
        return Err(RestoreError::Incomplete {
            count: 1,
            first: hollow.display_path(),
            reason: "it is not there any more".to_owned(),
        });
    };
    let mut content = vec![0; entry.size as usize];
    data.target
        .open_existing(&hollow, &entry)
        .and_then(|file| file.read_at(0, &mut content))
        .map_err(engine)?;
    data.target.write_file(&Data::key(CONTROL_FILE)?, &entry, &content).map_err(engine)?;
    data.target.remove(&hollow).map_err(engine)?;
    places.sync().map_err(engine)
}
