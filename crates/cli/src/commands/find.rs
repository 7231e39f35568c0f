//! `keepwell find`.

use std::ops::ControlFlow;

use anyhow::Result;
use backup_core::{Depth, Snapshot};
use keepwell_catalog::{EntryKind, MapKey};
use serde_json::Value;

use super::ls;
use super::restore::globs;
use crate::context::Context;
use crate::exit::Exit;
use crate::open;
use crate::select::{self, Filter};
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell find '*.conf'                  in all snapshots, newest first
  keepwell find /etc/fstab --in latest    in one snapshot
  keepwell find notes.txt --newest        only where it was last";

/// Find files in snapshots
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Patterns as in .gitignore: `*.conf` matches anywhere, `/etc/fstab` only there
    #[arg(required = true)]
    pattern: Vec<String>,
    /// Only in this snapshot; may be repeated
    #[arg(long = "in", value_name = "SNAPSHOT")]
    within: Vec<String>,
    /// Stop after the newest snapshot that has something
    #[arg(long)]
    newest: bool,
    /// Modes, owners, sizes and times too
    #[arg(short, long)]
    long: bool,
    #[command(flatten)]
    filter: Filter,
}

/// Runs `find`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let patterns = globs::patterns(&args.pattern)?;
    let (opened, snapshots) = open::with_snapshots(ctx).await?;
    opened.progress.end();
    let mut total = 0;
    for snapshot in searched(&snapshots, &args)? {
        // One that was named is tried all the same, and the error says what is wrong with it.
        let is_named = !args.within.is_empty() || !opened.repository.can_read();
        if !is_named && !select::is_readable(ctx, &opened.repository, snapshot) {
            continue;
        }
        let tree = opened.repository.tree(snapshot).await?;
        let mut found = 0_u64;
        tree.list(&MapKey::root(), Depth::All, |key, entry| {
            if globs::fits_itself(&patterns, key, entry.kind == EntryKind::Directory) {
                if found == 0 {
                    heading(ctx, snapshot);
                }
                found += 1;
                print(ctx, snapshot, key, entry, args.long);
            }
            ControlFlow::Continue(())
        })
        .await?;
        total += found;
        if found > 0 && args.newest {
            break;
        }
    }
    if total == 0 {
        ctx.printer.say("Nothing matches.");
    }
    Ok(Exit::Done)
}

/// Newest first.
fn searched<'s>(snapshots: &'s [Snapshot], args: &Args) -> Result<Vec<&'s Snapshot>> {
    if args.within.is_empty() {
        return Ok(snapshots.iter().rev().filter(|s| args.filter.accepts(s)).collect());
    }
    select::select_all(snapshots, &args.filter, &args.within)
}

fn heading(ctx: &Context, snapshot: &Snapshot) {
    let heading = format!("snapshot {} ({})", snapshot.short(), text::time(select::taken(snapshot)));
    ctx.printer.line(ctx.printer.strong(&heading));
}

fn print(ctx: &Context, snapshot: &Snapshot, key: &MapKey, entry: &keepwell_catalog::Entry, long: bool) {
    if ctx.printer.is_json() {
        let mut fields = ls::fields(key, entry);
        if let Value::Object(fields) = &mut fields {
            fields.insert("snapshot".to_owned(), snapshot.id.to_string().into());
        }
        ctx.printer.json("entry", fields);
    } else if long {
        ctx.printer.line(ls::long_line(key, entry));
    } else {
        ctx.printer.line(format_args!("/{}", key.display_path()));
    }
}
