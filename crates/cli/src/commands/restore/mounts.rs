//! File systems that are mounted in the target and that a restore leaves as they are.

use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use backup_core::{Depth, Error, Tree};
use keepwell_catalog::{Entry, MapKey};

use super::place::Scope;
use crate::mountinfo::{self, Mounted};

/// Patterns that leave out what is on other file systems beneath `paths` of which the snapshot holds nothing: nothing is
/// written there, and nothing removed. Of a whole system these are `/proc`, `/sys`, and disks that were not backed up.
pub async fn untouched(tree: &Tree, scopes: &[Scope], paths: &[PathBuf]) -> Result<Vec<String>> {
    let mut patterns = Vec::new();
    for Mounted { point: mount, .. } in mountinfo::all() {
        if is_mounted_in(&mount, paths)
            && let Some(pattern) = pattern(&mount, mount.metadata().is_err())
            && !is_touched(tree, scopes, &mount).await?
        {
            patterns.push(pattern);
        }
    }
    Ok(patterns)
}

/// Whether another file system is mounted there than that of the deepest path above. One that cannot be looked at is another
/// one. What is mounted at a path itself is the business of that path: its own part of a restore removes things there.
fn is_mounted_in(mount: &Path, paths: &[PathBuf]) -> bool {
    let device = |path: &Path| path.metadata().ok().map(|found| found.dev());
    let above = paths.iter().filter(|path| mount.starts_with(path));
    let deepest = above.max_by_key(|path| path.components().count());
    deepest.is_some_and(|path| path != mount && device(path) != device(mount))
}

/// Whether the snapshot holds anything of what is mounted there.
async fn is_touched(tree: &Tree, scopes: &[Scope], mount: &Path) -> Result<bool> {
    for scope in scopes {
        let Ok(target) = scope.target.canonicalize() else { continue };
        let Ok(within) = mount.strip_prefix(target) else { continue };
        let mut key = scope.below.clone().unwrap_or_default();
        for name in within.components() {
            key = key.child(name.as_os_str().as_bytes())?;
        }
        if holds_something(tree, &key).await {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What is damaged there, the restore names; it may hold something.
async fn holds_something(tree: &Tree, directory: &MapKey) -> bool {
    let mut found = false;
    let visit = |_: &MapKey, _: &Entry| {
        found = true;
        ControlFlow::Break(())
    };
    let listed = tree.list(directory, Depth::Children, visit).await;
    match listed {
        Ok(()) => found,
        Err(error) => !matches!(error, Error::NoSuchPath { .. }),
    }
}

/// What is in a directory, or all of one that cannot be looked at (of another user's FUSE, of a server that is away) and would
/// leave the snapshot incomplete, as a pattern. `None` where that cannot be said: a pattern is text.
fn pattern(directory: &Path, whole: bool) -> Option<String> {
    let mut pattern = String::new();
    for character in directory.to_str()?.chars() {
        if "\\*?[]{}!# ".contains(character) {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    // A pattern is one line.
    let of_it = if whole { "" } else { "/*" };
    (!pattern.contains('\n')).then(|| pattern + of_it)
}

#[cfg(test)]
mod tests {
    use super::super::globs;
    use super::*;

    #[test]
    fn a_pattern_fits_what_is_in_the_directory_and_nothing_else() {
        for (directory, fits, not) in [
            ("/proc", "proc/1", "proc"),
            ("/mnt/my disk", "mnt/my disk/x", "mnt/my"),
            ("/a*[b]", "a*[b]/x", "ab/x"),
            ("/back\\slash", "back\\slash/x", "backslash/x"),
        ] {
            let patterns = globs::patterns(&[pattern(Path::new(directory), false).unwrap()]).unwrap();
            assert!(globs::fits(&patterns, fits.as_bytes(), true), "{directory}");
            assert!(!globs::fits(&patterns, not.as_bytes(), true), "{directory}");
        }
        let whole = globs::patterns(&[pattern(Path::new("/home/a b/sshfs"), true).unwrap()]).unwrap();
        assert!(globs::fits(&whole, b"home/a b/sshfs", true) && !globs::fits(&whole, b"sshfs", true));
        assert_eq!(pattern(Path::new("/two\nlines"), false), None);
    }

    #[test]
    fn only_another_file_system_beneath_is_mounted_in_a_path() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("plain")).unwrap();
        let is_mounted = |mount: &Path, paths: &[&Path]| {
            is_mounted_in(mount, &paths.iter().map(|path| path.to_path_buf()).collect::<Vec<_>>())
        };
        let (top, proc) = (Path::new("/"), Path::new("/proc"));
        assert!(is_mounted(proc, &[top]) && is_mounted(proc, &[dir.path(), top]));
        assert!(!is_mounted(proc, &[top, proc]), "a path of its own is restored, and --delete removes there");
        assert!(!is_mounted(&proc.join("self"), &[top, proc]), "it lies on what is the path's");
        assert!(!is_mounted(top, &[top]) && !is_mounted(proc, &[dir.path()]));
        assert!(!is_mounted(&dir.path().join("plain"), &[dir.path()]));
    }
}
