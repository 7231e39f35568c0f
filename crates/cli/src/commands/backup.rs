//! `keepwell backup`.

mod about;
mod count;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use backup_core::env::SystemClock;
use backup_core::source::Source;
use backup_core::{BackupOptions, BackupReport, Repository, one_line};
use clap::builder::NonEmptyStringValueParser;
use keepwell_source_files::{FileOptions, FileSource};
use serde_json::{Value, json};

pub use self::about::About;
use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::location::Location;
use crate::open::{self, Opened};
use crate::ours;
use crate::printer::joined;
use crate::secret::Protection;
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell backup ~/documents /etc
  keepwell backup / --one-file-system --exclude '*.tmp' --exclude /var/cache
  keepwell backup --profile home             paths and all else from the profile
  keepwell backup ~/documents --dry-run      what would be backed up

Patterns follow the rules of .gitignore, relative to `/`: `*.tmp` matches
anywhere, `/var/cache` only there, and `!keep.tmp` keeps what `*.tmp` leaves out.
Exit code 3 means: the snapshot is there, but some files could not be read.";

/// Back up files and directories
///
/// Unchanged files are not read again, and content that the repository has is not stored again. A failure or a crash
/// leaves every older snapshot as it was; the next run goes on with what was stored.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What to back up; by default the paths of the profile
    paths: Vec<PathBuf>,
    /// Only count what would be backed up
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Leave out what matches this pattern; may be repeated
    #[arg(short, long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Leave out what matches a line of this file
    #[arg(long, value_name = "FILE")]
    exclude_file: Vec<PathBuf>,
    /// Honour ignore files of this name inside the tree, as .gitignore
    #[arg(long, value_name = "NAME")]
    ignore_file: Vec<String>,
    /// Leave out what is in directories marked by a CACHEDIR.TAG
    #[arg(long)]
    exclude_caches: bool,
    /// Leave out files larger than this
    #[arg(long, value_name = "SIZE", value_parser = text::parse_bytes)]
    exclude_larger_than: Option<u64>,
    /// Do not cross into other file systems
    #[arg(short = 'x', long)]
    one_file_system: bool,
    /// Name of what is backed up, by which snapshots are compared and counted [default: the profile, or the paths]
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    dataset: Option<String>,
    /// Read every file, also those that look unchanged
    #[arg(long, visible_alias = "force")]
    reread: bool,
    #[command(flatten)]
    about: About,
}

/// Runs `backup`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let paths = paths(ctx, &args)?;
    // Once, and before a repository is made: a file of patterns may be a pipe, and may be refused.
    let planned = source(ctx, &args, &paths)?;
    if args.dry_run {
        let location = Location::named(ctx)?.unwrap_or_else(|| Location::default_of(ctx));
        return count::run(ctx, &planned.without(&ours::directories(ctx, &location, &paths)));
    }
    let Opened { repository, progress, location } = open_or_create(ctx).await?;
    let ours = ours::left_out(ctx, &repository, &location, &paths);
    let source: Arc<dyn Source> = Arc::new(planned.without(&ours));
    let options = options(ctx, &args, &repository, &paths)?;
    let dataset = options.dataset.clone();
    let began = std::time::Instant::now();
    ctx.interrupt.ends_by_itself();
    let report = repository.backup(source, options).await;
    progress.end();
    let report = report?;
    print(ctx, &report, &dataset, began.elapsed());
    Ok(if report.problem_count > 0 { Exit::Skipped } else { Exit::Done })
}

fn paths(ctx: &Context, args: &Args) -> Result<Vec<PathBuf>> {
    let given = if args.paths.is_empty() { &ctx.profile.paths } else { &args.paths };
    if given.is_empty() {
        return Err(Complaint::usage("no path to back up is given")
            .hint("Name one, as in `keepwell backup ~/documents`, or list `paths` in a profile.")
            .into());
    }
    let mut paths = Vec::new();
    for path in given {
        let resolved =
            resolve(path).map_err(|error| Complaint::usage(format!("`{}`: {error}", path.display())))?;
        if !paths.contains(&resolved) {
            paths.push(resolved);
        }
    }
    Ok(paths)
}

/// Absolute and without `..`; a path that is a symlink itself stays one.
fn resolve(path: &std::path::Path) -> std::io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    absolute.symlink_metadata()?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
        _ => absolute.canonicalize(),
    }
}

fn source(ctx: &Context, args: &Args, paths: &[PathBuf]) -> Result<FileSource> {
    let profile = &ctx.profile;
    let options = FileOptions {
        paths: paths.to_vec(),
        excludes: [profile.excludes.as_slice(), &args.exclude].concat(),
        exclude_files: [profile.exclude_files.as_slice(), &args.exclude_file].concat(),
        ignore_file_names: [profile.ignore_files.as_slice(), &args.ignore_file].concat(),
        one_file_system: profile.one_file_system || args.one_file_system,
        exclude_caches: profile.exclude_caches || args.exclude_caches,
        exclude_larger_than: args.exclude_larger_than,
    };
    FileSource::new(&options, Arc::new(SystemClock)).map_err(|e| Complaint::usage(one_line(&e)).into())
}

fn options(ctx: &Context, args: &Args, repository: &Repository, paths: &[PathBuf]) -> Result<BackupOptions> {
    let profile = &ctx.profile;
    let dataset = args.dataset.clone().or_else(|| profile.dataset.clone()).or_else(|| profile.name.clone());
    Ok(BackupOptions {
        reread: args.reread,
        checkpoint_every: Duration::from_secs(1800),
        ..args.about.options(ctx, repository, dataset.unwrap_or_else(|| dataset_of(paths)))?
    })
}

/// Different paths are different datasets, so that neither pushes the other's snapshots out.
fn dataset_of(paths: &[PathBuf]) -> String {
    let mut names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    names.sort();
    names.join(",")
}

/// Opens the repository; the default one is made on its first use.
async fn open_or_create(ctx: &Context) -> Result<Opened> {
    let location = Location::default_of(ctx);
    let is_default = Location::named(ctx)?.is_none() && crate::secret::named_key(ctx)?.is_none();
    if is_default && !location.is_repository(ctx).await? {
        let made = super::init::create(ctx, &location, Protection::Plain, None).await?;
        let (key, printer) = (made.key_file.display(), &ctx.printer);
        // Also with `--quiet`: whoever meant another repository has to hear of this one.
        printer.line(format_args!("This is the first backup: made a repository at {location}"));
        printer.line(format_args!("Its key is in {key}; keep a copy elsewhere (`keepwell key kit`)."));
        printer
            .say("It is on this machine. Only a copy on another disk or host survives the loss of this one.");
        printer.json("init", json!({ "repository": made.id.to_string(), "location": location.to_string(), "key_file": made.key_file.to_string_lossy() }));
    }
    open::repository(ctx).await
}

fn print(ctx: &Context, report: &BackupReport, dataset: &str, took: Duration) {
    let s = &report.statistics;
    let id = &report.snapshot.to_string()[..8];
    let what = text::count(s.files, "file", "files");
    let (size, stored) = (text::bytes(s.logical_bytes), text::bytes(s.new_stored_bytes));
    let id = ctx.printer.strong(id);
    ctx.printer.line(format_args!("snapshot {id} of {dataset}: {what}, {size}, in {}", text::duration(took)));
    ctx.printer.say(format_args!(
        "  {} new, {} changed, {} unchanged; {stored} added to the repository",
        text::number(s.new_files),
        text::number(s.changed_files),
        text::number(s.unchanged_files),
    ));
    if report.verified_chunks > 0 {
        ctx.printer.say(format_args!(
            "  read back and proved: {}",
            text::count(report.verified_chunks, "chunk", "chunks")
        ));
    }
    if report.problem_count > 0 {
        let skipped = text::count(report.problem_count, "item", "items");
        ctx.printer.warn(format_args!("{skipped} could not be captured (`keepwell show {id}` lists them)"));
    }
    let counts = json!({ "files": s.files, "directories": s.directories, "others": s.others });
    ctx.printer.json("backup", joined(fields(report, dataset, took), counts));
}

/// A new snapshot as scripts see it, of whatever it was made.
pub fn fields(report: &BackupReport, dataset: &str, took: Duration) -> Value {
    let s = &report.statistics;
    json!({
        "snapshot": report.snapshot.to_string(),
        "parent": report.parent.map(|p| p.to_string()),
        "dataset": dataset,
        "seconds": took.as_secs_f64(),
        "bytes": s.logical_bytes,
        "new_files": s.new_files,
        "changed_files": s.changed_files,
        "unchanged_files": s.unchanged_files,
        "bytes_read": s.bytes_read,
        "new_chunks": s.new_chunks,
        "new_bytes": s.new_plain_bytes,
        "stored_bytes": s.new_stored_bytes,
        "verified_chunks": report.verified_chunks,
        "problems": report.problem_count,
        "complete": report.complete,
    })
}
