//! `keepwell cache`.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use backup_core::Cache;
use clap::Subcommand;
use serde_json::json;

use crate::context::Context;
use crate::exit::Exit;
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell cache
  keepwell cache clear
  keepwell --cache-dir /srv/cache cache clear --all";

/// Look at or clear the local cache
///
/// The cache holds indexes and what is known about files that were backed up. It can be cleared at any time: that costs
/// time at the next backup, never data. Two things in it are in no store, and `clear` leaves them unless it is told: what
/// this host has read and proved, and how far it has seen each trust chain, by which it notices one that was set back.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Say where the cache is and how large (the default)
    #[command(after_help = EXAMPLES)]
    Show,
    /// Remove everything in it that a store can give again
    #[command(after_help = EXAMPLES)]
    Clear {
        /// Also forget what was read and proved, and how far the trust chains were seen
        #[arg(long)]
        all: bool,
    },
}

/// Runs `cache`.
pub fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let directory = ctx.cache_dir();
    let (mut files, mut bytes) = measure(&directory)?;
    let size = |files, bytes| format!("{} in {}", text::bytes(bytes), text::count(files, "file", "files"));
    match args.action.unwrap_or(Action::Show) {
        Action::Show => ctx.printer.line(format_args!("{}: {}", directory.display(), size(files, bytes))),
        Action::Clear { all } => {
            clear(&directory, all)?;
            let left = measure(&directory)?;
            (files, bytes) = (files.saturating_sub(left.0), bytes.saturating_sub(left.1));
            ctx.printer.line(format_args!("removed {} from {}", size(files, bytes), directory.display()));
        }
    }
    ctx.printer
        .json("cache", json!({ "directory": directory.to_string_lossy(), "files": files, "bytes": bytes }));
    Ok(Exit::Done)
}

/// Files and bytes below a directory; none where there is no such directory.
fn measure(directory: &Path) -> Result<(u64, u64)> {
    let (mut files, mut bytes) = (0, 0);
    for path in entries(directory)? {
        let metadata = match path.symlink_metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("look at `{}`", path.display())),
        };
        if metadata.is_dir() {
            let (inner_files, inner_bytes) = measure(&path)?;
            (files, bytes) = (files + inner_files, bytes + inner_bytes);
        } else {
            (files, bytes) = (files + 1, bytes + metadata.len());
        }
    }
    Ok((files, bytes))
}

/// What is in a directory. One that is not there, or went meanwhile, is empty; one that cannot be read is not.
fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let listed = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect()),
    };
    listed.with_context(|| format!("list `{}`", directory.display()))
}

/// Empties the caches of stores, whose directories are named by 32 hex digits, and nothing else.
fn clear(directory: &Path, all: bool) -> Result<()> {
    for store in entries(directory)? {
        let name = store.file_name().and_then(OsStr::to_str).unwrap_or_default();
        if name.len() != 32 || !name.bytes().all(|b| b.is_ascii_hexdigit()) || !store.is_dir() {
            continue;
        }
        for path in entries(&store)? {
            if !all && Cache::REMEMBERED.iter().any(|kept| path.file_name() == Some(OsStr::new(kept))) {
                continue;
            }
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.with_context(|| format!("remove `{}`", path.display()))?;
        }
        // One in which something stays is not empty.
        let _ = fs::remove_dir(&store);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_store_can_give_again_stays_unless_all_is_to_go() {
        let cache = tempfile::tempdir().unwrap();
        let (store, other) = (cache.path().join("0".repeat(32)), cache.path().join("notes"));
        let files = ["proved", "trust.head", "damage-found", "index/x", "ends"];
        fs::create_dir_all(store.join("index")).unwrap();
        fs::create_dir(&other).unwrap();
        files.iter().for_each(|name| fs::write(store.join(name), "x").unwrap());
        clear(cache.path(), false).unwrap();
        let left: Vec<&str> = files.into_iter().filter(|name| store.join(name).exists()).collect();
        assert_eq!(left, ["proved", "trust.head", "damage-found"]);
        clear(cache.path(), true).unwrap();
        assert!(!store.exists() && other.exists());
    }

    #[test]
    fn what_cannot_be_listed_is_not_empty() {
        let dir = tempfile::tempdir().unwrap();
        let (missing, no_directory) = (dir.path().join("missing"), dir.path().join("file"));
        assert_eq!(measure(&missing).unwrap(), (0, 0));
        clear(&missing, false).unwrap();
        // Stands for one without the right to read it, which root has anyway.
        fs::write(&no_directory, "x").unwrap();
        assert!(measure(&no_directory).unwrap_err().to_string().contains("list `"));
        clear(&no_directory, false).unwrap_err();
    }
}
