//! `keepwell stats`.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::Result;
use backup_core::{Growth, Snapshot, SnapshotState, Usage};
use keepwell_crypto::SnapshotId;
use keepwell_storage::list_all;
use serde_json::{Value, json};

use crate::context::Context;
use crate::exit::Exit;
use crate::open;
use crate::printer::joined;
use crate::select;
use crate::table::{Align, Table};
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell stats
  keepwell stats --json          with every snapshot, and what it added";

/// Of the growth, a table shows so many of the newest snapshots.
const GROWTH_ROWS: usize = 30;

/// Show how much is stored, for how much data, what each snapshot added, and what is unused
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {}

#[derive(Debug, Default)]
struct Dataset {
    snapshots: u64,
    newest_files: u64,
    newest_bytes: u64,
    all_bytes: u64,
}

/// Runs `stats`.
pub async fn run(ctx: &Context, _: Args) -> Result<Exit> {
    let opened = open::repository(ctx).await?;
    let snapshots = opened.repository.snapshots().await?;
    let mut stored: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for info in list_all(opened.repository.store(), "").await.map_err(backup_core::Error::from)? {
        let sums = stored.entry(kind(info.key.as_str())).or_default();
        *sums = (sums.0 + 1, sums.1 + info.size);
    }
    let usage = match opened.repository.can_read() {
        true => Some(opened.repository.usage().await),
        false => None,
    };
    opened.progress.end();
    print_datasets(ctx, &snapshots);
    print_stored(ctx, &stored);
    // Sizes are known whatever is damaged; the rest is not.
    let usage = usage.transpose()?;
    if let Some(usage) = &usage {
        print_growth(ctx, &snapshots, usage);
    }
    print_sums(ctx, &snapshots, stored.values().map(|(_, bytes)| bytes).sum(), usage.as_ref());
    Ok(Exit::Done)
}

fn print_stored(ctx: &Context, stored: &BTreeMap<&str, (u64, u64)>) {
    ctx.printer.line("");
    for (kind, (objects, bytes)) in stored {
        ctx.printer.line(format_args!(
            "{kind:<9} {:>10} in {}",
            text::bytes(*bytes),
            text::count(*objects, "object", "objects")
        ));
        ctx.printer.json("stored", json!({ "kind": kind, "objects": objects, "bytes": bytes }));
    }
}

fn print_growth(ctx: &Context, snapshots: &[Snapshot], usage: &Usage) {
    let by_id: HashMap<SnapshotId, &Snapshot> = snapshots.iter().map(|s| (s.id, s)).collect();
    let mut table = Table::new(&[
        ("Snapshot", Align::Left),
        ("Time", Align::Left),
        ("Dataset", Align::Left),
        ("Size", Align::Right),
        ("Added", Align::Right),
        ("Stored", Align::Right),
    ]);
    let hidden = usage.growth.len().saturating_sub(GROWTH_ROWS);
    for (number, growth) in usage.growth.iter().enumerate() {
        let snapshot = growth.snapshot.and_then(|id| by_id.get(&id));
        let dataset = snapshot.and_then(|s| s.manifest().ok()).map(|m| m.dataset.clone());
        ctx.printer.json("growth", growth_fields(growth, snapshot.copied(), dataset.as_deref()));
        if number >= hidden {
            table.row(vec![
                snapshot.map_or_else(|| "unfinished".to_owned(), |s| s.short()),
                snapshot.map_or_else(String::new, |s| text::time(select::taken(s))),
                dataset.unwrap_or_default(),
                snapshot.map_or_else(String::new, |s| text::bytes(s.commit.logical_bytes)),
                text::bytes(growth.plain_bytes),
                text::bytes(growth.stored_bytes),
            ]);
        }
    }
    ctx.printer.line("");
    table.print(&ctx.printer);
    if hidden > 0 {
        let older = text::count(hidden as u64, "older snapshot", "older snapshots");
        ctx.printer.line(format_args!("and {older}; `--json` lists them all"));
    }
}

fn growth_fields(growth: &Growth, snapshot: Option<&Snapshot>, dataset: Option<&str>) -> Value {
    json!({
        "snapshot": growth.snapshot.map(|id| id.to_string()),
        "time": snapshot.map(|s| text::rfc3339(select::taken(s))),
        "dataset": dataset,
        "bytes": snapshot.map(|s| s.commit.logical_bytes),
        "chunks": growth.chunks,
        "added_bytes": growth.plain_bytes,
        "added_stored_bytes": growth.stored_bytes,
    })
}

fn print_sums(ctx: &Context, snapshots: &[Snapshot], stored: u64, usage: Option<&Usage>) {
    let logical: u64 = snapshots.iter().map(|s| s.commit.logical_bytes).sum();
    let mut fields = json!({ "snapshots": snapshots.len(), "bytes": logical, "stored_bytes": stored });
    ctx.printer.line("");
    ctx.printer.line(format_args!(
        "{} of storage for {} in all snapshots",
        text::bytes(stored),
        text::bytes(logical)
    ));
    match usage {
        None => ctx.printer.line("what of it is unused cannot be told with a credential that cannot read"),
        Some(usage) => {
            let (dedup, compression) = (deduplication(snapshots, usage), compression(usage));
            if let (Some(dedup), Some(compression)) = (dedup, compression) {
                ctx.printer.line(format_args!(
                    "deduplicated {dedup:.2} : 1, compressed {compression:.2} : 1 ({} different bytes, stored in {})",
                    text::bytes(usage.content.needed_plain_bytes),
                    text::bytes(usage.content.needed_stored_bytes),
                ));
            }
            print_unused(ctx, usage);
            fields = joined(fields, usage_fields(usage, dedup, compression));
        }
    }
    ctx.printer.json("stats", fields);
}

fn print_unused(ctx: &Context, usage: &Usage) {
    let packs = usage.content.unused_packs + usage.trees.unused_packs;
    let bytes = usage.content.unused_pack_bytes + usage.trees.unused_pack_bytes;
    let partly = usage.content.partly_unused_packs + usage.trees.partly_unused_packs;
    ctx.printer.line(format_args!(
        "unused: {}, of which {} in {} that nothing needs and {} inside {}",
        text::bytes(usage.garbage_bytes()),
        text::bytes(bytes),
        text::count(packs, "pack", "packs"),
        text::bytes(usage.garbage_bytes() - bytes),
        text::count(partly, "other pack", "other packs"),
    ));
    if usage.unlisted_packs > 0 {
        ctx.printer.line(format_args!(
            "in no index: {} in {}, of a backup at work or an interrupted one",
            text::bytes(usage.unlisted_bytes),
            text::count(usage.unlisted_packs, "pack", "packs"),
        ));
    }
}

fn usage_fields(usage: &Usage, deduplication: Option<f64>, compression: Option<f64>) -> Value {
    let (content, trees) = (&usage.content, &usage.trees);
    json!({
        "different_bytes": content.needed_plain_bytes,
        "different_stored_bytes": content.needed_stored_bytes,
        "deduplication": deduplication,
        "compression": compression,
        "unused_bytes": usage.garbage_bytes(),
        "unused_packs": content.unused_packs + trees.unused_packs,
        "unused_pack_bytes": content.unused_pack_bytes + trees.unused_pack_bytes,
        "partly_unused_packs": content.partly_unused_packs + trees.partly_unused_packs,
        "partly_unused_bytes": content.partly_unused_bytes + trees.partly_unused_bytes,
        "unlisted_packs": usage.unlisted_packs,
        "unlisted_bytes": usage.unlisted_bytes,
    })
}

/// Bytes of all snapshots per different byte of content; holes count on the left side alone.
fn deduplication(snapshots: &[Snapshot], usage: &Usage) -> Option<f64> {
    let measured: HashSet<SnapshotId> = usage.growth.iter().filter_map(|growth| growth.snapshot).collect();
    let logical: u64 =
        snapshots.iter().filter(|s| measured.contains(&s.id)).map(|s| s.commit.logical_bytes).sum();
    ratio(logical, usage.content.needed_plain_bytes)
}

/// Different bytes of content per byte that stores them.
fn compression(usage: &Usage) -> Option<f64> {
    ratio(usage.content.needed_plain_bytes, usage.content.needed_stored_bytes)
}

fn ratio(of: u64, to: u64) -> Option<f64> {
    (to > 0).then(|| (of as f64 / to as f64 * 100.0).round() / 100.0)
}

fn kind(key: &str) -> &'static str {
    match key.split('/').next() {
        Some("data") => "content",
        Some("meta") => "trees",
        Some("index") => "index",
        _ => "records",
    }
}

fn print_datasets(ctx: &Context, snapshots: &[Snapshot]) {
    let mut datasets: BTreeMap<(String, String), Dataset> = BTreeMap::new();
    for snapshot in snapshots {
        let SnapshotState::Readable(m) = &snapshot.state else { continue };
        let dataset = datasets.entry((m.host.clone(), m.dataset.clone())).or_default();
        dataset.snapshots += 1;
        dataset.newest_files = m.statistics.files;
        dataset.newest_bytes = m.statistics.logical_bytes;
        dataset.all_bytes += m.statistics.logical_bytes;
    }
    let mut table = Table::new(&[
        ("Host", Align::Left),
        ("Dataset", Align::Left),
        ("Snapshots", Align::Right),
        ("Files", Align::Right),
        ("Newest", Align::Right),
        ("All", Align::Right),
    ]);
    for ((host, name), dataset) in datasets {
        let fields = json!({
            "host": host,
            "dataset": name,
            "snapshots": dataset.snapshots,
            "newest_files": dataset.newest_files,
            "newest_bytes": dataset.newest_bytes,
            "bytes": dataset.all_bytes,
        });
        ctx.printer.json("dataset", fields);
        table.row(vec![
            host,
            name,
            text::number(dataset.snapshots),
            text::number(dataset.newest_files),
            text::bytes(dataset.newest_bytes),
            text::bytes(dataset.all_bytes),
        ]);
    }
    table.print(&ctx.printer);
}
