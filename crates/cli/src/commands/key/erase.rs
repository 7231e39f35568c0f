//! `key erase`.

use anyhow::Result;
use backup_core::Repository;
use keepwell_crypto::DomainId;
use keepwell_crypto::trust::Domain;
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
    /// The domain: its name, or its id where several have had that
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
    ctx.printer.say(format_args!(
        "These had the keys, and may have kept them elsewhere: {}",
        erased.holders.join(", ")
    ));
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

/// Also one that is erased already: an interrupted erasure is completed by another, and a copy has the keys still. A name is
/// free again when its domain is erased; which of several is meant, only the id tells.
fn find(repository: &Repository, name: &str) -> Result<DomainId> {
    let chain = repository.chain();
    let is_meant = |d: &&Domain| d.erasable && (d.name == name || d.id.to_string() == name);
    let found: Vec<DomainId> = chain.domains().filter(is_meant).map(|d| d.id).collect();
    let complaint = match found[..] {
        [one] => return Ok(one),
        [] => Complaint::usage(format!("there is no erasable domain `{name}`")),
        _ => Complaint::usage(format!("`{name}` is not the only domain of this name; give the id")),
    };
    Err(complaint.hint("`keepwell key list` shows them.").into())
}

#[cfg(test)]
mod tests {
    use keepwell_storage::Memory;

    use super::*;
    use crate::testing;

    #[tokio::test]
    async fn of_two_domains_of_one_name_none_is_taken_for_the_other() {
        let repository = testing::repository(&Memory::new()).await;
        let first = repository.create_domain("customer").await.unwrap();
        assert_eq!(find(&repository, "customer").unwrap(), first);
        repository.erase_domain(first, &[]).await.unwrap();
        assert_eq!(find(&repository, "customer").unwrap(), first, "to be completed");
        let second = repository.create_domain("customer").await.unwrap();
        find(&repository, "customer").unwrap_err();
        for id in [first, second] {
            assert_eq!(find(&repository, &id.to_string()).unwrap(), id);
        }
        find(&repository, "other").unwrap_err();
    }
}
