//! `keepwell diff`.

use std::ops::ControlFlow;

use anyhow::Result;
use backup_core::{ChangeKind, Count, DiffSummary, TreeChange};
use serde_json::{Value, json};

use super::ls::kind_name;
use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open;
use crate::select::{self, Filter};
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell diff latest~1 latest
  keepwell diff 2026-11-01 latest --summary

Each line begins with  + added  - removed  M content  T kind  U metadata only";

/// Show what changed between two snapshots
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The earlier snapshot
    before: String,
    /// The later one [default: latest]
    after: Option<String>,
    /// Only the sums
    #[arg(long)]
    summary: bool,
    #[command(flatten)]
    filter: Filter,
}

/// Runs `diff`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let (opened, snapshots) = open::with_snapshots(ctx).await?;
    opened.progress.end();
    let before = select::select(&snapshots, &args.filter, &args.before)?;
    let after = select::select(&snapshots, &args.filter, args.after.as_deref().unwrap_or("latest"))?;
    if args.after.is_none() && before.id == after.id {
        let message = format!("`{}` is the latest snapshot itself, and no later one is named", args.before);
        return Err(Complaint::usage(message)
            .hint("Name the earlier one: `keepwell diff latest~1` says what the latest changed.")
            .into());
    }
    let visit = |change: &TreeChange| {
        if !args.summary {
            print(ctx, change);
        }
        ControlFlow::Continue(())
    };
    let sums = opened.repository.diff(before, after, visit).await?;
    ctx.printer.say(format_args!("{} to {}: {}", before.short(), after.short(), in_words(&sums)));
    let fields = json!({
        "before": before.id.to_string(),
        "after": after.id.to_string(),
        "added": counts(sums.added),
        "removed": counts(sums.removed),
        "content": counts(sums.changed),
        "kind": counts(sums.retyped),
        "metadata": counts(sums.touched),
        "bytes_added": sums.bytes_added,
        "bytes_removed": sums.bytes_removed,
    });
    ctx.printer.json("diff", fields);
    Ok(Exit::Done)
}

fn print(ctx: &Context, change: &TreeChange) {
    let (mark, name, color) = match change.kind {
        ChangeKind::Added => ('+', "added", "32"),
        ChangeKind::Removed => ('-', "removed", "31"),
        ChangeKind::Type => ('T', "kind", "33"),
        ChangeKind::Content => ('M', "content", "33"),
        ChangeKind::Metadata => ('U', "metadata", "2"),
    };
    let path = format!("/{}", change.key.display_path());
    let entry = change.after.as_ref().or(change.before.as_ref());
    let fields = json!({
        "path": path,
        "change": name,
        "kind": entry.map(|entry| kind_name(entry.kind)),
        "bytes_added": change.bytes_added,
        "bytes_removed": change.bytes_removed,
    });
    ctx.printer.json("change", fields);
    ctx.printer.line(ctx.printer.colored(color, &format!("{mark} {path}")));
}

fn in_words(sums: &DiffSummary) -> String {
    let all = |count: Count| text::number(count.files + count.directories + count.others);
    format!(
        "{} added, {} removed, {} with other content, {} of another kind, {} with other metadata; +{} -{}",
        all(sums.added),
        all(sums.removed),
        all(sums.changed),
        all(sums.retyped),
        all(sums.touched),
        text::bytes(sums.bytes_added),
        text::bytes(sums.bytes_removed),
    )
}

fn counts(count: Count) -> Value {
    json!({ "files": count.files, "directories": count.directories, "others": count.others })
}
