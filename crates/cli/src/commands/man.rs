//! `keepwell man`.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::CommandFactory;

use crate::args::Arguments;
use crate::exit::Exit;

const EXAMPLES: &str = "\
Examples:
  keepwell man | man -l -                       read the main page
  keepwell man --directory /usr/share/man/man1  install all pages";

/// Print the manual page, or write all of them
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Write a page for every command into this directory
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

/// Runs `man`.
pub fn run(args: Args) -> Result<Exit> {
    let command = Arguments::command();
    match args.directory {
        Some(directory) => {
            std::fs::create_dir_all(&directory)
                .with_context(|| format!("create `{}`", directory.display()))?;
            clap_mangen::generate_to(command, &directory)
                .with_context(|| format!("write the pages into `{}`", directory.display()))?;
        }
        None => {
            clap_mangen::Man::new(command).render(&mut crate::printer::Output).context("write the page")?
        }
    }
    Ok(Exit::Done)
}
