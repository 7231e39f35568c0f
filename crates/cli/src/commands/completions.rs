//! `keepwell completions`.

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Arguments;
use crate::exit::Exit;

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
    clap_complete::generate(args.shell, &mut Arguments::command(), "keepwell", &mut crate::printer::Output);
    Ok(Exit::Done)
}
