//! Directories that are thrown away, below `--scratch` or for a socket, and what killed processes left of some.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use backup_core::env::{Rng, SystemRng};

use super::marked;
use crate::context::Context;

const PREFIX: &str = "keepwell-scratch-";
/// Where the name of a socket is short enough.
const SOCKETS: &str = "/tmp";
const SOCKET_PREFIX: &str = "keepwell-socket-";
/// A file in the directory that is locked as long as its process lives.
const MARKER: &str = "keepwell-scratch";

/// A directory that only a server's user can enter; with everything in it removed when this is dropped.
#[derive(Debug)]
pub struct Discarded {
    path: PathBuf,
    /// Locked.
    _marker: File,
}

impl Discarded {
    /// Makes one below `parent`, where those of killed processes are removed first.
    pub fn make(ctx: &Context, parent: &Path, owner: Option<(u32, u32)>) -> Result<Self> {
        // A server that is watched over is known by its directory as the system names it.
        let parent = parent.canonicalize().with_context(|| format!("look at `{}`", parent.display()))?;
        marked::sweep(ctx, &parent, PREFIX, clear)?;
        Self::make_in(&parent, PREFIX, owner)
    }

    /// Makes one for a socket and other small files.
    pub fn for_socket(ctx: &Context, owner: Option<(u32, u32)>) -> Result<Self> {
        Self::for_socket_in(ctx, Path::new(SOCKETS), owner)
    }

    fn for_socket_in(ctx: &Context, parent: &Path, owner: Option<(u32, u32)>) -> Result<Self> {
        // Where it cannot be listed, what was left stays; there is room for this one all the same.
        let _ = marked::sweep(ctx, parent, SOCKET_PREFIX, clear);
        Self::make_in(parent, SOCKET_PREFIX, owner)
    }

    fn make_in(parent: &Path, prefix: &str, owner: Option<(u32, u32)>) -> Result<Self> {
        // In a container each run has the same process number.
        let mut random = [0_u8; 8];
        SystemRng.fill(&mut random);
        let path = parent.join(format!("{prefix}{:016x}", u64::from_ne_bytes(random)));
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("create `{}`", path.display()))?;
        match mark(&path, owner) {
            Ok(marker) => Ok(Self { path, _marker: marker }),
            Err(error) => {
                let _ = fs::remove_dir_all(&path);
                Err(error)
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Discarded {
    fn drop(&mut self) {
        // What cannot be removed is left in plain sight, and the next run tries again.
        let _ = marked::empty(&self.path, MARKER).and_then(|()| fs::remove_dir(&self.path));
    }
}

/// Marks a new directory as ours, and hands it over.
fn mark(path: &Path, owner: Option<(u32, u32)>) -> Result<File> {
    let marker = marked::mark(path, MARKER)?;
    if let Some((user, group)) = owner {
        chown(path, Some(user), Some(group)).context("hand over a directory")?;
    }
    Ok(marker)
}

/// Empties a directory if a killed process of ours left it; its server ended with that process. Whether it did.
fn clear(directory: &Path) -> Result<bool> {
    if !fs::symlink_metadata(directory).is_ok_and(|found| found.is_dir()) {
        return Ok(false);
    }
    let Some(_marker) = marked::left(directory, MARKER)? else { return Ok(false) };
    marked::empty(directory, MARKER).with_context(|| format!("empty `{}`", directory.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser;

    use super::*;

    #[test]
    fn what_a_killed_run_left_is_removed_and_what_runs_or_is_not_ours_is_not() {
        let global = crate::args::Arguments::try_parse_from(["keepwell", "version"]).unwrap().global;
        let printer = crate::printer::Printer::new(&global, &Default::default());
        let ctx = Context::new(global, Default::default(), printer.into()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(format!("{PREFIX}{name}"));
        for name in ["left", "unmarked"] {
            fs::create_dir_all(path(name).join("data/global")).unwrap();
            fs::write(path(name).join("data/global/pg_control"), "").unwrap();
        }
        fs::write(path("left").join(MARKER), "").unwrap();
        fs::create_dir(dir.path().join("theirs")).unwrap();
        fs::write(dir.path().join("theirs").join(MARKER), "").unwrap();
        std::os::unix::fs::symlink(dir.path().join("theirs"), path("link")).unwrap();
        let first = Discarded::make(&ctx, dir.path(), None).unwrap();
        assert!(!path("left").exists());
        assert!(path("unmarked").join("data/global/pg_control").exists());
        assert!(dir.path().join("theirs").join(MARKER).exists());
        assert_eq!(fs::metadata(first.path()).unwrap().permissions().mode() & 0o777, 0o700);
        fs::create_dir(first.path().join("data")).unwrap();
        // Of the same process number, and it runs.
        let second = Discarded::make(&ctx, dir.path(), None).unwrap();
        assert_ne!(first.path(), second.path());
        assert!(first.path().join("data").exists());
        let gone = first.path().to_owned();
        drop(first);
        assert!(!gone.exists() && second.path().exists());
        assert!(Discarded::make(&ctx, &dir.path().join("missing"), None).is_err());
        let left = dir.path().join(format!("{SOCKET_PREFIX}left"));
        fs::create_dir(&left).unwrap();
        fs::write(left.join(MARKER), "").unwrap();
        fs::write(left.join("wal"), "").unwrap();
        let socket = Discarded::for_socket_in(&ctx, dir.path(), None).unwrap();
        assert!(!left.exists() && socket.path().exists() && second.path().exists());
        assert!(Discarded::for_socket(&ctx, None).unwrap().path().join("0123456789").as_os_str().len() < 90);
    }
}
