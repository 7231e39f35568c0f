//! `key enroll`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use backup_core::Repository;
use clap::ValueEnum;
use keepwell_crypto::SigningKey;
use keepwell_crypto::keyfile::KeyFile;
use keepwell_crypto::trust::{Member, Owner, Roles};
use serde_json::json;

use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open;
use crate::secret::{self, Origin, Protection};

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
    let roles = roles(&args.role)?;
    let key = match path.exists() {
        true => interrupted(ctx, repository, &path, &args.name)?,
        false => {
            let key = match roles {
                Some(roles) => repository.new_member(&args.name, roles, hint)?,
                None => repository.new_owner(&args.name, hint)?,
            };
            let protection = if args.passphrase { Protection::Passphrase } else { Protection::Plain };
            secret::save_key(ctx, &path, &key, protection)?; // first: nobody must count whose key is lost
            key
        }
    };
    let counts = match roles {
        Some(_) => repository.enroll(&key).await,
        None => repository.add_owner(&key).await,
    };
    opened.progress.end();
    counts.with_context(|| format!("`{}` may not count yet; give the same command again", path.display()))?;
    let names: Vec<String> = args.role.iter().map(|r| format!("{r:?}").to_lowercase()).collect();
    ctx.printer.line(format_args!("enrolled {} as {}", args.name, names.join(", ")));
    ctx.printer.line(format_args!("its key is in {}", path.display()));
    ctx.printer.say("Hand it over by a safe way and delete it here; there is no other copy.");
    if args.role == [Role::Writer] {
        ctx.printer.say("This credential backs up and deduplicates. It cannot read a byte of what it wrote.");
    }
    ctx.printer
        .json("enroll", json!({ "name": args.name, "roles": names, "key_file": path.to_string_lossy() }));
    Ok(Exit::Done)
}

/// The key that an enrolment of this name left when it was interrupted.
fn interrupted(ctx: &Context, repository: &Repository, path: &Path, name: &str) -> Result<KeyFile> {
    let exists = || {
        Complaint::failed(format!("`{}` exists already", path.display()))
            .hint("Move it away, or name another file with `--output`.")
    };
    let key = secret::load_key(ctx, &Origin::File(path.to_path_buf())).map_err(|_| exists())?;
    let chain = repository.chain();
    let mut known = chain.members().map(Member::id).chain(chain.owners().map(Owner::id));
    let keys = key.member.as_ref().map(|m| &m.signing).or(key.owner.as_ref().map(|o| &o.root));
    let id = keys.map(SigningKey::member_id);
    if key.repository != repository.id() || key.name != name || known.any(|known| Some(known) == id) {
        return Err(exists().into());
    }
    ctx.printer.say(format_args!("going on with the key in {}", path.display()));
    Ok(key)
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
