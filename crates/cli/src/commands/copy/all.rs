//! The copies of the profile: each gets what belongs there, and forgets what its own rules do not keep.

use std::time::Duration;

use anyhow::Result;
use backup_core::{CheckOptions, Checked, ReadData, Retirement, Snapshot};
use serde_json::json;

use super::retire;
use super::{Key, Sums, copy, leave_out_erased, open_target};
use crate::commands::check;
use crate::commands::prune::DryRun;
use crate::config::CopyConfig;
use crate::context::Context;
use crate::copies;
use crate::exit::{Complaint, Exit, exit_of, hints_of, one_line};
use crate::location::Location;
use crate::open::{self, Opened};
use crate::printer::joined;
use crate::table::{Align, Table};
use crate::text;

/// How often it is looked whether a copy has been attached.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How a copy fared.
struct Outcome {
    state: &'static str,
    exit: Exit,
    sums: Sums,
    forgotten: usize,
    freed: u64,
    held: Option<usize>,
    newest: Option<i64>,
}

/// Brings copies up to date, one after the other; what fails with one does not stop the others.
pub async fn run(ctx: &Context, chosen: &[&CopyConfig], wait: bool, dry_run: bool) -> Result<Exit> {
    if chosen.is_empty() {
        return Err(Complaint::usage("the profile names no copy, and no place is given")
            .hint("Say `--to PLACE`, or add a `[[profile.NAME.copy]]` with a `to`.")
            .into());
    }
    let credential = open::credential(ctx).await?;
    let key = Key { file: credential.key.clone(), path: credential.key_file.clone() };
    let opened = credential.open(ctx).await?;
    opened.progress.end();
    ctx.interrupt.ends_by_itself();
    let mut worst = Exit::Done;
    let mut table = table();
    for config in chosen {
        let done = one(ctx, config, &opened, &key, wait, dry_run).await;
        if ctx.interrupt.is_requested() {
            return Err(done
                .err()
                .unwrap_or_else(|| Complaint::new(Exit::Interrupted, "interrupted").into()));
        }
        let outcome = done.unwrap_or_else(|error| failed(ctx, config, &error));
        let stale = !dry_run && copies::is_stale(ctx, config, outcome.newest)?;
        if stale {
            warn_stale(ctx, config, outcome.newest);
            worst = worst.graver(Exit::Stale);
        }
        worst = worst.graver(outcome.exit);
        table.row(row(ctx, config, &outcome));
        report(ctx, config, &outcome, stale);
    }
    table.print(&ctx.printer);
    Ok(worst)
}

fn table() -> Table {
    Table::new(&[
        ("Copy", Align::Left),
        ("State", Align::Left),
        ("Copied", Align::Right),
        ("Stored", Align::Right),
        ("Forgot", Align::Right),
        ("Holds", Align::Right),
        ("Newest", Align::Left),
    ])
}

fn row(ctx: &Context, config: &CopyConfig, outcome: &Outcome) -> Vec<String> {
    vec![
        config.name().to_owned(),
        outcome.state.to_owned(),
        text::number(outcome.sums.copied as u64),
        text::bytes(outcome.sums.bytes),
        text::number(outcome.forgotten as u64),
        outcome.held.map_or_else(|| "-".to_owned(), |n| text::number(n as u64)),
        outcome.newest.map_or_else(|| "-".to_owned(), |n| format!("{} ago", text::ago(ctx.now(), n))),
    ]
}

/// Says that a copy is too old.
pub fn warn_stale(ctx: &Context, config: &CopyConfig, newest: Option<i64>) {
    let age = newest.map_or_else(
        || "holds no snapshot that is known".to_owned(),
        |n| format!("has nothing newer than {} ({} ago)", text::time(n), text::ago(ctx.now(), n)),
    );
    ctx.printer.warn(format_args!("the copy {} is too old: it {age}", config.name()));
}

fn report(ctx: &Context, config: &CopyConfig, outcome: &Outcome, stale: bool) {
    let fields = json!({
        "name": config.name(),
        "location": config.to,
        "state": outcome.state,
        "forgotten": outcome.forgotten,
        "bytes_freed": outcome.freed,
        "snapshots": outcome.held,
        "newest": outcome.newest.map(text::rfc3339),
        "stale": stale,
    });
    ctx.printer.json("copy", joined(fields, outcome.sums.fields()));
}

fn failed(ctx: &Context, config: &CopyConfig, error: &anyhow::Error) -> Outcome {
    ctx.printer.warn(format_args!("the copy {}: {}", config.name(), one_line(error)));
    for hint in hints_of(error) {
        ctx.printer.say(format_args!("  {hint}"));
    }
    let exit = exit_of(error);
    Outcome { state: "failed", exit, newest: copies::remembered(ctx, config), ..Outcome::away() }
}

impl Outcome {
    fn away() -> Self {
        let sums = Sums::default();
        Self {
            state: "not attached",
            exit: Exit::Done,
            sums,
            forgotten: 0,
            freed: 0,
            held: None,
            newest: None,
        }
    }
}

async fn one(
    ctx: &Context,
    config: &CopyConfig,
    from: &Opened,
    key: &Key,
    wait: bool,
    dry_run: bool,
) -> Result<Outcome> {
    let place = Location::parse(&config.to)?;
    if (config.when_attached || wait) && !attached(ctx, config, &place, wait).await? {
        let newest = copies::remembered(ctx, config);
        return Ok(Outcome { newest, ..Outcome::away() });
    }
    // The copies before it may have taken hours, and a disk may have been waited for for weeks.
    let snapshots = from.repository.snapshots().await?;
    if dry_run {
        return plan(ctx, config, &place, from, key, &snapshots).await;
    }
    let target = open_target(ctx, from, key, &place, config.key_file.as_ref()).await?;
    verify(ctx, config, &target).await?;
    let there = target.repository.snapshots().await?;
    let rules = copies::rules_at(ctx, &place, config);
    let checked = target.repository.checked().await?;
    let mut wanted = rules.wanted(ctx.now(), &snapshots, &there, &checked);
    leave_out_erased(ctx, from, &mut wanted);
    let sums = copy(from, &target, &wanted).await?;
    let Retirement { forgotten, bytes_freed } = retire::retire(ctx, config, &rules, &target).await?;
    let wal = retire::trim(ctx, config, &target).await?;
    let there = target.repository.snapshots().await?;
    target.progress.end();
    let newest = rules.newest(ctx.now(), &there);
    if let Err(error) = copies::remember(ctx, config, newest) {
        // The copy is made; on days on which it is not there less is known of it.
        let (name, why) = (config.name(), one_line(&error));
        ctx.printer.warn(format_args!("the copy {name}: how new it is cannot be remembered: {why}"));
    }
    let exit = if sums.failed.is_empty() && sums.unread == 0 { Exit::Done } else { Exit::Damage };
    let state = if exit == Exit::Done { "up to date" } else { "incomplete" };
    let freed = bytes_freed + wal.bytes;
    Ok(Outcome { state, exit, sums, forgotten, freed, held: Some(there.len()), newest })
}

/// Whether the place is there, which may be waited for.
async fn attached(ctx: &Context, config: &CopyConfig, place: &Location, wait: bool) -> Result<bool> {
    let mut told = false;
    loop {
        let there = match place.is_repository(ctx).await {
            // A mount point that is named and mounted, with nothing in it yet, is a new disk.
            Ok(there) => there || config.require_mount.is_some(),
            Err(error) if copies::is_away(&error) => false,
            Err(error) => return Err(error),
        };
        if there || !wait || ctx.interrupt.is_requested() {
            return Ok(there);
        }
        if !told {
            ctx.printer.say(format_args!("waiting until the copy {} is attached at {place}", config.name()));
            told = true;
        }
        tokio::select! { () = tokio::time::sleep(LOOK_EVERY) => {}, () = ctx.interrupt.requested() => {} }
    }
}

/// What would be copied, and what would be forgotten then.
async fn plan(
    ctx: &Context,
    config: &CopyConfig,
    place: &Location,
    from: &Opened,
    key: &Key,
    snapshots: &[Snapshot],
) -> Result<Outcome> {
    let (there, checked) = match place.is_repository(ctx).await? {
        true => {
            let target = open::further(ctx, place.clone(), &key.file, config.key_file.as_ref()).await?;
            target.progress.end();
            (target.repository.snapshots().await?, target.repository.checked().await?)
        }
        false => (Vec::new(), Checked::default()),
    };
    let rules = copies::rules_at(ctx, place, config);
    let mut wanted = rules.wanted(ctx.now(), snapshots, &there, &checked);
    leave_out_erased(ctx, from, &mut wanted);
    let (copied, held, newest) = (wanted.len(), there.len(), rules.newest(ctx.now(), &there));
    let then: Vec<Snapshot> = there.into_iter().chain(wanted).collect();
    let going = rules.going(ctx.now(), &then, &checked);
    retire::show(ctx, config, &going, DryRun::Yes);
    let (forgotten, sums) = (going.len(), Sums { copied, ..Sums::default() });
    Ok(Outcome { state: "would copy", sums, forgotten, held: Some(held), newest, ..Outcome::away() })
}

/// Reads and proves what was not read for too long, before anything relies on it.
async fn verify(ctx: &Context, config: &CopyConfig, target: &Opened) -> Result<()> {
    let Some(age) = config.verify else { return Ok(()) };
    let read = ReadData::OlderThan(check::length(ctx, age)?);
    let found = target.repository.check(CheckOptions { read }).await?;
    if found.packs_archived > 0 {
        let archived = crate::text::count(found.packs_archived, "pack", "packs");
        let name = config.name();
        ctx.printer
            .warn(format_args!("{archived} of the copy {name} lie in an archive and were not verified"));
    }
    if found.is_sound() {
        return Ok(());
    }
    check::print(ctx, &found);
    Err(Complaint::new(Exit::Damage, format!("the copy {} is damaged", config.name()))
        .hint(format!("`keepwell -r {} repair --read-data --from ORIGIN` heals it.", config.to))
        .into())
}
