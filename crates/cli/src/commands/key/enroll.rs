//! `key enroll`.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use keepwell_crypto::trust::Roles;
use serde_json::json;

use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open;
use crate::secret::{self, Protection};

const EXAMPLES: &str = "\
Examples:
  keepwell key enroll --name web1 --role writer      backs up, cannot decrypt, cannot remove
  keepwell key enroll --name desk --role writer --role reader
  keepwell key enroll --name vault --role keeper     forgets and prunes; can read
  keepwell key enroll --name bob --role owner        may do everything, also enroll

Give the file that this writes to whom it is for, and delete it here. There is no other copy.";

/// Make a credential for another host or person
#[derive(Debug, clap::Args)]
#[command(visible_alias = "add", after_help = EXAMPLES)]
pub struct Args {
    /// What it is for: a host, a person, a service
    #[arg(long)]
    name: String,
    /// What it may do; may be repeated
    #[arg(long, required = true)]
    role: Vec<Role>,
    /// Where to write the key file [default: beside the other keys]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Protect the new key file by a passphrase
    #[arg(long)]
    passphrase: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    /// Backs up and deduplicates; cannot decrypt
    Writer,
    /// Lists, restores, verifies
    Reader,
    /// Forgets and prunes; can read
    Keeper,
    /// Everything, also managing keys
    Owner,
}

/// Runs `key enroll`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let opened = open::repository(ctx).await?;
    let (repository, hint) = (&opened.repository, Some(opened.location.to_string()));
    let path = args.output.unwrap_or_else(|| secret::member_key_file(ctx, repository.id(), &args.name));
    if path.exists() {
        return Err(Complaint::failed(format!("`{}` exists already", path.display())).into());
    }
    let key = match roles(&args.role)? {
        Some(roles) => repository.enroll(&args.name, roles, hint).await?,
        None => repository.add_owner(&args.name, hint).await?,
    };
    opened.progress.end();
    let protection = if args.passphrase { Protection::Passphrase } else { Protection::Plain };
    secret::save_key(ctx, &path, &key, protection)?;
    let names: Vec<String> = args.role.iter().map(|r| format!("{r:?}").to_lowercase()).collect();
    ctx.printer.line(format_args!("enrolled {} as {}", args.name, names.join(", ")));
    ctx.printer.line(format_args!("its key is in {}", path.display()));
    ctx.printer.say("Hand it over by a safe way and delete it here; there is no other copy.");
    if args.role == [Role::Writer] {
        ctx.printer.say("This credential backs up and deduplicates. It cannot read a byte of what it wrote.");
    }
    ctx.printer.json("enroll", json!({ "name": args.name, "roles": names, "key_file": path }));
    Ok(Exit::Done)
}

/// `None` is an owner.
fn roles(given: &[Role]) -> Result<Option<Roles>> {
    let bits = given.iter().map(|role| match role {
        Role::Writer => Roles::WRITER.bits(),
        Role::Reader => Roles::READER.bits(),
        Role::Keeper => Roles::KEEPER.bits(),
        Role::Owner => 0,
    });
    let bits = bits.fold(0, |sum, bit| sum | bit);
    match (given.contains(&Role::Owner), Roles::from_bits(bits)) {
        (true, None) => Ok(None),
        (true, Some(_)) => {
            Err(Complaint::usage("an owner has no other role; enroll a member beside it").into())
        }
        (false, roles) => Ok(roles),
    }
}
