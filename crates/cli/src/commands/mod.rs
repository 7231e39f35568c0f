//! One file per command.

pub mod backup;
pub mod cache;
pub mod check;
pub mod completions;
pub mod copies;
pub mod copy;
pub mod diff;
pub mod doctor;
pub mod dump;
pub mod find;
pub mod forget;
pub mod init;
pub mod key;
pub mod ls;
pub mod man;
#[cfg(all(feature = "mount", target_os = "linux"))]
pub mod mount;
pub mod pg;
pub mod policy;
pub mod prune;
pub mod repair;
pub mod restore;
pub mod rewrite;
pub mod show;
pub mod snapshots;
pub mod stats;
pub mod tag;
pub mod unforget;
pub mod version;
pub mod wal;
pub mod warm_up;

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
        Command::Ls(args) => ls::run(ctx, args).await,
        Command::Find(args) => find::run(ctx, args).await,
        Command::Show(args) => show::run(ctx, args).await,
        Command::Diff(args) => diff::run(ctx, args).await,
        Command::Dump(args) => dump::run(ctx, args).await,
        Command::Restore(args) => restore::run(ctx, args).await,
        #[cfg(all(feature = "mount", target_os = "linux"))]
        Command::Mount(args) => mount::run(ctx, args).await,
        Command::Check(args) => check::run(ctx, args).await,
        Command::Repair(args) => repair::run(ctx, args).await,
        Command::Forget(args) => forget::run(ctx, *args).await,
        Command::Unforget(args) => unforget::run(ctx, args).await,
        Command::Prune(args) => prune::run(ctx, args).await,
        Command::Copy(args) => copy::run(ctx, args).await,
        Command::Copies(args) => copies::run(ctx, args).await,
        Command::Key(args) => key::run(ctx, args).await,
        Command::Rewrite(args) => rewrite::run(ctx, args).await,
        Command::Tag(args) => tag::run(ctx, args).await,
        Command::Stats(args) => stats::run(ctx, args).await,
        Command::Cache(args) => cache::run(ctx, args),
        Command::Pg(args) => pg::run(ctx, args).await,
        Command::Wal(args) => wal::run(ctx, args).await,
        Command::Doctor(args) => doctor::run(ctx, args).await,
        Command::Policy(args) => policy::run(ctx, args).await,
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => man::run(args),
        Command::WarmUp(args) => warm_up::run(ctx, args).await,
        Command::Version(args) => version::run(ctx, args),
    }
}
