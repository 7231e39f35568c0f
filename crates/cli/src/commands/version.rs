//! `keepwell version`.

use anyhow::Result;
use serde_json::json;

use crate::context::Context;
use crate::exit::Exit;

const EXAMPLES: &str = "\
Example:
  keepwell version --json";

/// Print the version of the program and of the repository format
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {}

/// Runs `version`.
pub fn run(ctx: &Context, _: Args) -> Result<Exit> {
    let version = env!("CARGO_PKG_VERSION");
    ctx.printer.line(format_args!("keepwell {version} (repository format 1)"));
    ctx.printer.json("version", json!({ "version": version, "format": 1 }));
    Ok(Exit::Done)
}
