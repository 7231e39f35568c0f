//! Keeping what a server recovered as a snapshot of its own, and finding it again.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use backup_core::env::SystemClock;
use backup_core::source::{Found, Item, Opened as OpenedItem, Order, Preflight, Source, SourceError};
use backup_core::{BackupOptions, Snapshot, SnapshotState};
use keepwell_catalog::MapKey;
use keepwell_source_postgres::capture::{CaptureOptions, PgSource};
use keepwell_source_postgres::options::{ConnectOptions, Surroundings};
use keepwell_source_postgres::recovery::{RecoveryPlan, SAVED_KIND, Scratch, base_backups};
use serde_json::json;

use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open::Opened;
use crate::select::Filter;
use crate::text;

/// The plan that opens the newest state that was saved under a name.
pub async fn plan(opened: &Opened, name: &str, filter: &Filter) -> Result<RecoveryPlan> {
    let is_it = |snapshot: &Snapshot| match &snapshot.state {
        SnapshotState::Readable(manifest) => manifest.source_kind == SAVED_KIND && manifest.dataset == name,
        _ => false,
    };
    let snapshots = opened.repository.snapshots().await?;
    let missing = || {
        Complaint::failed(format!("nothing was saved under the name `{name}`")).hint(
            "`keepwell snapshots` shows what there is; save one with `keepwell pg instant --save NAME`.",
        )
    };
    let newest = snapshots
        .into_iter()
        .rfind(|snapshot| is_it(snapshot) && filter.accepts(snapshot))
        .ok_or_else(missing)?;
    let found = base_backups(&opened.repository, &[newest], Some(&MapKey::root())).await?;
    let backup = found.into_iter().next().ok_or_else(missing)?;
    Ok(RecoveryPlan::of_saved(&opened.repository, backup).await?)
}

/// Refuses a name under which something else is kept: rules would count both together.
pub async fn refuse_taken(opened: &Opened, name: &str) -> Result<()> {
    let is_other = |snapshot: &Snapshot| match &snapshot.state {
        SnapshotState::Readable(manifest) => manifest.source_kind != SAVED_KIND && manifest.dataset == name,
        _ => false,
    };
    if name.is_empty() || opened.repository.snapshots().await?.iter().any(is_other) {
        return Err(Complaint::usage(format!("`{name}` cannot be the name of what is saved"))
            .hint("Take one that is no dataset yet.")
            .into());
    }
    Ok(())
}

/// Stores the state of a running server under a name.
pub async fn save(ctx: &Context, opened: &Opened, scratch: &Scratch, name: &str) -> Result<Exit> {
    let began = Instant::now();
    let place = scratch.connection(&scratch.any_database().await?);
    let connect = ConnectOptions::resolve(&place, &Surroundings::default(), "keepwell")?;
    let source = PgSource::connect(&connect, CaptureOptions::default(), Arc::new(SystemClock)).await?;
    let options = BackupOptions {
        dataset: name.to_owned(),
        host: ctx.host(),
        tags: ctx.profile.tags.clone(),
        time_zone: jiff::tz::TimeZone::system().iana_name().unwrap_or("UTC").to_owned(),
        program: concat!("keepwell ", env!("CARGO_PKG_VERSION")).to_owned(),
        ..BackupOptions::default()
    };
    let report = opened.repository.backup(Arc::new(Saved(source)), options).await?;
    let (took, stored) = (began.elapsed(), report.statistics.new_stored_bytes);
    ctx.printer.line(format_args!(
        "snapshot {} holds it; {} added to the repository, in {}",
        &report.snapshot.to_string()[..8],
        text::bytes(stored),
        text::duration(took)
    ));
    ctx.printer.say(format_args!("open it again with `keepwell pg instant --saved {name}`"));
    ctx.printer.json(
        "pg_instant_saved",
        json!({ "snapshot": report.snapshot.to_string(), "name": name, "seconds": took.as_secs_f64(),
            "bytes": report.statistics.logical_bytes, "stored_bytes": stored, "complete": report.complete }),
    );
    Ok(if report.problem_count > 0 { Exit::Skipped } else { Exit::Done })
}

/// A base backup under another kind. It builds on none: what was saved under the name before may come from another server that
/// began a timeline of the same number, of whose WAL no summary here tells.
struct Saved(PgSource);

impl Source for Saved {
    fn kind(&self) -> &str {
        SAVED_KIND
    }

    fn paths(&self) -> Vec<Vec<u8>> {
        self.0.paths()
    }

    fn preflight(&self) -> Result<Preflight, SourceError> {
        self.0.preflight()
    }

    fn order(&self) -> Order {
        self.0.order()
    }

    fn walk(&self, visit: &mut dyn FnMut(Found) -> ControlFlow<()>) -> Result<(), SourceError> {
        self.0.walk(visit)
    }

    fn open(&self, item: &Item) -> Result<Option<OpenedItem>, SourceError> {
        self.0.open(item)
    }
}
