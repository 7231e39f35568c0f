//! `wal get`, a restore_command.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use keepwell_source_postgres::archive::{Fetched, fetch};

use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open;

/// Where a data directory says whose it is, in its first eight bytes.
const CONTROL_FILE: &str = "global/pg_control";

/// Fetch one file of WAL for a recovering server, as its restore_command
///
/// Exit code 0: it is there. 1: the archive does not have it, and has no gap here. 255: anything else; the server then
/// stops instead of opening with less than there is.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the file: %f
    file: String,
    /// Where to put it: %p
    path: PathBuf,
    /// System identifier of the cluster [default: that of the data directory in which the command runs]
    #[arg(long, value_name = "NUMBER")]
    system: Option<u64>,
}

/// Runs `wal get`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let system = match args.system {
        Some(system) => system,
        None => own_system()?,
    };
    let opened = open::repository(ctx).await?;
    opened.progress.end();
    let reader = opened.repository.wal_reader(system)?;
    match fetch(&reader, &args.file).await? {
        Fetched::Found(content) => {
            place(&args.path, &content).with_context(|| format!("write `{}`", args.path.display()))?;
            ctx.printer.verbose(format_args!("`{}` is restored", args.file));
            Ok(Exit::Done)
        }
        Fetched::Missing => {
            ctx.printer.verbose(format_args!("`{}` is not archived", args.file));
            Ok(Exit::Failed)
        }
    }
}

fn own_system() -> Result<u64> {
    let mut first = [0; 8];
    let read = fs::File::open(CONTROL_FILE).and_then(|mut file| file.read_exact(&mut first));
    read.map_err(|error| {
        Complaint::failed(format!("`{CONTROL_FILE}` cannot be read here: {error}"))
            .hint("A server runs its restore_command in its data directory; elsewhere say --system.")
    })?;
    Ok(u64::from_ne_bytes(first))
}

/// Puts the file there in one step: half a file would be taken for a whole one.
fn place(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".keepwell");
    let beside = PathBuf::from(beside);
    let mut file = fs::File::create(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&beside, path)
}
