//! One file per command.

pub mod backup;
pub mod cache;
pub mod completions;
pub mod doctor;
pub mod init;
pub mod key;
pub mod man;
pub mod restore;
pub mod show;
pub mod snapshots;
pub mod version;

use anyhow::Result;

use crate::args::Command;
use crate::context::Context;
use crate::exit::Exit;

/// Runs a command.
pub async fn run(ctx: &Context, command: Command) -> Result<Exit> {
    match command {
        Command::Init(args) => init::run(ctx, args).await,
        Command::Backup(args) => backup::run(ctx, args).await,
        Command::Snapshots(args) => snapshots::run(ctx, args).await,
        Command::Show(args) => show::run(ctx, args).await,
        Command::Restore(args) => restore::run(ctx, args).await,
        Command::Key(args) => key::run(ctx, args).await,
        Command::Cache(args) => cache::run(ctx, args),
        Command::Doctor(args) => doctor::run(ctx, args).await,
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => man::run(args),
        Command::Version(args) => version::run(ctx, args),
    }
}
