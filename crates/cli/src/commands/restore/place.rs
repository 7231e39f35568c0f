//! What is restored where.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use backup_core::target::RestoreTarget;
use backup_core::{Snapshot, Tree};
use keepwell_catalog::{Entry, EntryKind, MapKey};
use keepwell_source_files::{FileTarget, TargetOptions};

use crate::exit::Complaint;
use crate::select::path_key;

/// A part of a snapshot and the directory that it is restored into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The part; `None` is everything.
    pub below: Option<MapKey>,
    /// The directory. A single file is restored under its name in it.
    pub target: PathBuf,
    /// Where the paths that were captured come to stand; only these are the snapshot's, not the directories above them.
    pub captured: Vec<PathBuf>,
}

/// Divides a restore into parts.
///
/// Usually that is one. With `delete` it is one per captured path: the directories that lead to a captured path are in
/// the snapshot without what else is in them, and nothing of that must be removed.
pub fn scopes(snapshot: &Snapshot, below: Option<MapKey>, target: &Path, delete: bool) -> Result<Vec<Scope>> {
    let manifest = snapshot.manifest()?;
    let below_or_root = below.clone().unwrap_or_else(MapKey::root);
    let mut captured = Vec::new();
    for path in &manifest.paths {
        let key = path_key(&String::from_utf8_lossy(path))?;
        if key.starts_with(&below_or_root) {
            captured.push(key);
        }
    }
    if captured.is_empty() {
        // The part lies within a captured path.
        captured.push(below_or_root.clone());
    }
    let stands = |key: &MapKey| -> Result<PathBuf> {
        let names = key.components().skip(below_or_root.depth());
        Ok(names.fold(target.to_path_buf(), |path, name| path.join(OsStr::from_bytes(&name))))
    };
    let places: Vec<PathBuf> = captured.iter().map(stands).collect::<Result<_>>()?;
    if !delete || captured == [below_or_root.clone()] {
        return Ok(vec![Scope { below, target: target.to_path_buf(), captured: places }]);
    }
    let scopes = captured.into_iter().zip(places);
    scopes
        .map(|(key, place)| Ok(Scope { below: Some(key), target: place.clone(), captured: vec![place] }))
        .collect()
}

/// Whether the target directory is to become what the snapshot's directory was, and not only what is in it.
///
/// Not if it is somebody's directory that merely gets something put into it, as `/tmp`.
pub fn takes_root_metadata(scope: &Scope, delete: bool) -> bool {
    let in_place = scope.below.as_ref().is_some_and(|key| {
        let path = key.to_os_path_bytes().unwrap_or_default();
        Path::new("/").join(OsStr::from_bytes(&path)) == scope.target
    });
    delete || in_place || !is_occupied(&scope.target)
}

/// The directory that a part is restored into, with what it was in the snapshot.
#[derive(Debug)]
pub struct Root {
    parent: PathBuf,
    name: MapKey,
    entry: Entry,
}

impl Root {
    /// Nothing for a part that is no directory, and for a target that has no parent.
    pub async fn of(tree: &Tree, scope: &Scope) -> Result<Option<Self>> {
        let Some(key) = &scope.below else { return Ok(None) };
        let Some(entry) = tree.entry(key).await?.filter(|e| e.kind == EntryKind::Directory) else {
            return Ok(None);
        };
        let path = scope.target.canonicalize().unwrap_or_else(|_| scope.target.clone());
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
        let name = MapKey::from_components([name.as_bytes()]).context("name the target")?;
        Ok(Some(Self { parent: parent.to_path_buf(), name, entry }))
    }

    /// Gives the directory its mode, owner, times and attributes; says what could not be given.
    pub fn apply(&self, options: &TargetOptions) -> Result<Vec<String>> {
        let target = FileTarget::create(&self.parent, options).map_err(backup_core::Error::from)?;
        target.apply_metadata(&self.name, &self.entry).map_err(backup_core::Error::from)?;
        Ok(target.left_out())
    }
}

/// Whether something stands in a directory.
pub fn is_occupied(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some())
}

/// Directories that were made only so that a plan could be made.
#[derive(Debug)]
pub struct Made(Vec<PathBuf>);

impl Made {
    /// Makes a directory and those above it.
    pub fn directories(path: &Path) -> Result<Self> {
        if path.exists() && !path.is_dir() {
            return Err(Complaint::usage(format!("`{}` is not a directory", path.display())).into());
        }
        let missing: Vec<PathBuf> =
            path.ancestors().take_while(|p| !p.exists()).map(Path::to_path_buf).collect();
        fs::create_dir_all(path).with_context(|| format!("create `{}`", path.display()))?;
        Ok(Self(missing))
    }

    /// Removes them again, as far as they are empty.
    pub fn undo(&self) {
        for path in &self.0 {
            // A directory that somebody else uses by now stays.
            let _ = fs::remove_dir(path);
        }
    }
}
