//! `keepwell rewrite`.

use std::ops::ControlFlow;
use std::sync::Arc;

use anyhow::Result;
use backup_core::{Depth, RewriteOptions, Snapshot};
use ignore::gitignore::Gitignore;
use keepwell_catalog::{EntryKind, MapKey};
use serde_json::json;

use super::restore::globs;
use crate::confirm::{Unattended, confirm};
use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open::{self, Opened};
use crate::select::{self, Filter};
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell rewrite latest --exclude '*.iso' --dry-run
  keepwell rewrite --all --exclude /srv/uploads/secret.pdf

Nothing is ever changed in place: the snapshot is written anew, without what is excluded, and
the old one is forgotten. What goes is shown first, and has to be confirmed. What only the old one needed goes with the next prune.";

/// Write snapshots anew without some of their paths
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The snapshots
    #[arg(required_unless_present = "all")]
    snapshots: Vec<String>,
    /// All snapshots that the filters accept
    #[arg(long, conflicts_with = "snapshots")]
    all: bool,
    /// What to leave out, in the language of `.gitignore`; repeatable
    #[arg(long, required = true, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Only show what would be left out
    #[arg(short = 'n', long)]
    dry_run: bool,
    #[command(flatten)]
    filter: Filter,
}

/// So many of the paths that go are named for each snapshot.
const PATHS_NAMED: usize = 20;

/// What goes from a snapshot.
#[derive(Debug, Default)]
struct Going {
    entries: u64,
    bytes: u64,
    /// The first of those whose directory stays.
    paths: Vec<String>,
    /// How many there are of these.
    path_count: u64,
}

/// Runs `rewrite`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let patterns = Arc::new(globs::patterns(&args.exclude)?);
    let opened = open::repository(ctx).await?;
    if !args.dry_run && !opened.repository.access().is_keeper() {
        return Err(Complaint::new(
            Exit::WrongKey,
            "this credential cannot forget the snapshots as they were",
        )
        .hint("Use a key file with the role keeper.")
        .into());
    }
    let snapshots = opened.repository.snapshots().await?;
    let chosen: Vec<&Snapshot> = if args.all {
        let accepted = snapshots.iter().filter(|s| args.filter.accepts(s));
        accepted.filter(|s| select::is_readable(ctx, &opened.repository, s)).collect()
    } else {
        select::select_all(&snapshots, &args.filter, &args.snapshots)?
    };
    let mut changing = Vec::new();
    for snapshot in chosen {
        let going = look(&opened, snapshot, &patterns).await?;
        show(ctx, snapshot, &going, args.dry_run);
        if going.entries > 0 {
            changing.push(snapshot);
        } else if !args.dry_run {
            report(ctx, snapshot, None, 0);
        }
    }
    opened.progress.end();
    if args.dry_run || changing.is_empty() {
        return Ok(Exit::Done);
    }
    let count = text::count(changing.len() as u64, "snapshot", "snapshots");
    confirm(ctx, &format!("Write {count} anew without this, and forget the old?"), Unattended::Refuse)?;
    opened.progress.begin();
    ctx.interrupt.ends_by_itself();
    for snapshot in changing {
        rewrite(ctx, &opened, snapshot, &patterns).await?;
    }
    opened.progress.end();
    Ok(Exit::Done)
}

fn goes(patterns: &Gitignore, key: &MapKey, kind: EntryKind) -> bool {
    key.to_os_path_bytes().is_ok_and(|path| globs::fits(patterns, &path, kind == EntryKind::Directory))
}

/// Finds out what goes from a snapshot. Reads its tree, and no content.
async fn look(opened: &Opened, snapshot: &Snapshot, patterns: &Gitignore) -> Result<Going> {
    let tree = opened.repository.tree(snapshot).await?;
    let (mut going, mut below) = (Going::default(), None::<MapKey>);
    tree.list(&MapKey::root(), Depth::All, |key, entry| {
        let inside = below.as_ref().is_some_and(|directory| key.starts_with(directory));
        if inside || goes(patterns, key, entry.kind) {
            going.entries += 1;
            going.bytes += if entry.kind.has_content() { entry.size } else { 0 };
            if !inside {
                below = Some(key.clone());
                going.path_count += 1;
                if going.paths.len() < PATHS_NAMED {
                    going.paths.push(format!("/{}", key.display_path()));
                }
            }
        }
        ControlFlow::Continue(())
    })
    .await?;
    Ok(going)
}

fn show(ctx: &Context, snapshot: &Snapshot, going: &Going, dry_run: bool) {
    let id = snapshot.short();
    if going.entries == 0 {
        ctx.printer.line(format_args!("nothing is left out of snapshot {id}: it stays as it is"));
    } else {
        let entries = text::count(going.entries, "entry", "entries");
        let size = text::bytes(going.bytes);
        ctx.printer.say(format_args!("snapshot {id} is written anew without {entries}, {size}:"));
        for path in &going.paths {
            ctx.printer.say(format_args!("  {path}"));
        }
        if going.path_count > going.paths.len() as u64 {
            ctx.printer.say(format_args!("  … and {} more", going.path_count - going.paths.len() as u64));
        }
    }
    let fields = json!({
        "snapshot": snapshot.id.to_string(),
        "entries": going.entries,
        "bytes": going.bytes,
        "paths": going.paths,
        "path_count": going.path_count,
        "dry_run": dry_run,
    });
    ctx.printer.json("rewrite_plan", fields);
}

/// Writes one snapshot anew, and forgets it as it was.
async fn rewrite(
    ctx: &Context,
    opened: &Opened,
    snapshot: &Snapshot,
    patterns: &Arc<Gitignore>,
) -> Result<()> {
    let mut options = RewriteOptions::of(snapshot)?;
    let patterns = Arc::clone(patterns);
    options.exclude = Some(Arc::new(move |key, kind| goes(&patterns, key, kind)));
    let report = opened.repository.rewrite(snapshot, options).await?;
    let (before, after) = (snapshot.short(), report.snapshot.short());
    opened.repository.forget(&[(snapshot, format!("written anew as {after}"))]).await?;
    let records = report.records_removed;
    ctx.printer.line(format_args!("snapshot {before} is now {after}, without {records} records"));
    self::report(ctx, snapshot, Some(&report.snapshot), records);
    Ok(())
}

fn report(ctx: &Context, before: &Snapshot, after: Option<&Snapshot>, records_removed: u64) {
    let fields = json!({
        "before": before.id.to_string(),
        "after": after.map(|after| after.id.to_string()),
        "records_removed": records_removed,
    });
    ctx.printer.json("rewrite", fields);
}
