//! `key enroll`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use backup_core::Repository;
use clap::ValueEnum;
use keepwell_crypto::keyfile::KeyFile;
use keepwell_crypto::trust::{Member, Owner, Roles};
use keepwell_crypto::{Secret, SigningKey};
use serde_json::json;

use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open;
use crate::secret::{self, NewPassphrase};
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell key enroll --name web1 --role writer      backs up, cannot decrypt, cannot remove
  keepwell key enroll --name desk --role writer --role reader
  keepwell key enroll --name vault --role keeper     forgets and prunes; can read
  keepwell key enroll --name bob --role owner        reads everything, manages keys
  keepwell key enroll --name web2 --role writer --new-passphrase-file web2.txt

Give the file that this writes to whom it is for, and delete it here. There is no other copy.";

/// Make a credential for another host or person
#[derive(Debug, clap::Args)]
#[command(visible_alias = "add", after_help = EXAMPLES)]
pub struct Args {
    /// What it is for: a host, a person, a service
    #[arg(long, value_parser = text::key_name)]
    name: String,
    /// What it may do; may be repeated
    #[arg(long, required = true)]
    role: Vec<Role>,
    /// Where to write the key file [default: beside the other keys]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Protect the new key file by a passphrase of its own, which is asked for
    #[arg(long)]
    passphrase: bool,
    #[command(flatten)]
    new_passphrase: NewPassphrase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    /// Backs up and deduplicates; cannot decrypt
    Writer,
    /// Lists, restores, verifies
    Reader,
    /// Forgets and prunes; can read
    Keeper,
    /// Lists, restores, verifies; manages keys
    Owner,
}

/// Runs `key enroll`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let opened = open::repository(ctx).await?;
    let (repository, hint) = (&opened.repository, Some(opened.location.to_string()));
    let path = args.output.unwrap_or_else(|| secret::member_key_file(ctx, repository.id(), &args.name));
    secret::refuse_inside(&opened.location, &path, "--output FILE")?;
    let roles = roles(&args.role)?;
    let key = match path.exists() {
        true => interrupted(ctx, repository, &path, &args.name, roles, &args.new_passphrase)?,
        false => {
            let key = match roles {
                Some(roles) => repository.new_member(&args.name, roles, hint)?,
                None => repository.new_owner(&args.name, hint)?,
            };
            // Never that of the credential at hand: the file is for somebody else.
            let text = match args.passphrase || args.new_passphrase.is_named() {
                true => {
                    let passphrase = args.new_passphrase.read(ctx)?;
                    Secret::new(key.protect(&passphrase).context("protect the key file")?)
                }
                false => key.to_toml(),
            };
            secret::write_private(&path, &text)?; // first: nobody must count whose key is lost
            key
        }
    };
    let counts = match roles {
        Some(_) => repository.enroll(&key).await,
        None => repository.add_owner(&key).await,
    };
    opened.progress.end();
    counts.with_context(|| {
        format!("the key in `{}` may not be enrolled yet: run the same command again", path.display())
    })?;
    let names: Vec<String> = args.role.iter().map(|r| format!("{r:?}").to_lowercase()).collect();
    ctx.printer.line(format_args!("enrolled {} as {}", args.name, names.join(", ")));
    ctx.printer.line(format_args!("its key is in {}", path.display()));
    ctx.printer.say("Hand it over safely, then delete it here: there is no other copy.");
    if args.role == [Role::Writer] {
        ctx.printer.say("This credential backs up and deduplicates. It cannot read a byte of what it wrote.");
    }
    ctx.printer
        .json("enroll", json!({ "name": args.name, "roles": names, "key_file": path.to_string_lossy() }));
    Ok(Exit::Done)
}

/// The key that an enrolment of this name and these roles left when it was interrupted; `None` is that of an owner. No other
/// may count: it would give more than was asked for, or be somebody else's, who put it there before.
fn interrupted(
    ctx: &Context,
    repository: &Repository,
    path: &Path,
    name: &str,
    roles: Option<Roles>,
    passphrase: &NewPassphrase,
) -> Result<KeyFile> {
    let exists = || {
        Complaint::failed(format!("`{}` exists already", path.display()))
            .hint("Move it away, or name another file with `--output`.")
    };
    let key = secret::load_own_key(ctx, path, passphrase).map_err(|_| exists())?;
    let has_roles = match (&key.member, &key.owner) {
        (Some(member), None) => roles == Some(member.roles),
        (None, Some(_)) => roles.is_none(),
        _ => false,
    };
    let chain = repository.chain();
    let mut known = chain.members().map(Member::id).chain(chain.owners().map(Owner::id));
    let keys = key.member.as_ref().map(|m| &m.signing).or(key.owner.as_ref().map(|o| &o.root));
    let id = keys.map(SigningKey::member_id);
    let is_known = known.any(|known| Some(known) == id);
    if key.repository != repository.id() || key.name != name || !has_roles || is_known {
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

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use keepwell_storage::Memory;

    use super::*;
    use crate::testing;

    #[tokio::test]
    async fn only_the_enrolment_that_was_interrupted_goes_on() {
        let ctx = Context::of_profiles("");
        let repository = testing::repository(&Memory::new()).await;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.key");
        let keeper = repository.new_member("web", Roles::KEEPER, None).unwrap();
        secret::write_private(&path, &keeper.to_toml()).unwrap();
        let none = NewPassphrase::default();
        let goes_on = |name: &str, roles: Option<Roles>| {
            interrupted(&ctx, &repository, &path, name, roles, &none).is_ok()
        };
        assert!(goes_on("web", Some(Roles::KEEPER)));
        assert!(!goes_on("web", Some(Roles::WRITER)), "it could read, and would be called a writer");
        assert!(!goes_on("web", Some(Roles::KEEPER | Roles::WRITER)));
        assert!(!goes_on("web", None));
        assert!(!goes_on("desk", Some(Roles::KEEPER)));
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert!(!goes_on("web", Some(Roles::KEEPER)), "others may know it");
    }
}
