//! `keepwell completions`.

use std::io::Write;

use anyhow::{Context as _, Result};
use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Arguments;
use crate::exit::Exit;
use crate::printer::Output;

const EXAMPLES: &str = "\
Examples:
  keepwell completions bash > ~/.local/share/bash-completion/completions/keepwell
  keepwell completions fish > ~/.config/fish/completions/keepwell.fish
  keepwell completions zsh > ~/.zfunc/_keepwell";

/// Print completions for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The shell
    shell: Shell,
}

/// Runs `completions`.
pub fn run(args: Args) -> Result<Exit> {
    // It panics where its output cannot be written.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Arguments::command(), "keepwell", &mut script);
    Output.write_all(&script).context("write the completions")?;
    Ok(Exit::Done)
}
