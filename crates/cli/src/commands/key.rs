//! `keepwell key`.

use anyhow::Result;
use clap::Subcommand;

use crate::context::Context;
use crate::exit::Exit;

mod list;

/// Manage keys, members and recovery kits
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List owners, members and domains
    List,
}

/// Runs `key`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    match args.action {
        Action::List => list::run(ctx).await,
    }
}

/// The erasable domain of a name or an id.
pub fn domain_named(repository: &backup_core::Repository, name: &str) -> Result<keepwell_crypto::DomainId> {
    let chain = repository.chain();
    let found = chain.domains().filter(|d| d.erasable && !chain.is_erased(&d.id));
    let mut found = found.filter(|d| d.name == name || d.id.to_string() == name);
    found.next().map(|d| d.id).ok_or_else(|| {
        crate::exit::Complaint::usage(format!("there is no erasable domain `{name}`"))
            .hint("`keepwell key list` shows them; `keepwell key domain NAME` makes one.")
            .into()
    })
}
