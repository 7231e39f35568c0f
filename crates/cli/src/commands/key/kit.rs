//! `key kit`.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use keepwell_crypto::Secret;
use keepwell_crypto::keyfile::protect_text;
use serde_json::json;

use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::secret::NewPassphrase;
use crate::{open, secret};

const EXAMPLES: &str = "\
Examples:
  keepwell key kit | lpr
  keepwell key kit --output /media/usb/kit.txt
  keepwell key kit --output kit.txt --new-passphrase-file passphrase.txt

The kit is a key file: `keepwell --key-file kit.txt restore latest --target DIR`.";

/// Print a recovery kit: the owner's keys and what to do with them
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Write it to a new file that only you can read
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Protect it by a passphrase, which is asked for
    #[arg(long)]
    passphrase: bool,
    #[command(flatten)]
    new_passphrase: NewPassphrase,
}

/// Runs `key kit`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let credential = open::credential(ctx).await?;
    let kit = credential.key.recovery_kit_text().map_err(|error| {
        Complaint::new(Exit::WrongKey, error.to_string())
            .hint("Use the key file of an owner: that of `init`.")
    })?;
    let kit = match args.passphrase || args.new_passphrase.is_named() {
        true => Secret::new(protect_text(&kit, &args.new_passphrase.read(ctx)?).context("protect the kit")?),
        false => kit,
    };
    match &args.output {
        Some(path) => {
            secret::refuse_inside(&credential.location, path, "--output FILE")?;
            secret::write_private(path, &kit)?;
            ctx.printer.line(format_args!("wrote the recovery kit to {}", path.display()));
            ctx.printer.json("kit", json!({ "file": path.to_string_lossy() }));
        }
        None => {
            ctx.printer.raw(kit.expose().as_bytes()).context("write the kit")?;
            secret::warn_if_output_is_public(ctx);
        }
    }
    Ok(Exit::Done)
}
