//! `wal push`, an archive_command.

use std::path::PathBuf;

use anyhow::Result;
use keepwell_source_postgres::push::{Pushed, Pusher};
use serde_json::json;

use crate::context::Context;
use crate::exit::Exit;
use crate::open;

/// Archive one finished file of WAL, as a server's archive_command
///
/// Exit code 0: it is durable in the repository, or was before. Anything else: the server keeps it and asks again. While
/// one is stored, the next ones that are ready are stored too. For those who prefer it to `wal receive`, which loses
/// seconds instead of files when the server's disk dies.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file: %p
    path: PathBuf,
    /// Name of what is backed up; that of its base backups
    #[arg(long, value_name = "NAME", default_value = "postgres")]
    dataset: String,
    /// System identifier of the cluster [default: that of the data directory in which the command runs]
    #[arg(long, value_name = "NUMBER")]
    system: Option<u64>,
}

/// Runs `wal push`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let system = match args.system {
        Some(system) => system,
        None => super::own_system()?,
    };
    let opened = open::repository(ctx).await?;
    opened.progress.end();
    let pushed = Pusher::new(opened.repository.clone(), args.dataset).push(&args.path, system).await?;
    let (word, text) = match pushed {
        Pushed::Stored => ("stored", "is archived"),
        Pushed::Already => ("already", "was archived already"),
        Pushed::NotNeeded => ("not-needed", "is not needed for recovery"),
    };
    ctx.printer.verbose(format_args!("`{}` {text}", args.path.display()));
    ctx.printer.json("pushed", json!({ "file": args.path, "result": word }));
    Ok(Exit::Done)
}
