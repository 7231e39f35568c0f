//! `keepwell pg`.

mod backup;
mod extract;
mod helper;
mod moment;
mod places;
mod restore;
mod scratch;
mod target;
mod verify;

use anyhow::Result;
use clap::Subcommand;

use crate::context::Context;
use crate::exit::Exit;

pub use helper::helper_socket;

const EXAMPLES: &str = "\
Examples:
  keepwell pg backup 'host=db1 user=keepwell' --dataset orders   a base backup of a live server
  keepwell pg restore /var/lib/postgresql/15/main --start        to the last commit that was archived
  keepwell pg restore --to-time '2026-11-21 12:04:10+00' /srv/copy --dry-run
  keepwell pg restore latest~1 --to-immediate /srv/copy
  keepwell pg verify --level 4                                   prove it
  keepwell pg extract --at '2026-11-21 12:04:10+00' --table public.patients -o patients.sql";

/// Back up, restore, recover and verify PostgreSQL clusters
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Backup(Box<backup::Args>),
    Restore(Box<restore::Args>),
    Verify(Box<verify::Args>),
    Extract(Box<extract::Args>),
}

/// Runs `pg`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    match args.action {
        Action::Backup(args) => backup::run(ctx, *args).await,
        Action::Restore(args) => restore::run(ctx, *args).await,
        Action::Verify(args) => verify::run(ctx, *args).await,
        Action::Extract(args) => extract::run(ctx, *args).await,
    }
}
