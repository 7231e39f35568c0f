//! Directories of a run that the next one removes if that run was killed: a file in each is locked as long as its process
//! lives.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rustix::fs::{Mode, OFlags};

use crate::context::Context;
use crate::exit::one_line;

/// Marks a directory as ours for as long as the file is open. Nobody finds the mark before it is locked.
pub fn mark(directory: &Path, name: &str) -> Result<File> {
    let new = directory.join(format!("{name}.new"));
    let marker = File::create_new(&new).context("mark the directory")?;
    marker.try_lock().context("lock the mark")?;
    fs::rename(&new, directory.join(name)).context("mark the directory")?;
    Ok(marker)
}

/// The mark, locked now, if a process of ours left the directory and is gone.
pub fn left(directory: &Path, name: &str) -> Result<Option<File>> {
    let path = directory.join(name);
    let own = rustix::process::geteuid().as_raw();
    match fs::symlink_metadata(&path) {
        Ok(found) if found.is_file() && found.uid() == own => {}
        _ => return Ok(None),
    }
    let marker = File::open(&path).with_context(|| format!("open `{}`", path.display()))?;
    match marker.try_lock() {
        Ok(()) => Ok(Some(marker)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).context("lock the mark"),
    }
}

/// Removes everything in a directory, the mark last. Fails for a link.
pub fn empty(directory: &Path, name: &str) -> io::Result<()> {
    // By what is open: the server's user, whose it is, could put a link in its place meanwhile.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = rustix::fs::open(directory, flags, Mode::empty())?;
    let directory = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()));
    for entry in fs::read_dir(&directory)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            _ if entry.file_name() == name => {}
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    match fs::remove_file(directory.join(name)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes what killed processes left below `parent` under names that begin so, each after `clear` has emptied it; that
/// says whether it did. What cannot be removed is named.
pub fn sweep(
    ctx: &Context,
    parent: &Path,
    prefix: &str,
    clear: impl Fn(&Path) -> Result<bool>,
) -> Result<()> {
    let entries = fs::read_dir(parent).with_context(|| format!("list `{}`", parent.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("list `{}`", parent.display()))?;
        if !entry.file_name().to_string_lossy().starts_with(prefix) {
            continue;
        }
        let path = entry.path();
        let removed = clear(&path).and_then(|was_left| {
            if was_left {
                fs::remove_dir(&path)?;
            }
            Ok(was_left)
        });
        match removed {
            Ok(true) => {
                ctx.printer.say(format_args!("removed `{}`, which a killed run left", path.display()));
            }
            Ok(false) => {}
            Err(error) => {
                ctx.printer.warn(format_args!("`{}` stays: {}", path.display(), one_line(&error)));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_link_leads_to_is_not_emptied() {
        let dir = tempfile::tempdir().unwrap();
        let (theirs, link) = (dir.path().join("theirs"), dir.path().join("link"));
        fs::create_dir_all(theirs.join("more")).unwrap();
        fs::write(theirs.join("file"), "").unwrap();
        std::os::unix::fs::symlink(&theirs, &link).unwrap();
        assert!(empty(&link, "mark").is_err());
        assert!(theirs.join("file").exists() && theirs.join("more").exists());
        empty(&theirs, "mark").unwrap();
        assert_eq!(fs::read_dir(&theirs).unwrap().count(), 0);
    }
}
