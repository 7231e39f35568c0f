//! `key erase`.

use anyhow::Result;
use backup_core::Repository;
use keepwell_crypto::DomainId;
use serde_json::json;

use crate::confirm::confirm_by_name;
use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open;
use crate::text;

const EXAMPLES: &str = "\
Example:
  keepwell key erase customer-17 --copy-at /mnt/disk/backup

Erase in every copy of the repository that has the keys. Whoever kept a copy of them, or
of a member's memory, could still decrypt: the record names every holder that is known.";

/// Destroy the keys of an erasable domain: nobody can ever read its data again
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The domain
    domain: String,
    /// A further place where the keys are, for the record; may be repeated
    #[arg(long, value_name = "PLACE")]
    copy_at: Vec<String>,
}

/// Runs `key erase`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let opened = open::repository(ctx).await?;
    opened.progress.end();
    let domain = find(&opened.repository, &args.domain)?;
    let question = format!("Everything that was backed up into {} will be lost for ever.", args.domain);
    confirm_by_name(ctx, &question, &args.domain)?;
    let erased = opened.repository.erase_domain(domain, &args.copy_at).await?;
    let gone = text::count(erased.gone.len() as u64, "key object is", "key objects are");
    ctx.printer.line(format_args!("erased {} ({domain}): {gone} proven gone", args.domain));
    ctx.printer.say(format_args!("Nothing proves what these holders kept: {}", erased.holders.join(", ")));
    let fields = json!({
        "id": domain.to_string(),
        "name": args.domain,
        "gone": erased.gone,
        "holders": erased.holders,
        "copies": args.copy_at,
    });
    ctx.printer.json("erase", fields);
    Ok(Exit::Done)
}

/// Also one that is erased already: an interrupted erasure is completed by another.
fn find(repository: &Repository, name: &str) -> Result<DomainId> {
    let chain = repository.chain();
    let mut erasable = chain.domains().filter(|d| d.erasable);
    let found = erasable.find(|d| d.name == name || d.id.to_string() == name).map(|d| d.id);
    let missing = || Complaint::usage(format!("there is no erasable domain `{name}`"));
    Ok(found.ok_or_else(|| missing().hint("`keepwell key list` shows them."))?)
}
