//! `wal status`.

use anyhow::Result;
use keepwell_source_postgres::archive::survey;
use keepwell_source_postgres::replication::SlotName;
use keepwell_source_postgres::wire::Client;
use serde_json::json;

use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open;
use crate::table::{Align, Table};
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell wal status
  keepwell wal status 'host=db1 user=keepwell'     and how far the slot is behind";

/// Show what is archived, up to where, and how far the server is ahead
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Also ask this server about its slot
    connection: Option<String>,
    /// The slot to ask about
    #[arg(long, value_name = "NAME", default_value = "keepwell")]
    slot: String,
    /// Only this cluster, by its system identifier
    #[arg(long, value_name = "NUMBER")]
    system: Option<u64>,
}

/// Runs `wal status`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let opened = open::repository(ctx).await?;
    opened.progress.end();
    let mut table = Table::new(&[
        ("Cluster", Align::Left),
        ("Timeline", Align::Right),
        ("From", Align::Left),
        ("To", Align::Left),
        ("Size", Align::Right),
    ]);
    let mut gaps = 0;
    for system in super::systems(&opened, args.system).await? {
        let found = survey(&opened.repository.wal_reader(system.get())?).await?;
        gaps += found.gaps.len() as u64;
        for stretch in &found.stretches {
            let bytes = stretch.to.get() - stretch.from.get();
            let (timeline, from, to) =
                (stretch.timeline.to_string(), stretch.from.to_string(), stretch.to.to_string());
            ctx.printer.json(
                "stretch",
                json!({ "system": system.to_string(), "writer": stretch.writer.to_string(),
                    "timeline": stretch.timeline.get(), "from": from, "to": to, "bytes": bytes }),
            );
            table.row(vec![system.to_string(), timeline, from, to, text::bytes(bytes)]);
        }
    }
    if table.is_empty() {
        ctx.printer.say("No WAL is archived.");
    } else {
        table.print(&ctx.printer);
    }
    if gaps > 0 {
        ctx.printer
            .warn(format_args!("{}; `keepwell wal gaps` lists them", text::count(gaps, "gap", "gaps")));
    }
    if let Some(connection) = &args.connection {
        slot(ctx, connection, &args.slot).await?;
    }
    Ok(Exit::Done)
}

async fn slot(ctx: &Context, connection: &str, name: &str) -> Result<()> {
    let slot = SlotName::new(name)
        .ok_or_else(|| Complaint::usage(format!("`{name}` cannot be the name of a slot")))?;
    let mut client = Client::connect(&super::connection(ctx, connection)?).await?;
    let identity = client.identify().await?;
    let state = client.slot(&slot).await?;
    client.close().await;
    ctx.printer.line(format_args!(
        "the server is at {} on timeline {} of cluster {}",
        identity.position, identity.timeline, identity.system_id
    ));
    ctx.printer.json(
        "server",
        json!({ "system": identity.system_id.to_string(), "timeline": identity.timeline.get(),
            "position": identity.position.to_string(), "has_slot": state.is_some() }),
    );
    let Some(state) = state else {
        ctx.printer.warn(format_args!("there is no slot `{name}`: the server keeps no WAL for the archive"));
        return Ok(());
    };
    let behind = u64::try_from(state.lag_bytes.unwrap_or(0)).unwrap_or(0);
    let status = state.wal_status.as_deref().unwrap_or("unused");
    let use_ = if state.active { "in use" } else { "not in use" };
    ctx.printer.line(format_args!(
        "the slot `{name}` is {use_}, {} behind, its WAL is {status}",
        text::bytes(behind)
    ));
    match status {
        "lost" => {
            let what = "drop the slot, create it anew, and take a base backup";
            ctx.printer.warn(format_args!("the server has removed WAL that the slot held back: {what}"));
        }
        "unreserved" => {
            ctx.printer.warn("the server removes what the slot holds back at its next checkpoint")
        }
        _ => {}
    }
    if let Some(safe) = state.safe_bytes {
        ctx.printer.line(format_args!(
            "it loses WAL after another {}",
            text::bytes(u64::try_from(safe).unwrap_or(0))
        ));
    }
    ctx.printer.json(
        "slot",
        json!({ "name": name, "active": state.active, "restart": state.restart.map(|l| l.to_string()),
            "wal_status": state.wal_status, "behind_bytes": behind, "safe_bytes": state.safe_bytes }),
    );
    Ok(())
}
