//! `keepwell init`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use backup_core::{CreateOptions, Created};
use keepwell_crypto::RepositoryId;
use keepwell_storage::{ObjectStore, Role};
use serde_json::json;

use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::known;
use crate::location::Location;
use crate::secret::{self, Protection};
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell init                            in your data directory
  keepwell -r /mnt/disk/backup init        on a disk
  keepwell -r /srv/b init --passphrase     with a key file under a passphrase

The key file is the only way into the repository: keep a copy elsewhere.
`keepwell key kit` prints one that can be locked away.";

/// Make a repository and its key
///
/// Makes one key file, readable by you alone, that opens everything. Later commands find it by themselves. The key never
/// leaves this machine: who loses it loses the backups.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Protect the key file by a passphrase
    #[arg(long)]
    passphrase: bool,
    /// Name of the owner in the key file and on the recovery kit [default: user@host]
    #[arg(long, value_name = "NAME", value_parser = text::key_name)]
    owner: Option<String>,
}

/// Runs `init`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let location = Location::named(ctx)?.unwrap_or_else(|| Location::default_of(ctx));
    let protection = if args.passphrase { Protection::Passphrase } else { Protection::Plain };
    let made = create(ctx, &location, protection, args.owner).await?;
    let (id, key_file) = (made.id, made.key_file.display());
    ctx.printer.line(format_args!("made repository {id} at {location}"));
    ctx.printer.line(format_args!("its key is in {key_file}"));
    ctx.printer.say("Without this key nobody can restore anything, you included. Keep a copy elsewhere:");
    ctx.printer.say("  keepwell key kit --output kit.txt   writes a recovery kit to print and lock away");
    let fields = json!({
        "repository": id.to_string(),
        "location": location.to_string(),
        "key_file": made.key_file.to_string_lossy(),
        "findings": made.findings,
    });
    ctx.printer.json("init", fields);
    Ok(Exit::Done)
}

/// A new repository.
#[derive(Debug)]
pub struct Made {
    /// Its id.
    pub id: RepositoryId,
    /// Where its key is.
    pub key_file: PathBuf,
    /// What the test of the store found.
    pub findings: Vec<String>,
}

/// Makes a repository and saves its key, the key first.
pub async fn create(
    ctx: &Context,
    location: &Location,
    protection: Protection,
    owner: Option<String>,
) -> Result<Made> {
    // First: to a store that is to be made, what a repository without `keepwell.json` holds is foreign.
    if location.is_repository(ctx).await? {
        return Err(backup_core::Error::RepositoryExists { place: format!("`{location}`") }.into());
    }
    let store = location.create(ctx).await?;
    let probe = location.probe(ctx, Role::Keeper).await.context("test the store")?;
    for finding in probe.findings.iter().chain(&probe.notes) {
        ctx.printer.verbose(finding);
    }
    for problem in &probe.problems {
        ctx.printer.warn(problem);
    }
    if let Some(problem) = probe.bucket.as_ref().and_then(|bucket| bucket.lifecycle_problems.first()) {
        let complaint = Complaint::new(Exit::Failed, problem.clone());
        return Err(complaint
            .hint("Nothing was made. Change the rule, then run `keepwell init` again.")
            .into());
    }
    let options = CreateOptions {
        owner: owner.unwrap_or_else(|| user_and_host(ctx)),
        member: ctx.host(),
        store_hint: Some(location.to_string()),
        probe: serde_json::to_value(&probe).ok(),
    };
    let created = Created::generate(&options, ctx.now())?;
    let id = created.key_file().repository;
    let key_file =
        secret::named_key_file(ctx).unwrap_or_else(|| secret::default_key_file(ctx, &id.to_string()));
    let key_file = std::path::absolute(&key_file).unwrap_or(key_file);
    secret::refuse_inside(location, &key_file, "--key-file FILE")?;
    secret::save_key(ctx, &key_file, created.key_file(), protection)?;
    store_objects(created, &*store, &key_file).await?;
    known::remember(ctx, location, id, &key_file)?;
    Ok(Made { id, key_file, findings: probe.findings })
}

async fn store_objects(created: Created, store: &dyn ObjectStore, key_file: &Path) -> Result<()> {
    let stored = created.store(store).await;
    stored.map(drop).with_context(|| {
        format!("the repository was not made (its key is in `{}`, and of no use now)", key_file.display())
    })
}

fn user_and_host(ctx: &Context) -> String {
    let uid = rustix::process::getuid().as_raw().to_string();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let user = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    });
    format!("{}@{}", user.unwrap_or(uid), ctx.host())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::{exit_of, hints_of};

    #[tokio::test(flavor = "multi_thread")]
    async fn what_has_lost_its_hint_is_to_be_repaired_and_what_is_no_repository_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let ctx = Context::of_profiles("");
        for (left, exit, advice) in [
            ("commits/0123456789abcdef", Exit::Damage, "keepwell repair --from"),
            ("photos/2026", Exit::Failed, "empty or a new directory"),
        ] {
            let place = dir.path().join(left);
            std::fs::create_dir_all(&place).unwrap();
            std::fs::write(place.join("0000000001"), "x").unwrap();
            let repository = place.parent().and_then(Path::parent).unwrap();
            let location = Location::parse(repository.to_str().unwrap()).unwrap();
            let error = create(&ctx, &location, Protection::Plain, None).await.unwrap_err();
            assert!(hints_of(&error).concat().contains(advice), "{error:?}");
            assert_eq!(exit_of(&error), exit, "{error:?}");
            std::fs::remove_dir_all(place.parent().unwrap()).unwrap();
        }
    }
}
