//! `key passphrase`.

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open;
use crate::secret::{self, NewPassphrase};

const EXAMPLES: &str = "\
Examples:
  keepwell key passphrase            set or change it
  keepwell key passphrase --remove
  keepwell key passphrase --new-passphrase-file new.txt";

/// Set, change or remove the passphrase of a key file
///
/// Only this file changes. Copies of it, and recovery kits, stay as they are.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Store the key file without a passphrase
    #[arg(long, conflicts_with_all = ["new_passphrase_file", "new_passphrase_command"])]
    remove: bool,
    #[command(flatten)]
    new_passphrase: NewPassphrase,
}

/// Runs `key passphrase`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let credential = open::credential(ctx).await?;
    let Some(path) = &credential.key_file else {
        return Err(Complaint::usage("the key does not come from a file")
            .hint("Name the file that is to change: `--key-file FILE`.")
            .into());
    };
    let text = if args.remove {
        credential.key.to_toml()
    } else {
        let passphrase = args.new_passphrase.read(ctx)?;
        keepwell_crypto::Secret::new(credential.key.protect(&passphrase).context("protect the key file")?)
    };
    secret::replace_private(path, &text)?;
    let what = if args.remove { "has no passphrase any more" } else { "is under the new passphrase" };
    ctx.printer.line(format_args!("{} {what}", path.display()));
    ctx.printer.json("passphrase", json!({ "key_file": path.to_string_lossy(), "protected": !args.remove }));
    Ok(Exit::Done)
}
