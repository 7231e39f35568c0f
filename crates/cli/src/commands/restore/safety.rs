//! The snapshot of what stands in the target, taken before a restore changes it.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use backup_core::BackupOptions;
use backup_core::env::SystemClock;
use keepwell_crypto::SnapshotId;
use keepwell_source_files::{FileOptions, FileSource};
use serde_json::json;

use super::place::Scope;
use crate::context::Context;
use crate::exit::Complaint;
use crate::open::Opened;
use crate::select::SAFETY;

/// `forget` leaves a safety snapshot alone for this long.
const KEPT_NANOSECONDS: i64 = 14 * 24 * 3600 * 1_000_000_000;

/// A safety snapshot.
#[derive(Debug)]
pub struct Saved {
    snapshot: SnapshotId,
    paths: Vec<PathBuf>,
}

/// Backs up what stands where the restore will write. `None` when nothing does.
pub async fn back_up(
    ctx: &Context,
    opened: &Opened,
    scopes: &[Scope],
    restored: &str,
) -> Result<Option<Saved>> {
    let mut paths: Vec<PathBuf> = scopes.iter().flat_map(|scope| scope.captured.clone()).collect();
    paths.retain(|path| path.symlink_metadata().is_ok());
    paths.sort();
    paths.dedup();
    if paths.is_empty() {
        return Ok(None);
    }
    let roles = opened.repository.access().roles();
    if !roles.is_some_and(|roles| roles.contains(keepwell_crypto::trust::Roles::WRITER)) {
        return Err(Complaint::failed("this credential cannot back up what stands in the target")
            .hint("Restore into an empty directory, or say `--no-safety-snapshot`.")
            .into());
    }
    let options = FileOptions { paths: paths.clone(), ..FileOptions::default() };
    let source = FileSource::new(&options, Arc::new(SystemClock)).map_err(backup_core::Error::from)?;
    let options = BackupOptions {
        dataset: SAFETY.to_owned(),
        host: ctx.host(),
        tags: vec![SAFETY.to_owned()],
        description: format!("before the restore of {restored}"),
        time_zone: jiff::tz::TimeZone::system().iana_name().unwrap_or("UTC").to_owned(),
        keep_until: Some(ctx.now().saturating_add(KEPT_NANOSECONDS)),
        program: concat!("keepwell ", env!("CARGO_PKG_VERSION")).to_owned(),
        ..BackupOptions::default()
    };
    ctx.interrupt.ends_by_itself();
    let report = opened.repository.backup(Arc::new(source), options).await;
    let report = report.context("back up what stands in the target (nothing was restored)")?;
    if report.problem_count > 0 {
        return Err(Complaint::failed("what stands in the target could not be backed up completely")
            .hint("Nothing was restored. Look at the warnings, or say `--no-safety-snapshot`.")
            .into());
    }
    Ok(Some(Saved { snapshot: report.snapshot, paths }))
}

/// Says which commands bring back what was there.
pub fn say_how_to_undo(ctx: &Context, saved: &Saved) {
    let id = &saved.snapshot.to_string()[..8];
    ctx.printer.say(format_args!("What stood there before is in snapshot {id}, kept for 14 days. To undo:"));
    let mut commands = Vec::new();
    for path in &saved.paths {
        let shown = path.display();
        let (target, delete) = match path.is_dir() && !path.is_symlink() {
            true => (path.as_path(), " --delete"),
            false => (path.parent().unwrap_or(path), ""),
        };
        let command = format!("keepwell restore {id}:{shown} --target {}{delete}", target.display());
        ctx.printer.say(format_args!("  {command}"));
        commands.push(command);
    }
    let id = saved.snapshot.to_string();
    ctx.printer.json("safety_snapshot", json!({ "snapshot": id, "paths": saved.paths, "undo": commands }));
}
