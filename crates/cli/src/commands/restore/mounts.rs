//! File systems that are mounted in the target and that a restore leaves as they are.

use std::ffi::OsString;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use backup_core::{Depth, Error, Tree};
use keepwell_catalog::{Entry, MapKey};

use super::place::Scope;

/// Patterns that leave out what is on other file systems beneath `paths` of which the snapshot holds nothing: nothing is
/// written there, and nothing removed. Of a whole system these are `/proc`, `/sys`, and disks that were not backed up.
pub async fn untouched(tree: &Tree, scopes: &[Scope], paths: &[PathBuf]) -> Result<Vec<String>> {
    let listed = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mut patterns = Vec::new();
    for mount in mount_points(&listed) {
        if paths.iter().any(|path| is_mounted_in(&mount, path))
            && let Some(pattern) = pattern(&mount)
            && !is_touched(tree, scopes, &mount).await?
        {
            patterns.push(pattern);
        }
    }
    Ok(patterns)
}

/// Whether another file system is mounted there, beneath the path. One that cannot be looked at is another one.
fn is_mounted_in(mount: &Path, path: &Path) -> bool {
    let device = |path: &Path| path.metadata().ok().map(|found| found.dev());
    mount != path && mount.starts_with(path) && device(mount) != device(path)
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
        if holds_something(tree, &key).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn holds_something(tree: &Tree, directory: &MapKey) -> Result<bool> {
    let mut found = false;
    let visit = |_: &MapKey, _: &Entry| {
        found = true;
        ControlFlow::Break(())
    };
    let listed = tree.list(directory, Depth::Children, visit).await;
    match listed {
        Ok(()) => Ok(found),
        Err(Error::NoSuchPath { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The mount points of a `mountinfo` of the kernel.
fn mount_points(listed: &[u8]) -> Vec<PathBuf> {
    let fields =
        listed.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    fields.map(unescaped).collect()
}

/// Spaces, tabs, newlines and backslashes are written as three octal digits behind a backslash.
fn unescaped(field: &[u8]) -> PathBuf {
    let (mut path, mut rest) = (Vec::with_capacity(field.len()), field);
    while let Some((&byte, after)) = rest.split_first() {
        let digits =
            after.get(..3).filter(|_| byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) => {
                path.push(code);
                rest = &after[3..];
            }
            None => {
                path.push(byte);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(path))
}

/// What is in a directory, as a pattern. `None` where that cannot be said: a pattern is text.
fn pattern(directory: &Path) -> Option<String> {
    let mut pattern = String::new();
    for character in directory.to_str()?.chars() {
        if "\\*?[]{}!# ".contains(character) {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    // A pattern is one line.
    (!pattern.contains('\n')).then(|| pattern + "/*")
}

#[cfg(test)]
mod tests {
    use super::super::globs;
    use super::*;

    #[test]
    fn mount_points_are_read_as_the_kernel_writes_them() {
        let listed = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            23 22 0:21 / /proc rw - proc proc rw\n\
            24 22 8:17 / /mnt/my\\040disk\\134 rw - ext4 /dev/sdb1 rw\n";
        assert_eq!(mount_points(listed), ["/", "/proc", "/mnt/my disk\\"].map(PathBuf::from));
        assert_eq!(mount_points(b"odd\n\n"), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_pattern_fits_what_is_in_the_directory_and_nothing_else() {
        for (directory, fits, not) in [
            ("/proc", "proc/1", "proc"),
            ("/mnt/my disk", "mnt/my disk/x", "mnt/my"),
            ("/a*[b]", "a*[b]/x", "ab/x"),
            ("/back\\slash", "back\\slash/x", "backslash/x"),
        ] {
            let patterns = globs::patterns(&[pattern(Path::new(directory)).unwrap()]).unwrap();
            assert!(globs::fits(&patterns, fits.as_bytes(), true), "{directory}");
            assert!(!globs::fits(&patterns, not.as_bytes(), true), "{directory}");
        }
        assert_eq!(pattern(Path::new("/two\nlines")), None);
    }

    #[test]
    fn only_another_file_system_beneath_is_mounted_in_a_path() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("plain")).unwrap();
        assert!(is_mounted_in(Path::new("/proc"), Path::new("/")));
        assert!(!is_mounted_in(Path::new("/"), Path::new("/")));
        assert!(!is_mounted_in(Path::new("/proc"), dir.path()));
        assert!(!is_mounted_in(&dir.path().join("plain"), dir.path()));
    }
}
