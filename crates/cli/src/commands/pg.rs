//! `keepwell pg`.

mod backup;
mod discard;
mod dump;
mod export;
mod extract;
mod helper;
mod import;
#[cfg(all(feature = "mount", target_os = "linux"))]
mod instant;
mod load;
mod marked;
mod moment;
mod pace;
mod places;
mod questions;
mod recover;
mod report;
mod restore;
mod scratch;
mod served;
mod target;
mod verify;

use anyhow::Result;
use clap::Subcommand;

use crate::context::Context;
use crate::exit::Exit;

pub use helper::{ahead_note, helper_socket};

const EXAMPLES: &str = "\
Examples:
  keepwell pg backup 'host=db1 user=keepwell' --dataset orders   a base backup of a live server
  keepwell pg restore /var/lib/postgresql/15/main --start        to the last archived commit
  keepwell pg restore --to-time '2026-11-21 12:04:10+00' /srv/copy --dry-run
  keepwell pg restore latest~1 --to-immediate /srv/copy
  keepwell pg verify --level 4                                   prove it
  keepwell pg extract --at '2026-11-21 12:04:10+00' --table public.patients -o patients.sql
  keepwell pg instant --at '2026-11-21 12:04:10+00'              a server on it, at once
  keepwell pg dump 'host=db1 user=backup'                        databases as definitions and rows
  keepwell pg load --to 'host=db2 user=admin'                    and back";

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
    #[cfg(all(feature = "mount", target_os = "linux"))]
    Instant(Box<instant::Args>),
    Dump(Box<dump::Args>),
    Load(Box<load::Args>),
    Export(Box<export::Args>),
    Import(Box<import::Args>),
}

/// Runs `pg`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    match args.action {
        Action::Backup(args) => backup::run(ctx, *args).await,
        Action::Restore(args) => restore::run(ctx, *args).await,
        Action::Verify(args) => verify::run(ctx, *args).await,
        Action::Extract(args) => extract::run(ctx, *args).await,
        #[cfg(all(feature = "mount", target_os = "linux"))]
        Action::Instant(args) => instant::run(ctx, *args).await,
        Action::Dump(args) => dump::run(ctx, *args).await,
        Action::Load(args) => load::run(ctx, *args).await,
        Action::Export(args) => export::run(ctx, *args).await,
        Action::Import(args) => import::run(ctx, *args).await,
    }
}
