//! `wal receive`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use backup_core::env::SystemClock;
use keepwell_source_postgres::lsn::Lsn;
use keepwell_source_postgres::receive::{Progress, ReceiveOptions, Receiver};
use keepwell_source_postgres::replication::SlotName;
use serde_json::json;
use tokio::sync::watch;

use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open;
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell wal receive 'host=db1 user=keepwell' --create-slot
  keepwell wal receive 'host=db1,db2 user=keepwell' --dataset orders";

/// Stream WAL from a server into the repository until it is interrupted
///
/// The server hears that WAL is safe only when the repository has it. A server or a repository that is away is waited
/// for. What is written reaches the repository after --tail-every at the latest, so that no more than that is lost with
/// the server; with --synchronous and `synchronous_standby_names = 'keepwell'` on the server, nothing is.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The server, as psql takes it; several hosts may be named
    #[arg(default_value = "")]
    connection: String,
    /// Name of what is backed up; that of its base backups
    #[arg(long, value_name = "NAME", default_value = "postgres")]
    dataset: String,
    /// The replication slot that makes the server keep WAL until it is archived
    #[arg(long, value_name = "NAME", default_value = "keepwell")]
    slot: String,
    /// Create the slot if there is none
    #[arg(long)]
    create_slot: bool,
    /// Use no slot: WAL may be missing after a pause
    #[arg(long, conflicts_with = "create_slot")]
    no_slot: bool,
    /// Archive what is new after so many seconds
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = clap::value_parser!(u64).range(1..=3600))]
    tail_every: u64,
    /// Archive at once, as a synchronous standby must
    #[arg(long)]
    synchronous: bool,
    /// The dataset goes over to another cluster, as after pg_upgrade
    #[arg(long)]
    new_cluster: bool,
    /// End when the WAL is archived up to here
    #[arg(long, value_name = "LSN")]
    until: Option<Lsn>,
    /// Have the server commit an empty transaction every so many seconds, so that `pg verify` can tell how much would be
    /// lost also when nobody writes; needs a primary
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    heartbeat: Option<u64>,
}

/// Runs `wal receive`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let connect = super::connection(ctx, &args.connection)?;
    let slot = SlotName::new(&args.slot).ok_or_else(|| {
        Complaint::usage(format!("`{}` cannot be the name of a slot", args.slot)).hint("Use a-z, 0-9 and _.")
    })?;
    let opened = open::repository(ctx).await?;
    ctx.interrupt.ends_by_itself();
    let options = ReceiveOptions {
        dataset: args.dataset,
        slot: (!args.no_slot).then_some(slot),
        create_slot: args.create_slot,
        tail_every: Duration::from_secs(args.tail_every),
        synchronous: args.synchronous,
        rebind: args.new_cluster,
        until: args.until,
        heartbeat: args.heartbeat.map(Duration::from_secs),
    };
    let (stop, stopped) = watch::channel(false);
    let receiver = Receiver::new(opened.repository.clone(), connect, options, Arc::new(SystemClock), stopped);
    let interrupt = ctx.interrupt.clone();
    let watcher = tokio::spawn(async move {
        interrupt.requested().await;
        let _ = stop.send(true);
        // Dropping the sender would stop it as well.
        std::future::pending::<()>().await;
    });
    let begun = tokio::spawn(say_when_streaming(Arc::clone(&ctx.printer), receiver.progress()));
    let ended = receiver.run().await;
    watcher.abort();
    begun.abort();
    opened.progress.end();
    report(ctx, &ended?);
    Ok(Exit::Done)
}

async fn say_when_streaming(printer: Arc<crate::printer::Printer>, mut progress: watch::Receiver<Progress>) {
    loop {
        let Ok(now) = progress.wait_for(|p| p.streaming).await.map(|p| *p) else { return };
        let (system, timeline) = (now.system.map_or(0, |s| s.get()), now.timeline.map_or(0, |t| t.get()));
        printer
            .say(format_args!("streaming from {} on timeline {timeline} of cluster {system}", now.durable));
        if progress.wait_for(|p| !p.streaming || p.timeline != now.timeline).await.is_err() {
            return;
        }
    }
}

fn report(ctx: &Context, progress: &Progress) {
    ctx.printer.line(format_args!(
        "archived up to {} on timeline {}, {}, {}",
        progress.durable,
        progress.timeline.map_or(0, |t| t.get()),
        text::count(progress.pieces, "piece", "pieces"),
        text::count(progress.gaps, "gap", "gaps")
    ));
    ctx.printer.json(
        "wal",
        json!({
            "system": progress.system.map(|s| s.to_string()),
            "timeline": progress.timeline.map(|t| t.get()),
            "durable": progress.durable.to_string(),
            "server": progress.server_end.to_string(),
            "pieces": progress.pieces,
            "gaps": progress.gaps,
            "connections": progress.connections,
        }),
    );
}
