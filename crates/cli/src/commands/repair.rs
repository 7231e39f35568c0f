//! `keepwell repair`.

use anyhow::Result;
use backup_core::{ReadData, RepairOptions, RepairReport};
use keepwell_catalog::names;
use keepwell_crypto::Digest;
use keepwell_crypto::keyfile::KeyFile;
use keepwell_crypto::trust::Chain;
use keepwell_storage::{ObjectStore, StorageErrorKind};
use serde_json::json;

use crate::confirm::{Unattended, confirm};
use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::location::Location;
use crate::open::{self, Credential, Opened};
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell repair --dry-run                     what is wrong
  keepwell repair --from /mnt/disk/backup       heal it from a copy
  keepwell repair --read-data --from /mnt/disk/backup

Nothing that is sound is given up: what was lost is stored again under new names, and
damaged objects go only then. What the last `check` on this host found damaged is read
again; --read-data reads everything. Exit code 13 means: something is still wrong.";

/// Heal damage, from what is left and from another copy
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Another copy of this repository, made by `copy`
    #[arg(long, value_name = "PLACE")]
    from: Option<String>,
    /// Read all content to find the damage
    #[arg(long)]
    read_data: bool,
    /// Also give up ends of sessions that cannot be read and whose session left no list. Nothing shows that they were no
    /// snapshots
    #[arg(long)]
    fence_unlisted: bool,
    /// Only show what is wrong
    #[arg(short = 'n', long)]
    dry_run: bool,
}

/// Runs `repair`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let read = if args.read_data { ReadData::Everything } else { ReadData::Nothing };
    let options = RepairOptions { read, fence_unlisted: args.fence_unlisted, ..RepairOptions::default() };
    let (opened, key) = match open_here(ctx).await {
        Err(error) if !args.dry_run && (open::is_about_the_place(&error) || is_set_back(&error)) => {
            let Some(from) = &args.from else { return Err(error) };
            restore_vital(ctx, from, &error).await?;
            open_here(ctx).await?
        }
        opened => opened?,
    };
    let found = opened.repository.examine(options.read).await;
    opened.progress.end();
    let found = found?;
    super::check::print(ctx, &found);
    if found.is_sound() && (args.dry_run || args.from.is_none()) {
        return Ok(Exit::Done);
    }
    if args.dry_run {
        return Ok(Exit::Damage);
    }
    // A snapshot that the store has lost without a trace is no damage to be seen here.
    let question = if found.is_sound() { "Take from the copy what this store lost?" } else { "Repair this?" };
    confirm(ctx, question, Unattended::Refuse)?;
    let copy = match &args.from {
        Some(place) => Some(open::copy(ctx, place, key).await?),
        None => None,
    };
    ctx.interrupt.ends_by_itself();
    opened.progress.begin();
    let report = opened.repository.repair_found(found, copy.as_ref().map(|c| &c.repository), options).await;
    opened.progress.end();
    let report = report?;
    print(ctx, &report);
    if report.after.is_sound() {
        return Ok(Exit::Done);
    }
    let complaint = Complaint::new(Exit::Damage, "not everything could be made good");
    Err(match args.from {
        None => complaint.hint("Another copy of the repository may have what is missing: `--from PLACE`."),
        Some(_) => complaint.hint("Neither store has what is missing; `check` lists what is affected."),
    }
    .into())
}

async fn open_here(ctx: &Context) -> Result<(Opened, KeyFile)> {
    let credential = open::credential(ctx).await?;
    let key = credential.key.clone();
    Ok((credential.open(ctx).await?, key))
}

/// Whether the store lacks a record of trust that this host has seen there: it may be lost, and the copy have it.
fn is_set_back(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<backup_core::Error>());
    causes.any(|error| matches!(error, backup_core::Error::TrustSetBack { .. }))
}

/// Puts back what a repository cannot be opened without.
async fn restore_vital(ctx: &Context, from: &str, error: &anyhow::Error) -> Result<()> {
    let location = open::location(ctx)?;
    let store = location.open(ctx).await?;
    let copy = open::credential_at(ctx, Location::parse(from)?, None).await?;
    refuse_another(ctx, &*store, &copy, from).await?;
    ctx.printer.warn(format_args!("the repository cannot be opened: {}", crate::exit::one_line(error)));
    confirm(ctx, &format!("Put back from `{from}` what opening {location} needs?"), Unattended::Refuse)?;
    for name in backup_core::restore_vital(&*store, &*copy.store, copy.key.genesis, ctx.now()).await? {
        ctx.printer.line(format_args!("put back {name}"));
        ctx.printer.json("put_back", json!({ "object": name.as_str() }));
    }
    Ok(())
}

/// Refuses what is a copy of another repository: its trust chain would take the place of the one here. By the key to this
/// place, if one is found, and by what the chain here begins with.
async fn refuse_another(ctx: &Context, store: &dyn ObjectStore, copy: &Credential, from: &str) -> Result<()> {
    let by_key = open::credential(ctx).await.ok().map(|own| own.key.genesis);
    let mut here = by_key.into_iter().chain(beginning(store).await?);
    if here.all(|genesis| genesis == copy.key.genesis) {
        return Ok(());
    }
    let complaint = Complaint::failed(format!("`{from}` is a copy of another repository than this one"));
    Err(complaint
        .hint("If it is none, somebody has replaced `trust/0000000000` here: remove that, and repair again.")
        .into())
}

/// More than any record of trust has.
const TRUST_MAX: u64 = 4 << 20;

/// The fingerprint of the repository whose chain begins in a store, if one does.
async fn beginning(store: &dyn ObjectStore) -> Result<Option<Digest>> {
    match store.get_at_most(&names::trust_key(0), TRUST_MAX).await {
        Ok(bytes) => Ok(Chain::load([bytes], None).ok().map(|chain| chain.fingerprint())),
        Err(error) if error.is_not_found() || error.kind == StorageErrorKind::TooLarge => Ok(None),
        Err(error) => Err(backup_core::Error::from(error).into()),
    }
}

fn print(ctx: &Context, report: &RepairReport) {
    ctx.printer.line(format_args!(
        "put back {}, listed {} again, replaced {}, restored {} and {}",
        text::count(report.records_restored, "record", "records"),
        text::count(report.packs_indexed, "pack", "packs"),
        text::count(report.packs_replaced, "pack", "packs"),
        text::count(report.chunks_restored, "chunk", "chunks"),
        text::count(report.snapshots_restored, "snapshot", "snapshots"),
    ));
    if report.after.is_sound() {
        ctx.printer.line(ctx.printer.colored("32", "no damage is left"));
    } else {
        super::check::print(ctx, &report.after);
    }
    let fields = json!({
        "sound": report.after.is_sound(),
        "records_restored": report.records_restored,
        "ends_fenced": report.ends_fenced,
        "packs_indexed": report.packs_indexed,
        "packs_replaced": report.packs_replaced,
        "chunks_restored": report.chunks_restored,
        "snapshots_restored": report.snapshots_restored,
        "findings": report.after.findings.len(),
    });
    ctx.printer.json("repair", fields);
}
