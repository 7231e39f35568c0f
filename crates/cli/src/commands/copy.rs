//! `keepwell copy`.

use std::path::PathBuf;

use anyhow::Result;
use backup_core::{BackupOptions, RepositoryHint, Snapshot, SnapshotState};
use serde_json::json;

use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::location::Location;
use crate::open::{self, Credential, Opened};
use crate::select::{self, Filter};
use crate::{known, secret, text};

const EXAMPLES: &str = "\
Examples:
  keepwell copy --to /mnt/disk/backup            everything, to a second disk
  keepwell copy latest --to /mnt/nas/backup
  keepwell copy --to /srv/other --to-key-file other.key

Where there is no repository yet, one with the same keys is made: a copy that the same
key file opens. Into a repository with other keys everything is encrypted anew. Only
what is missing travels; an interrupted copy goes on where it was.";

/// Copy snapshots to another repository
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The snapshots; by default all
    snapshots: Vec<String>,
    /// Where to
    #[arg(long, value_name = "PLACE")]
    to: String,
    /// The key file of the other repository, if it has keys of its own
    #[arg(long, value_name = "FILE")]
    to_key_file: Option<PathBuf>,
    #[command(flatten)]
    filter: Filter,
}

/// What was done.
#[derive(Debug, Default)]
struct Sums {
    copied: usize,
    skipped: usize,
    failed: Vec<(String, String)>,
    unread: u64,
    bytes: u64,
}

/// Runs `copy`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let place = Location::parse(&args.to)?;
    let credential = open::credential(ctx).await?;
    let key = credential.key.clone();
    let key_file = credential.key_file.clone();
    let opened = credential.open(ctx).await?;
    if !is_repository(ctx, &place).await {
        let store = place.create(ctx).await?;
        opened.repository.create_copy(&*store).await?;
        ctx.printer.say(format_args!("made a copy of the repository at {place}, with the same keys"));
        if let Some(file) = key_file {
            known::remember(ctx, &place, opened.repository.id(), &file)?;
        }
    }
    let store = place.open(ctx).await?;
    let hint = RepositoryHint::read(&*store).await?;
    let target = if hint.repository == key.repository.to_string() {
        key
    } else {
        other_key(ctx, &args, &place, &hint.repository)?
    };
    let target = Credential { location: place.clone(), store, key: target, key_file: None }.open(ctx).await?;
    let snapshots = opened.repository.snapshots().await?;
    let mut chosen = chosen(&snapshots, &args)?;
    leave_out_erased(ctx, &opened, &mut chosen);
    ctx.interrupt.ends_by_itself();
    let sums = copy(&opened, &target, &chosen).await;
    opened.progress.end();
    target.progress.end();
    Ok(print(ctx, &place, &sums?))
}

async fn is_repository(ctx: &Context, place: &Location) -> bool {
    match place.open(ctx).await {
        Ok(store) => RepositoryHint::read(&*store).await.is_ok(),
        Err(_) => false,
    }
}

fn other_key(
    ctx: &Context,
    args: &Args,
    place: &Location,
    id: &str,
) -> Result<keepwell_crypto::keyfile::KeyFile> {
    let remembered = || known::Known::load(ctx).ok()?.key_file(place, id).map(PathBuf::from);
    let file = args.to_key_file.clone().or_else(remembered);
    let file = file.unwrap_or_else(|| secret::default_key_file(ctx, id));
    if !file.exists() {
        let message = format!("there is no key at hand for the repository at `{place}`");
        return Err(Complaint::new(Exit::WrongKey, message).hint("Name it: `--to-key-file FILE`.").into());
    }
    secret::load_key(ctx, &secret::Origin::File(file))
}

fn chosen(snapshots: &[Snapshot], args: &Args) -> Result<Vec<Snapshot>> {
    if args.snapshots.is_empty() {
        return Ok(snapshots.iter().filter(|s| args.filter.accepts(s)).cloned().collect());
    }
    args.snapshots.iter().map(|name| select::select(snapshots, &args.filter, name).cloned()).collect()
}

fn leave_out_erased(ctx: &Context, opened: &Opened, chosen: &mut Vec<Snapshot>) {
    chosen.retain(|snapshot| match &snapshot.state {
        SnapshotState::Readable(manifest) if opened.repository.is_erased(manifest.domain) => {
            ctx.printer
                .say(format_args!("snapshot {} lies in an erased domain and is left out", snapshot.short()));
            false
        }
        _ => true,
    });
}

async fn copy(from: &Opened, to: &Opened, snapshots: &[Snapshot]) -> Result<Sums> {
    let mut sums = Sums::default();
    if from.repository.id() == to.repository.id() {
        let report = from.repository.copy_to_store(&to.repository, snapshots).await?;
        (sums.copied, sums.skipped, sums.bytes) = (report.copied.len(), report.skipped.len(), report.bytes);
        return Ok(sums);
    }
    let options = BackupOptions {
        program: concat!("keepwell ", env!("CARGO_PKG_VERSION")).to_owned(),
        ..BackupOptions::default()
    };
    let report = from.repository.copy_snapshots(&to.repository, snapshots, &options).await?;
    (sums.copied, sums.skipped) = (report.copied.len(), report.skipped.len());
    sums.failed = report.failed.into_iter().map(|(id, why)| (id.to_string(), why)).collect();
    for copied in &report.copied {
        sums.unread += copied.unread;
        sums.bytes += copied.report.statistics.new_stored_bytes;
    }
    Ok(sums)
}

fn print(ctx: &Context, place: &Location, sums: &Sums) -> Exit {
    let copied = text::count(sums.copied as u64, "snapshot", "snapshots");
    let stored = text::bytes(sums.bytes);
    ctx.printer
        .line(format_args!("copied {copied} to {place}, {stored}; {} were there already", sums.skipped));
    for (snapshot, why) in &sums.failed {
        ctx.printer.warn(format_args!("snapshot {} could not be copied: {why}", &snapshot[..8]));
    }
    if sums.unread > 0 {
        ctx.printer.warn(format_args!(
            "{} are damaged here and missing there",
            text::count(sums.unread, "item", "items")
        ));
    }
    let fields = json!({
        "copied": sums.copied,
        "skipped": sums.skipped,
        "failed": sums.failed.iter().map(|(id, why)| json!({ "snapshot": id, "message": why })).collect::<Vec<_>>(),
        "unread_items": sums.unread,
        "stored_bytes": sums.bytes,
    });
    ctx.printer.json("copy", fields);
    if !sums.failed.is_empty() || sums.unread > 0 { Exit::Damage } else { Exit::Done }
}
