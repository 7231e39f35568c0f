//! `keepwell key`.

mod enroll;
mod erase;
mod kit;
mod list;
mod passphrase;
mod revoke;

use anyhow::Result;
use backup_core::Repository;
use clap::Subcommand;
use keepwell_crypto::DomainId;
use serde_json::json;

use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open;
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell key kit --output kit.txt                   a recovery kit to print and lock away
  keepwell key enroll --name web1 --role writer       a credential that backs up and cannot decrypt
  keepwell key revoke web1                            and take it back
  keepwell key passphrase                             protect the key file";

const ROTATE_EXAMPLES: &str = "\
Example:
  keepwell key rotate      after a key file was lost or seen by others, and was revoked

Revoking rotates by itself. The old keys still open everything that was stored before,
wherever it is: take the access to the store away as well.";

const DOMAIN_EXAMPLES: &str = "\
Examples:
  keepwell key domain customer-17
  keepwell backup /srv/customers/17 --domain customer-17
  keepwell key erase customer-17             and nobody can read it any more";

/// Manage keys, members and recovery kits
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    List(list::Args),
    Enroll(enroll::Args),
    Revoke(revoke::Args),
    /// Seal everything that is written from now on to fresh keys
    ///
    /// Revoked members and removed owners do not get them. What is stored already stays readable to whoever could read it.
    #[command(after_help = ROTATE_EXAMPLES)]
    Rotate,
    Passphrase(passphrase::Args),
    Kit(kit::Args),
    /// Make a domain whose data can be erased by destroying its keys (`backup --domain NAME`)
    #[command(after_help = DOMAIN_EXAMPLES)]
    Domain {
        /// Its name
        #[arg(value_parser = text::key_name)]
        name: String,
    },
    Erase(erase::Args),
}

/// Runs `key`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    match args.action {
        Action::List(_) => list::run(ctx).await,
        Action::Enroll(args) => enroll::run(ctx, args).await,
        Action::Revoke(args) => revoke::run(ctx, args).await,
        Action::Rotate => rotate(ctx).await,
        Action::Passphrase(args) => passphrase::run(ctx, args).await,
        Action::Kit(args) => kit::run(ctx, args).await,
        Action::Domain { name } => create_domain(ctx, &name).await,
        Action::Erase(args) => erase::run(ctx, args).await,
    }
}

async fn rotate(ctx: &Context) -> Result<Exit> {
    let opened = open::repository(ctx).await?;
    opened.repository.rotate_keys().await?;
    ctx.printer.line("new data is sealed to fresh keys from now on");
    let snapshots = opened.repository.snapshots().await;
    opened.progress.end();
    let snapshots = text::count(snapshots?.len() as u64, "snapshot", "snapshots");
    ctx.printer.say(format_args!(
        "The old keys still open what is stored so far, wherever it is: {snapshots}, and archived WAL."
    ));
    ctx.printer.say("Whoever has them, and must not read it, must not get at the store.");
    ctx.printer.json("rotate", json!({}));
    Ok(Exit::Done)
}

async fn create_domain(ctx: &Context, name: &str) -> Result<Exit> {
    let opened = open::repository(ctx).await?;
    let id = opened.repository.create_domain(name).await?;
    opened.progress.end();
    ctx.printer.line(format_args!("made the erasable domain {name} ({id})"));
    ctx.printer.say(format_args!("Back up into it with `keepwell backup --domain {name} …`."));
    ctx.printer.json("domain", json!({ "id": id.to_string(), "name": name, "erased": false }));
    Ok(Exit::Done)
}

/// The erasable domain of a name or an id, if its keys still exist.
pub fn domain_named(repository: &Repository, name: &str) -> Result<DomainId> {
    let chain = repository.chain();
    let mut live = chain.domains().filter(|d| d.erasable && !chain.is_erased(&d.id));
    let found = live.find(|d| d.name == name || d.id.to_string() == name);
    found.map(|d| d.id).ok_or_else(|| {
        Complaint::usage(format!("there is no erasable domain `{name}`"))
            .hint("`keepwell key list` shows them; `keepwell key domain NAME` makes one.")
            .into()
    })
}
