//! What a restore shows: the plan, what would stop the server, and what was done.

use std::path::Path;
use std::time::Duration;

use backup_core::RestorePlan;
use keepwell_source_postgres::recovery::{Binaries, ClusterReport, RecoveryPlan};
use serde_json::json;

use super::super::places::{self, Directories};
use super::super::recover::{find_binaries, warn_of_incomplete};
use super::{Args, Prepared};
use crate::commands::restore::{name_removed, removal};
use crate::context::Context;
use crate::exit::Exit;
use crate::text;

/// Shows the plan.
pub(super) fn describe(ctx: &Context, prepared: &Prepared, args: &Args) {
    let Prepared { plan, layout, settings, parts, occupied, .. } = prepared;
    let (printer, cluster) = (&ctx.printer, &plan.backup.cluster);
    let directory = layout.directory.display();
    let what = if args.standby { "a standby".to_owned() } else { plan.target.to_string() };
    printer.say(format_args!("recover cluster {} to {what} in {directory}", cluster.system_identifier));
    printer.say(format_args!(
        "  snapshot {} of PostgreSQL {}, ended {} at {}",
        plan.backup.snapshot.short(),
        cluster.major(),
        text::time(cluster.stop_time),
        cluster.stop_lsn
    ));
    for (timeline, from, to) in &plan.timelines {
        printer.say(format_args!("  log of timeline {timeline} from {from} to {to}"));
    }
    if let Some(at) = plan.left_at {
        printer.say(format_args!(
            "  nothing of timeline {} is archived yet: the server stops at {at}, where the one before was left",
            plan.history.timeline()
        ));
    }
    let last = plan.last_end.map_or_else(
        || "no transaction ended in it".to_owned(),
        |end| format!("the last transaction that can be reached ended {}", text::time(end)),
    );
    printer.say(format_args!("  {} of log at most; {last}", text::bytes(plan.log_bytes())));
    if let Some(gap) = plan.gap {
        printer
            .warn(format_args!("the log from {} to {} is missing; the target lies before", gap.from, gap.to));
    }
    for (place, part) in parts {
        let room = part.free.map_or_else(String::new, |free| format!("; {} free", text::bytes(free)));
        let (files, bytes) = (text::count(part.files, "file", "files"), text::bytes(part.bytes));
        printer.say(format_args!("  {}: {files}, {bytes}{room}", place.display()));
    }
    printer.say(format_args!("  {}", expected(prepared)));
    let names: Vec<_> =
        settings.list().into_iter().map(|(name, value)| format!("{name} = '{value}'")).collect();
    printer.say(format_args!("  settings: {}", names.join(", ")));
    if !occupied.is_empty() {
        let removed = removal(parts.iter().map(|(_, part)| part.removed).sum());
        printer.say(format_args!("  it is not empty: what differs is replaced, {removed}"));
        name_removed(ctx, parts.iter().map(|(place, part)| (place.as_path(), part)));
        if !args.no_safety_snapshot {
            printer.say("  what is there now is backed up first");
        }
    }
    warn_of_incomplete(ctx, plan);
    printer.json("pg_restore_plan", plan_json(prepared, args));
    warnings(ctx, prepared);
}

/// Also what stands there already is read and compared.
fn bytes(prepared: &Prepared) -> u64 {
    prepared.parts.iter().map(|(_, part)| part.bytes).sum()
}

/// How long it will take, as far as that is known.
fn expected(prepared: &Prepared) -> String {
    let (files, log) = (
        prepared.pace.of_files(bytes(prepared)).map(text::duration),
        prepared.pace.of_log(prepared.plan.log_bytes()).map(text::duration),
    );
    let known = match (files, log) {
        (Some(files), Some(log)) => format!("{files} at most for the files, {log} for the log"),
        (Some(files), None) => format!("{files} at most for the files; for the log not known yet"),
        (None, Some(log)) => format!("{log} at most for the log; for the files not known yet"),
        (None, None) => return "expected time: not known before the first restore here".to_owned(),
    };
    format!("expected time, at the pace of the last restore here: {known}")
}

fn plan_json(prepared: &Prepared, args: &Args) -> serde_json::Value {
    let Prepared { plan, layout, settings, parts, occupied, .. } = prepared;
    let cluster = &plan.backup.cluster;
    let timelines = plan.timelines.iter().map(|(timeline, from, to)| {
        json!({ "timeline": timeline.get(), "from": from.to_string(), "to": to.to_string() })
    });
    let sum = |of: fn(&RestorePlan) -> u64| parts.iter().map(|(_, part)| of(part)).sum::<u64>();
    json!({
        "snapshot": plan.backup.snapshot.id.to_string(),
        "system": cluster.system_identifier.to_string(),
        "major": cluster.major(),
        "target": plan.target.to_string(),
        "position": plan.position.map(|at| at.to_string()),
        "timeline": plan.history.timeline().get(),
        "timelines": timelines.collect::<Vec<_>>(),
        "log_bytes": plan.log_bytes(),
        "last_transaction": plan.last_end.map(text::rfc3339),
        "gap": plan.gap.map(|gap| json!({ "from": gap.from.to_string(), "to": gap.to.to_string() })),
        "directory": layout.directory,
        "tablespaces": layout.tablespaces,
        "files": sum(|p| p.files),
        "bytes": sum(|p| p.bytes),
        "bytes_needed": sum(|part| part.needed),
        "files_seconds": prepared.pace.of_files(bytes(prepared)).map(|took| took.as_secs_f64()),
        "log_seconds": prepared.pace.of_log(plan.log_bytes()).map(|took| took.as_secs_f64()),
        "removed": sum(|p| p.removed),
        "bytes_free": parts.iter().filter_map(|(_, part)| part.free).min(),
        "settings": settings.list().into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        "occupied": occupied,
        "standby": args.standby,
        "dry_run": args.dry_run,
    })
}

/// What would stop the server, as far as it can be seen from here.
fn warnings(ctx: &Context, prepared: &Prepared) {
    let Some(owner) = prepared.layout.owner else { return };
    for directory in std::iter::once(&prepared.layout.directory).chain(prepared.layout.tablespaces.values()) {
        if let Some(obstacle) = places::obstacle(directory, owner) {
            ctx.printer.warn(format_args!(
                "the owner of the files cannot pass `{}` on the way to `{}`",
                obstacle.display(),
                directory.display()
            ));
        }
    }
    for obstacle in prepared.needed.iter().filter_map(|path| places::unreadable(path, owner)) {
        ctx.printer.warn(format_args!(
            "the owner of the files cannot read `{}`, which the restore_command needs: the server will not get its log",
            obstacle.display()
        ));
    }
}

/// Says which extensions of the cluster the server's host, if that is this one, lacks.
pub(super) fn warn_of_extensions(
    ctx: &Context,
    plan: &RecoveryPlan,
    binaries: Option<&Binaries>,
    named: Option<&Path>,
) {
    let found = find_binaries(ctx, plan.backup.cluster.major(), named).ok();
    let missing =
        binaries.or(found.as_ref()).and_then(|binaries| binaries.missing_extensions(&plan.backup.cluster));
    for extension in missing.unwrap_or_default() {
        ctx.printer.warn(format_args!(
            "the extension {extension} is not installed on this host; what uses it fails until it is"
        ));
    }
}

/// Shows what was done.
pub(super) fn print(
    ctx: &Context,
    report: &ClusterReport,
    directories: &Directories,
    took: Duration,
) -> Exit {
    let files = &report.files;
    ctx.printer.line(format_args!(
        "restored {}, {}, in {}; {} were already right; {} removed",
        text::count(files.files_written, "file", "files"),
        text::bytes(files.bytes_written),
        text::duration(took),
        text::number(files.files_unchanged),
        text::number(files.removed)
    ));
    if let Some(place) = &report.saved_wal {
        ctx.printer.say(format_args!("the WAL that stood there is in {} now", place.display()));
    }
    let left_out: Vec<String> = files.left_out.iter().cloned().chain(directories.left_out()).collect();
    left_out.iter().take(20).for_each(|text| ctx.printer.warn(text));
    ctx.printer.json(
        "pg_restore",
        json!({
            "seconds": took.as_secs_f64(),
            "files_written": files.files_written,
            "files_unchanged": files.files_unchanged,
            "bytes_written": files.bytes_written,
            "bytes_unchanged": files.bytes_unchanged,
            "removed": files.removed,
            "saved_wal": report.saved_wal,
            "left_out": left_out,
        }),
    );
    if left_out.is_empty() { Exit::Done } else { Exit::Skipped }
}
