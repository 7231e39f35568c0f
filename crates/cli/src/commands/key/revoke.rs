//! `key revoke`.

use anyhow::Result;
use keepwell_crypto::MemberId;
use keepwell_crypto::trust::{Chain, Member};
use serde_json::json;

use crate::confirm::{Unattended, confirm};
use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open;

const EXAMPLES: &str = "\
Examples:
  keepwell key revoke web1                what it backed up so far stays
  keepwell key revoke web1 --refuse-all   nor that: its host was taken over
  keepwell key revoke web1 --from 41      what it backed up before number 41 stays
  keepwell key revoke bob                 an owner

Then the keys are rotated: what is written from now on, the revoked cannot read. What it
could read before it still can, if it gets at the store: take that access away as well.";

/// Take a credential back
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name or id, as `key list` shows it
    who: String,
    /// Also refuse what it backed up so far
    #[arg(long)]
    refuse_all: bool,
    /// Also refuse what it backed up from this number on, the SEQ that `show` says
    #[arg(long, value_name = "SEQ", conflicts_with = "refuse_all")]
    from: Option<u64>,
    /// Why, for the record
    #[arg(long, default_value = "")]
    reason: String,
}

enum Found {
    Member(MemberId),
    Owner(MemberId),
}

/// Runs `key revoke`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let opened = open::repository(ctx).await?;
    opened.progress.end();
    let repository = &opened.repository;
    let found = find(&repository.chain(), &args.who)?;
    confirm(ctx, &format!("Revoke {} and rotate the keys?", args.who), Unattended::RefuseUnseen)?;
    let (id, first_refused) = match found {
        Found::Member(id) => {
            if repository.access().member() == Some(id) && !repository.access().is_owner() {
                let complaint = Complaint::failed("a member cannot revoke itself");
                return Err(complaint.hint("Use the key file of an owner.").into());
            }
            let first_refused = args.from.or(args.refuse_all.then_some(0));
            let from = repository.revoke(id, first_refused, &args.reason).await?;
            repository.rotate_keys().await?;
            (id, Some(from))
        }
        Found::Owner(id) => {
            repository.remove_owner(id).await?;
            (id, None)
        }
    };
    ctx.printer.line(format_args!("revoked {} ({id}) and rotated the keys", args.who));
    match first_refused {
        Some(0) => ctx.printer.say("Nothing that it backed up counts any more."),
        Some(from) if args.from.is_some() => {
            ctx.printer.say(format_args!("What it backed up before number {from} stays."));
        }
        Some(_) => ctx.printer.say("What it backed up so far stays."),
        None => {}
    }
    ctx.printer.json("revoke", json!({ "id": id.to_string(), "first_refused": first_refused }));
    Ok(Exit::Done)
}

fn find(chain: &Chain, who: &str) -> Result<Found> {
    let is = |name: &str, id: MemberId| name == who || id.to_string() == who;
    let members = chain.members().filter(|m| is(&m.name, m.id()));
    let (in_force, revoked): (Vec<_>, Vec<_>) =
        members.map(Member::id).partition(|id| chain.revoked_from(id).is_none());
    let owners = chain.owners().filter(|o| is(&o.name, o.id())).map(|o| Found::Owner(o.id()));
    let former = chain.former_owners().filter(|o| is(&o.name, o.id())).map(|o| Found::Owner(o.id()));
    let mut found: Vec<Found> = in_force.into_iter().map(Found::Member).chain(owners).collect();
    if found.is_empty() {
        // A revocation that was interrupted before the keys were rotated is completed by another.
        found.extend(revoked.into_iter().map(Found::Member).chain(former));
    }
    match (found.pop(), found.is_empty()) {
        (Some(one), true) => Ok(one),
        (Some(_), false) => Err(Complaint::usage(format!("`{who}` is not the only one; give the id")).into()),
        (None, _) => {
            let complaint = Complaint::usage(format!("nobody is called `{who}`"));
            Err(complaint.hint("`keepwell key list` shows everybody.").into())
        }
    }
}
