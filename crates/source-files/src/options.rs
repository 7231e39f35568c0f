//! What to capture, as plain data.

use std::path::{Path, PathBuf};

/// What a [`FileSource`](crate::FileSource) captures and what it leaves out.
///
/// A path that was asked for is always captured, even where a rule below would leave it out: rules decide about what
/// is *beneath* the given paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileOptions {
    /// Absolute paths to capture, in any order; one beneath another is captured once. `.` components and repeated
    /// slashes are dropped, `..` is refused. Symlinks on the way to a path are followed and appear in the snapshot as
    /// the directories they lead to; a path that is itself a symlink is captured as a symlink.
    pub paths: Vec<PathBuf>,
    /// Patterns of what to leave out, with the rules of `.gitignore` relative to `/`: one without a slash matches a
    /// name anywhere, one with a slash is anchored at `/`, a trailing slash means directories only, `**` spans
    /// directories, a leading `!` keeps what an earlier pattern left out. They win over ignore files.
    pub excludes: Vec<String>,
    /// Files of such patterns, one per line (`#` starts a comment), added after [`excludes`](Self::excludes). Read once.
    pub exclude_files: Vec<PathBuf>,
    /// Names of ignore files honoured inside the tree, for example `.keepwellignore`: their patterns are relative to the
    /// directory they are in, and a deeper one wins. Empty: none are.
    pub ignore_file_names: Vec<String>,
    /// Stay on the file systems of the given paths. The directory on which another one is mounted is captured, empty.
    pub one_file_system: bool,
    /// Leave out what is in directories marked by a `CACHEDIR.TAG` (<https://bford.info/cachedir/>); the directory
    /// itself and its tag are captured.
    pub exclude_caches: bool,
    /// Leave out regular files of more than this many bytes.
    pub exclude_larger_than: Option<u64>,
}

/// The path without symlinks, as far as it exists.
pub(crate) fn real(path: &Path) -> PathBuf {
    for above in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (above.canonicalize(), path.strip_prefix(above)) {
            return real.join(rest).components().collect();
        }
    }
    path.to_path_buf()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_no_symlinks_as_far_as_it_exists() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        std::fs::create_dir(top.join("d")).unwrap();
        std::os::unix::fs::symlink("d", top.join("link")).unwrap();
        for (path, expected) in [("link", "d"), ("link/x/y", "d/x/y"), ("d/", "d"), ("z", "z")] {
            let real = real(&top.join(path));
            assert_eq!(real.as_os_str(), top.join(expected).as_os_str(), "{path}");
        }
    }
}
