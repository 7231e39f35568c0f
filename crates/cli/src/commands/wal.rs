//! `keepwell wal`.

mod gaps;
mod get;
mod push;
mod receive;
mod serve;
mod status;

use std::fs::File;
use std::io::Read;

use anyhow::{Context as _, Result};
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
    Serve(serve::Args),
    Push(push::Args),
}

impl Args {
    /// Whether this is `wal get`.
    pub fn serves_recovery(&self) -> bool {
        matches!(self.action, Action::Get(_))
    }
}

/// Runs `wal`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    match args.action {
        Action::Receive(args) => receive::run(ctx, *args).await,
        Action::Status(args) => status::run(ctx, args).await,
        Action::Gaps(args) => gaps::run(ctx, args).await,
        Action::Get(args) => get::run(ctx, args).await,
        Action::Push(args) => push::run(ctx, args).await,
        Action::Serve(args) => serve::run(ctx, args).await,
    }
}

/// Where a data directory says whose it is, in its first eight bytes.
const CONTROL_FILE: &str = "global/pg_control";

/// The cluster in whose data directory we run, as a server's commands do.
fn own_system() -> Result<u64> {
    let mut first = [0; 8];
    let read = File::open(CONTROL_FILE).and_then(|mut file| file.read_exact(&mut first));
    read.map_err(|error| {
        Complaint::failed(format!("`{CONTROL_FILE}` cannot be read here: {error}"))
            .hint("A server runs its commands in its data directory; elsewhere say --system.")
    })?;
    Ok(u64::from_ne_bytes(first))
}

/// For a process of ours that goes on without whoever started it: his terminal is not there for it any more. Nothing asks there
/// for a passphrase then, be it we or a command that is to give it, nor does a key pressed there end us.
fn leave_terminal() -> Result<()> {
    rustix::process::setsid().context("leave the terminal")?;
    Ok(())
}

/// Makes out what a connection on the command line means.
pub fn connection(ctx: &Context, text: &str) -> Result<ConnectOptions> {
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
