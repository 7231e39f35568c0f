//! `keepwell wal`.

mod gaps;
mod get;
mod receive;
mod status;

use anyhow::Result;
use clap::Subcommand;
use keepwell_source_postgres::options::ConnectOptions;
use keepwell_source_postgres::replication::SystemId;

use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open::Opened;

const EXAMPLES: &str = "\
Examples:
  keepwell wal receive 'host=db1 user=keepwell' --create-slot
  keepwell wal status                        what is archived, up to where
  keepwell wal gaps                          exit code 13 if something is missing
  keepwell wal status 'host=db1 user=keepwell'   and how far the slot is behind

In postgresql.conf of a server that recovers:
  restore_command = 'keepwell --repository PLACE --key-file FILE wal get %f %p'

A connection is what psql takes: `host=… user=…`, or `postgresql://user@host/db`.
PG* variables, ~/.pgpass and service files count as usual; put no password
into the connection itself, where others can see it.";

/// Archive the WAL of a PostgreSQL server, and give it back
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Receive(Box<receive::Args>),
    Status(status::Args),
    Gaps(gaps::Args),
    Get(get::Args),
}

/// Runs `wal`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    match args.action {
        Action::Receive(args) => receive::run(ctx, *args).await,
        Action::Status(args) => status::run(ctx, args).await,
        Action::Gaps(args) => gaps::run(ctx, args).await,
        Action::Get(args) => get::run(ctx, args).await,
    }
}

fn connection(ctx: &Context, text: &str) -> Result<ConnectOptions> {
    let options = ConnectOptions::resolve(text, &ctx.environment.surroundings(), "keepwell");
    options
        .map_err(|error| anyhow::Error::from(error).context(Complaint::usage("the connection is not clear")))
}

/// The cluster that is meant: the one given, or all that are archived.
async fn systems(opened: &Opened, given: Option<u64>) -> Result<Vec<SystemId>> {
    let numbers = match given {
        Some(number) => vec![number],
        None => opened.repository.wal_systems().await?,
    };
    Ok(numbers.into_iter().map(SystemId::new).collect())
}
