//! `keepwell cache`.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use serde_json::json;

use crate::context::Context;
use crate::exit::Exit;
use crate::text;

/// Look at or clear the local cache
///
/// The cache holds indexes and what is known about files that were backed up. It can be cleared at any time: that costs
/// time at the next backup, never data.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Say where the cache is and how large (the default)
    Show,
    /// Remove everything in it
    Clear,
}

/// Runs `cache`.
pub fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let directory = ctx.cache_dir();
    let (files, bytes) = measure(&directory);
    let size = format!("{} in {}", text::bytes(bytes), text::count(files, "file", "files"));
    match args.action.unwrap_or(Action::Show) {
        Action::Show => ctx.printer.line(format_args!("{}: {size}", directory.display())),
        Action::Clear => {
            clear(&directory)?;
            ctx.printer.line(format_args!("removed {size} from {}", directory.display()));
        }
    }
    ctx.printer
        .json("cache", json!({ "directory": directory.to_string_lossy(), "files": files, "bytes": bytes }));
    Ok(Exit::Done)
}

fn measure(directory: &Path) -> (u64, u64) {
    let (mut files, mut bytes) = (0, 0);
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            let (inner_files, inner_bytes) = measure(&entry.path());
            (files, bytes) = (files + inner_files, bytes + inner_bytes);
        } else {
            (files, bytes) = (files + 1, bytes + metadata.len());
        }
    }
    (files, bytes)
}

/// Removes the caches of stores, whose directories are named by 32 hex digits, and nothing else.
fn clear(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_store =
            name.to_str().is_some_and(|n| n.len() == 32 && n.bytes().all(|b| b.is_ascii_hexdigit()));
        if is_store {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("remove `{}`", entry.path().display()))?;
        }
    }
    Ok(())
}
