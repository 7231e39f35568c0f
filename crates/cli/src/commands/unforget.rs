//! `keepwell unforget`.

use anyhow::Result;
use backup_core::Forgotten;
use keepwell_catalog::readable;
use serde_json::json;

use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open;
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell unforget                  what was forgotten and is still there
  keepwell unforget 1a2b3c4d         list it again

A prune removes what only forgotten snapshots needed. Until then, and as far as other
snapshots hold the same content, nothing is lost.";

/// Bring forgotten snapshots back, or list them
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Snapshots to bring back; without any, those that could be are listed
    snapshots: Vec<String>,
}

/// Runs `unforget`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let opened = open::repository(ctx).await?;
    let forgotten = opened.repository.forgotten().await;
    opened.progress.end();
    let forgotten = forgotten?;
    if args.snapshots.is_empty() {
        list(ctx, &forgotten);
        return Ok(Exit::Done);
    }
    // A name that means nothing is told before anything is done.
    let chosen = args.snapshots.iter().map(|wanted| pick(&forgotten, wanted));
    for found in chosen.collect::<Result<Vec<_>>>()? {
        let report = opened.repository.undo_forget(found).await?;
        let (id, stored) = (found.snapshot.short(), text::bytes(report.bytes));
        ctx.printer.line(format_args!("{id} is listed again; {stored} had to be stored anew"));
        ctx.printer
            .json("unforget", json!({ "snapshot": found.snapshot.id.to_string(), "bytes": report.bytes }));
    }
    Ok(Exit::Done)
}

/// The forgotten snapshot whose id begins so; of several commits of one snapshot, the newest.
fn pick<'f>(forgotten: &'f [Forgotten], wanted: &str) -> Result<&'f Forgotten> {
    let begins = |f: &&Forgotten| f.snapshot.id.to_string().starts_with(wanted);
    let found: Vec<&Forgotten> = forgotten.iter().filter(begins).collect();
    match found.last() {
        Some(last) if found.iter().all(|f| f.snapshot.id == last.snapshot.id) => Ok(last),
        Some(_) => Err(Complaint::usage(format!("several forgotten snapshots begin with `{wanted}`"))
            .hint("Give more digits of the id; `keepwell unforget --json` shows all of them.")
            .into()),
        None => Err(Complaint::usage(format!("no forgotten snapshot begins with `{wanted}`"))
            .hint("`keepwell unforget` lists those that could be brought back.")
            .into()),
    }
}

fn list(ctx: &Context, forgotten: &[Forgotten]) {
    let there: Vec<&Forgotten> = forgotten.iter().filter(|f| f.snapshot.manifest().is_ok()).collect();
    for found in &there {
        let id = found.snapshot.short();
        let time = text::time(found.snapshot.commit.capture.unwrap_or(found.snapshot.commit.time));
        ctx.printer.line(format_args!("{id}  {time}  {}", readable(&found.reason)));
        ctx.printer
            .json("forgotten", json!({ "snapshot": found.snapshot.id.to_string(), "reason": found.reason }));
    }
    let gone = forgotten.len() - there.len();
    let (there, gone) = (text::count(there.len() as u64, "snapshot", "snapshots"), gone);
    ctx.printer.line(format_args!("{there} could be brought back; of {gone} the manifest is gone"));
}
