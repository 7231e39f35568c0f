//! What is restored where.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use backup_core::Snapshot;
use keepwell_catalog::MapKey;

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
