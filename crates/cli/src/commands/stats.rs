//! `keepwell stats`.

use std::collections::BTreeMap;

use anyhow::Result;
use backup_core::{Snapshot, SnapshotState};
use keepwell_storage::list_all;
use serde_json::json;

use crate::context::Context;
use crate::exit::Exit;
use crate::open;
use crate::table::{Align, Table};
use crate::text;

/// Show how much is stored, for how much data
#[derive(Debug, clap::Args)]
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
    opened.progress.end();
    print_datasets(ctx, &snapshots);
    let bytes: u64 = stored.values().map(|(_, bytes)| bytes).sum();
    let logical: u64 = snapshots.iter().map(|s| s.commit.logical_bytes).sum();
    ctx.printer.line("");
    for (kind, (objects, bytes)) in &stored {
        ctx.printer.line(format_args!(
            "{kind:<9} {:>10} in {}",
            text::bytes(*bytes),
            text::count(*objects, "object", "objects")
        ));
        ctx.printer.json("stored", json!({ "kind": kind, "objects": objects, "bytes": bytes }));
    }
    ctx.printer.line(format_args!(
        "{:<9} {:>10} for {} in all snapshots",
        "together",
        text::bytes(bytes),
        text::bytes(logical)
    ));
    ctx.printer
        .json("stats", json!({ "snapshots": snapshots.len(), "bytes": logical, "stored_bytes": bytes }));
    Ok(Exit::Done)
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
    for (n, line) in table.lines().into_iter().enumerate() {
        ctx.printer.line(if n == 0 { ctx.printer.strong(&line) } else { line });
    }
}
