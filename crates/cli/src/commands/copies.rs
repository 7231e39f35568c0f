//! `keepwell copies`.

use anyhow::Result;
use backup_core::{Repository, Snapshot};
use serde_json::json;

use super::copy::warn_stale;
use crate::config::CopyConfig;
use crate::context::Context;
use crate::copies;
use crate::exit::{Exit, one_line};
use crate::location::Location;
use crate::open;
use crate::table::{Align, Table};
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell copies            what each copy of the profile holds, and how old it is
  keepwell copies --json

Exit code 15 means: a copy is older than its `max-age`; 1: one cannot be opened.
Nothing is copied; that is `keepwell copy`.";

/// Show the copies of the profile: what they hold, what they lack, how old they are
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {}

/// What was found at a copy.
struct Found {
    held: usize,
    missing: usize,
    newest: Option<i64>,
    proved: Option<i64>,
}

/// Runs `copies`.
pub async fn run(ctx: &Context, _: Args) -> Result<Exit> {
    if ctx.profile.copies.is_empty() {
        ctx.printer.say("The profile names no copies.");
        return Ok(Exit::Done);
    }
    let opened = open::repository(ctx).await?;
    let snapshots = opened.repository.snapshots().await;
    opened.progress.end();
    let snapshots = snapshots?;
    let mut exit = Exit::Done;
    let mut table = Table::new(&[
        ("Copy", Align::Left),
        ("State", Align::Left),
        ("Holds", Align::Right),
        ("Missing", Align::Right),
        ("Newest", Align::Left),
        ("Proved since", Align::Left),
    ]);
    for config in &ctx.profile.copies {
        let found = look(ctx, config, &opened.repository, &snapshots).await;
        let newest = match &found {
            Ok(found) => found.newest,
            Err(_) => copies::remembered(ctx, config),
        };
        let stale = copies::is_stale(ctx, config, newest)?;
        if stale {
            warn_stale(ctx, config, newest);
            exit = exit.graver(Exit::Stale);
        }
        let state = match (&found, stale) {
            (Err(error), _) if is_away(config, error) => "not attached".to_owned(),
            (Err(error), _) => format!("cannot be opened: {}", one_line(error)),
            (_, true) => "too old".to_owned(),
            (Ok(found), _) if found.missing > 0 => "behind".to_owned(),
            _ => "up to date".to_owned(),
        };
        if let Err(error) = &found
            && !is_away(config, error)
        {
            exit = exit.graver(Exit::Failed);
        }
        let found = found.ok();
        table.row(row(ctx, config, &state, found.as_ref(), newest));
        let fields = json!({
            "name": config.name(),
            "location": config.to,
            "state": state,
            "snapshots": found.as_ref().map(|f| f.held),
            "missing": found.as_ref().map(|f| f.missing),
            "newest": newest.map(text::rfc3339),
            "proved_since": found.as_ref().and_then(|f| f.proved).map(text::rfc3339),
            "stale": stale,
        });
        ctx.printer.json("copy_state", fields);
    }
    table.print(&ctx.printer);
    Ok(exit)
}

/// Whether it is not there, and need not be.
fn is_away(config: &CopyConfig, error: &anyhow::Error) -> bool {
    config.when_attached && copies::is_away(error)
}

async fn look(
    ctx: &Context,
    config: &CopyConfig,
    from: &Repository,
    snapshots: &[Snapshot],
) -> Result<Found> {
    let place = Location::parse(&config.to)?;
    let opened = open::credential_at(ctx, place, config.key_file.as_ref()).await?.open(ctx).await?;
    opened.progress.end();
    let there = opened.repository.snapshots().await?;
    let rules = copies::rules(config);
    let checked = opened.repository.checked().await?;
    let wanted = rules.wanted(ctx.now(), snapshots, &there, &checked);
    let missing = wanted.iter().filter(|snapshot| !copies::is_erased(from, snapshot)).count();
    let (newest, proved) = (rules.newest(ctx.now(), &there), checked.proved_since);
    Ok(Found { held: there.len(), missing, newest, proved })
}

fn row(
    ctx: &Context,
    config: &CopyConfig,
    state: &str,
    found: Option<&Found>,
    newest: Option<i64>,
) -> Vec<String> {
    let number = |n: Option<usize>| n.map_or_else(|| "-".to_owned(), |n| text::number(n as u64));
    let proved = found.and_then(|f| f.proved);
    vec![
        config.name().to_owned(),
        state.to_owned(),
        number(found.map(|f| f.held)),
        number(found.map(|f| f.missing)),
        newest.map_or_else(|| "-".to_owned(), |n| format!("{} ago", text::ago(ctx.now(), n))),
        proved.map_or_else(|| "-".to_owned(), text::time),
    ]
}
