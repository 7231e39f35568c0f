//! `keepwell dump`.

use std::io::{self, IsTerminal};

use anyhow::Result;
use backup_core::ArchiveFormat;
use clap::ValueEnum;
use keepwell_catalog::{EntryKind, MapKey};

use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open;
use crate::printer::Output;
use crate::select::{self, Filter, Part};
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell dump latest:/etc/fstab
  keepwell dump latest:/srv/db.sql | psql
  keepwell dump latest:/home/me --archive tar.zst > me.tar.zst";

/// Write a file, or a directory as an archive, to standard output
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The file; with --archive, a directory too, and without a path everything
    #[arg(value_name = "SNAPSHOT:/PATH")]
    source: String,
    /// Write an archive of what is at the path and below
    #[arg(short, long, value_name = "FORMAT")]
    archive: Option<Archive>,
    #[command(flatten)]
    filter: Filter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Archive {
    Tar,
    #[value(name = "tar.gz")]
    TarGz,
    #[value(name = "tar.zst")]
    TarZst,
}

/// Runs `dump`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    if args.archive.is_some() && io::stdout().is_terminal() {
        return Err(Complaint::usage("an archive does not belong on a terminal")
            .hint("Redirect it: `… > backup.tar`.")
            .into());
    }
    let part = Part::parse(&args.source)?;
    if part.path.is_none() && args.archive.is_none() {
        let complaint = Complaint::usage(format!("`{}` names no path", args.source));
        return Err(complaint
            .hint(format!("Add one, as in `{}:/etc/fstab`, or say `--archive tar` for all of it.", part.name))
            .into());
    }
    let (opened, snapshots) = open::with_snapshots(ctx).await?;
    opened.progress.end();
    let snapshot = select::select(&snapshots, &args.filter, &part.name)?;
    let tree = opened.repository.tree(snapshot).await?;
    let key = part.path.unwrap_or_else(MapKey::root);
    let mut out = Output;
    let Some(archive) = args.archive else {
        let (_, entry) = tree.resolve(&key).await?;
        if entry.kind == EntryKind::Directory {
            let complaint = Complaint::usage(format!("`/{}` is a directory", key.display_path()));
            return Err(complaint.hint("Say `--archive tar`, or name a file.").into());
        }
        tree.dump_file(&key, &mut out).await?;
        return Ok(Exit::Done);
    };
    let format = match archive {
        Archive::Tar => ArchiveFormat::Tar,
        Archive::TarGz => ArchiveFormat::TarGz,
        Archive::TarZst => ArchiveFormat::TarZst,
    };
    let report = tree.dump_archive(&key, format, &mut out).await?;
    for left_out in &report.left_out {
        ctx.printer.warn(left_out);
    }
    let (members, bytes) = (report.members, text::bytes(report.content_bytes));
    ctx.printer.say(format_args!("wrote {}, {bytes}", text::count(members, "member", "members")));
    Ok(if report.left_out_count > 0 { Exit::Skipped } else { Exit::Done })
}
