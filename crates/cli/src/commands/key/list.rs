//! `key list`.

use anyhow::Result;
use keepwell_crypto::MemberId;
use keepwell_crypto::trust::Chain;
use serde_json::json;

use crate::context::Context;
use crate::exit::Exit;
use crate::open;
use crate::table::{Align, Table};

const EXAMPLES: &str = "\
Examples:
  keepwell key list
  keepwell key list --json";

/// List owners, members and erasable domains
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {}

/// Shows who holds keys, as the trust chain says.
pub async fn run(ctx: &Context) -> Result<Exit> {
    let opened = open::repository(ctx).await?;
    opened.progress.end();
    let (chain, own) = (opened.repository.chain(), opened.repository.access().member());
    let mut table =
        Table::new(&[("Id", Align::Left), ("Name", Align::Left), ("Role", Align::Left), ("", Align::Left)]);
    for owner in chain.owners() {
        let id = owner.id().to_string();
        ctx.printer.json("owner", json!({ "id": id, "name": owner.name }));
        table.row(vec![id, owner.name.clone(), "owner".to_owned(), String::new()]);
    }
    for member in chain.members() {
        let (id, revoked) = (member.id(), chain.revoked_from(&member.id()));
        let roles: Vec<_> = member.roles.names().collect();
        let fields =
            json!({ "id": id.to_string(), "name": member.name, "roles": roles, "revoked_from": revoked });
        ctx.printer.json("member", fields);
        table.row(vec![id.to_string(), member.name.clone(), roles.join(", "), mark(&chain, id, own)]);
    }
    for line in table.lines() {
        ctx.printer.line(line);
    }
    domains(ctx, &chain);
    ctx.printer.line(format_args!("genesis fingerprint: {}", chain.fingerprint()));
    ctx.printer.json("fingerprint", json!({ "genesis": chain.fingerprint().to_string() }));
    Ok(Exit::Done)
}

fn mark(chain: &Chain, id: MemberId, own: Option<MemberId>) -> String {
    match chain.revoked_from(&id) {
        Some(0) => "revoked".to_owned(),
        Some(from) => format!("revoked from its session {from} on"),
        None if own == Some(id) => "this credential".to_owned(),
        None => String::new(),
    }
}

fn domains(ctx: &Context, chain: &Chain) {
    for domain in chain.domains().filter(|d| d.erasable) {
        let unproven = chain.unproven_keys(&domain.id).count();
        let state = state(chain.is_erased(&domain.id), unproven);
        ctx.printer.line(format_args!("domain {} {} ({state})", domain.id, domain.name));
        let fields = json!({
            "id": domain.id.to_string(),
            "name": domain.name,
            "erased": chain.is_erased(&domain.id),
            "unproven_keys": unproven,
        });
        ctx.printer.json("domain", fields);
    }
}

/// What became of a domain of which so many key objects are announced to go and not proven gone.
fn state(is_erased: bool, unproven: usize) -> &'static str {
    match (is_erased, unproven) {
        (false, _) => "erasable",
        (true, 0) => "erased",
        (true, _) => "its erasure was interrupted: erase it again",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_only_announced_is_not_called_erased() {
        assert_eq!([state(false, 0), state(true, 0)], ["erasable", "erased"]);
        assert!(state(true, 2).contains("interrupted"));
    }
}
