//! `keepwell show`.

use anyhow::Result;
use backup_core::Snapshot;
use keepwell_catalog::{Manifest, MapKey, readable};

use super::restore::expect;
use super::snapshots;
use crate::context::Context;
use crate::exit::Exit;
use crate::open;
use crate::select::{self, Filter};
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell show latest
  keepwell show 1a2b3c4d --json";

/// Show everything that is known about a snapshot
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The snapshot: `latest`, `latest~1`, an id, `tag:NAME`, `host:NAME`, `dataset:NAME` or a time
    #[arg(default_value = "latest")]
    snapshot: String,
    #[command(flatten)]
    filter: Filter,
}

/// Runs `show`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let (opened, snapshots) = open::with_snapshots(ctx).await?;
    opened.progress.end();
    let snapshot = select::select(&snapshots, &args.filter, &args.snapshot)?;
    let manifest = snapshot.manifest()?;
    let anomalies = snapshots::anomalies(ctx, &snapshots);
    let anomaly = anomalies.get(&snapshot.id).map(String::as_str);
    ctx.printer.json("snapshot", snapshots::fields(snapshot, anomaly));
    for problem in &manifest.problems {
        let path = problem_path(&problem.key);
        ctx.printer.json("problem", serde_json::json!({ "item": path, "message": problem.message }));
    }
    ctx.printer.line(ctx.printer.strong(&format!("snapshot {}", snapshot.id)));
    for (name, value) in facts(manifest, snapshot) {
        ctx.printer.line(format_args!("  {name:<13}{}", readable(value)));
    }
    if let Some(anomaly) = anomaly {
        ctx.printer.line(format_args!("  {:<13}{anomaly}", "flagged"));
    }
    if manifest.problem_count > 0 {
        ctx.printer
            .line(format_args!("  not captured: {}", text::count(manifest.problem_count, "item", "items")));
        for problem in &manifest.problems {
            let (path, why) = (problem_path(&problem.key), readable(&problem.message));
            ctx.printer.line(format_args!("    {path}: {why}"));
        }
    }
    Ok(Exit::Done)
}

fn problem_path(key: &[u8]) -> String {
    match MapKey::from_bytes(key) {
        Ok(key) => format!("/{}", key.display_path()),
        Err(_) => readable(key),
    }
}

fn facts(m: &Manifest, snapshot: &Snapshot) -> Vec<(&'static str, String)> {
    let s = &m.statistics;
    let paths: Vec<_> = m.paths.iter().map(|p| String::from_utf8_lossy(p).into_owned()).collect();
    let took = u64::try_from(m.capture_end.saturating_sub(m.capture_start)).unwrap_or(0);
    let mut facts = vec![
        ("taken", format!("{} ({})", text::time(m.capture_end), m.time_zone)),
        ("took", text::duration(std::time::Duration::from_nanos(took))),
        ("host", m.host.clone()),
        ("dataset", m.dataset.clone()),
        ("paths", paths.join(" ")),
        (
            "content",
            format!(
                "{}, {}, {} of other kinds; {}",
                text::count(s.files, "file", "files"),
                text::count(s.directories, "directory", "directories"),
                text::number(s.others),
                text::bytes(s.logical_bytes)
            ),
        ),
        (
            "changes",
            format!(
                "{} new, {} changed, {} unchanged; {} added to the repository",
                text::number(s.new_files),
                text::number(s.changed_files),
                text::number(s.unchanged_files),
                text::bytes(s.new_stored_bytes)
            ),
        ),
        ("written by", format!("{} with {}", snapshot.commit.writer, m.program)),
        ("witness", format!("{} (for `restore --expect`)", expect::witness(snapshot))),
    ];
    let mut optional = |name, value: Option<String>| {
        if let Some(value) = value.filter(|v| !v.is_empty()) {
            facts.push((name, value));
        }
    };
    optional("tags", Some(m.tags.join(", ")));
    optional("description", Some(m.description.clone()));
    optional("parent", m.parent.map(|p| p.to_string()));
    optional("rewritten of", m.original.map(|p| p.to_string()));
    optional("kept until", m.keep_until.map(text::time));
    optional("kept", m.keep_forever.then(|| "for ever".to_owned()));
    facts
}
