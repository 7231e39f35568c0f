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
    let command = explained(Arguments::command());
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

/// With what `-h` leaves out for want of room: pages have it, and the generator does not explain what is hidden there.
fn explained(command: clap::Command) -> clap::Command {
    command.mut_args(|option| option.hide_short_help(false)).mut_subcommands(explained)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_of_a_page_is_explained() {
        let pages = tempfile::tempdir().unwrap();
        clap_mangen::generate_to(explained(Arguments::command()), pages.path()).unwrap();
        for page in ["keepwell.1", "keepwell-backup.1", "keepwell-pg-restore.1"] {
            let text = std::fs::read_to_string(pages.path().join(page)).unwrap();
            for told in ["A shell command that prints the key file", "Draw no progress bar"] {
                assert!(text.contains(told), "{page} does not say: {told}");
            }
        }
    }
}
