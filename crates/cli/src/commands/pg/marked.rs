//! Directories of a run that the next one removes if that run was killed: a file in each is locked as long as its process
//! lives.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context as _, Result};

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

/// Removes everything in a directory, the mark last.
pub fn empty(directory: &Path, name: &str) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
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
