//! `keepwell snapshots`.

mod across;

use std::collections::HashMap;

use anyhow::Result;
use backup_core::{Checked, Snapshot, SnapshotState, retain};
use keepwell_catalog::Manifest;
use keepwell_catalog::retention::RetentionPolicy;
use keepwell_crypto::SnapshotId;
use serde_json::{Value, json};

use super::restore::expect;
use crate::context::Context;
use crate::exit::Exit;
use crate::open;
use crate::printer::joined;
use crate::select::{self, Filter};
use crate::table::{Align, Table};
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell snapshots
  keepwell snapshots --host web1 --tag weekly
  keepwell snapshots --last 1 --json
  keepwell snapshots --copy /mnt/disk/backup     which store holds which
  keepwell snapshots --copy cloud --copy safe    the same for copies of the profile

Exit code 13 means: the manifest of one is damaged. With `--copy`, 3 means: a store could
not be listed. It is named.";

/// List the snapshots, oldest first
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Only the newest N
    #[arg(long, visible_alias = "latest", value_name = "N")]
    last: Option<usize>,
    /// List the snapshots of this copy too, a place or the name of a copy of the profile, and say which store holds which;
    /// repeatable
    #[arg(long, value_name = "COPY", conflicts_with = "last")]
    copy: Vec<String>,
    #[command(flatten)]
    filter: Filter,
}

/// Runs `snapshots`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    if !args.copy.is_empty() {
        return across::run(ctx, &args.filter, &args.copy).await;
    }
    let (opened, snapshots) = open::with_snapshots(ctx).await?;
    opened.progress.end();
    let mut shown: Vec<&Snapshot> = snapshots.iter().filter(|s| args.filter.accepts(s)).collect();
    if let Some(last) = args.last {
        shown.drain(..shown.len().saturating_sub(last));
    }
    let mut table = Table::new(&[
        ("ID", Align::Left),
        ("Time", Align::Left),
        ("Host", Align::Left),
        ("Dataset", Align::Left),
        ("Tags", Align::Left),
        ("Files", Align::Right),
        ("Size", Align::Right),
        ("", Align::Left),
    ]);
    let erased = |manifest: &Manifest| opened.repository.is_erased(manifest.domain);
    let anomalies = anomalies(ctx, &snapshots);
    for snapshot in &shown {
        let anomaly = anomalies.get(&snapshot.id).map(String::as_str);
        table.row(row(snapshot, &erased, anomaly));
        ctx.printer.json("snapshot", fields(snapshot, anomaly));
    }
    if table.is_empty() {
        ctx.printer.say("There are no snapshots.");
    } else {
        table.print(&ctx.printer);
    }
    let damaged = shown.iter().any(|s| matches!(s.state, SnapshotState::Damaged(_)));
    Ok(if damaged { Exit::Damage } else { Exit::Done })
}

/// What speaks against snapshots, seen among all of them.
pub fn anomalies(ctx: &Context, snapshots: &[Snapshot]) -> HashMap<SnapshotId, String> {
    let verdicts = retain(&RetentionPolicy::default(), ctx.now(), snapshots, &Checked::default());
    verdicts.into_iter().filter_map(|v| Some((v.snapshot.id, v.anomaly?))).collect()
}

fn row(snapshot: &Snapshot, erased: &dyn Fn(&Manifest) -> bool, anomaly: Option<&str>) -> Vec<String> {
    let time = text::time(select::taken(snapshot));
    match &snapshot.state {
        SnapshotState::Readable(m) => vec![
            snapshot.short(),
            time,
            m.host.clone(),
            m.dataset.clone(),
            m.tags.join(","),
            text::number(m.statistics.files),
            text::bytes(m.statistics.logical_bytes),
            marks(m, erased(m), snapshot.commit.complete, anomaly).join(", "),
        ],
        state => {
            let size = text::bytes(snapshot.commit.logical_bytes);
            let mark = match state {
                SnapshotState::Damaged(reason) => format!("damaged: {reason}"),
                _ => "this credential cannot decrypt it".to_owned(),
            };
            let unknown = || "-".to_owned();
            vec![snapshot.short(), time, unknown(), unknown(), String::new(), unknown(), size, mark]
        }
    }
}

fn marks(manifest: &Manifest, erased: bool, complete: bool, anomaly: Option<&str>) -> Vec<String> {
    let mut marks = Vec::new();
    if let Some(anomaly) = anomaly {
        marks.push(format!("flagged: {anomaly}"));
    }
    if !complete {
        marks.push("incomplete".to_owned());
    }
    if erased {
        marks.push("erased".to_owned());
    }
    if manifest.problem_count > 0 {
        marks.push(format!("{} skipped", text::count(manifest.problem_count, "item", "items")));
    }
    if manifest.keep_forever {
        marks.push("kept for ever".to_owned());
    } else if let Some(until) = manifest.keep_until {
        marks.push(format!("kept until {}", &text::time(until)[..10]));
    }
    marks
}

/// A snapshot as scripts see it.
pub fn fields(snapshot: &Snapshot, anomaly: Option<&str>) -> Value {
    let fields = json!({
        "id": snapshot.id.to_string(),
        "short_id": snapshot.short(),
        "time": text::rfc3339(select::taken(snapshot)),
        "committed": text::rfc3339(snapshot.commit.time),
        "writer": snapshot.commit.writer.to_string(),
        "seq": snapshot.commit.n,
        "witness": expect::witness(snapshot),
        "bytes": snapshot.commit.logical_bytes,
        "complete": snapshot.commit.complete,
        "anomaly": anomaly,
    });
    let more = match &snapshot.state {
        SnapshotState::Readable(m) => json!({ "state": "readable",
            "host": m.host,
            "dataset": m.dataset,
            "paths": m.paths.iter().map(|p| String::from_utf8_lossy(p)).collect::<Vec<_>>(),
            "tags": m.tags,
            "description": m.description,
            "source": m.source_kind,
            "capture_start": text::rfc3339(m.capture_start),
            "capture_end": text::rfc3339(m.capture_end),
            "time_zone": m.time_zone,
            "files": m.statistics.files,
            "directories": m.statistics.directories,
            "others": m.statistics.others,
            "new_files": m.statistics.new_files,
            "changed_files": m.statistics.changed_files,
            "unchanged_files": m.statistics.unchanged_files,
            "stored_bytes": m.statistics.new_stored_bytes,
            "problems": m.problem_count,
            "parent": m.parent.map(|p| p.to_string()),
            "original": m.original.map(|p| p.to_string()),
            "keep_until": m.keep_until.map(text::rfc3339),
            "keep_forever": m.keep_forever,
            "program": m.program,
        }),
        SnapshotState::Sealed => json!({ "state": "sealed" }),
        SnapshotState::Damaged(reason) => json!({ "state": "damaged", "reason": reason }),
    };
    joined(fields, more)
}
