//! The command line as a whole. Each command's own arguments stand in its file.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::commands;

const EXAMPLES: &str = "\
Examples:
  keepwell backup ~/documents             back up, into the default repository if none is named
  keepwell snapshots                      what there is
  keepwell ls latest:/home/me/documents   what is in it
  keepwell restore latest --target /tmp/back
  keepwell -r /mnt/disk/backup init       make a repository elsewhere
  keepwell forget --keep-daily 14 --keep-monthly 12 --prune

The repository is that of --repository, KEEPWELL_REPOSITORY, the profile, or
else the one in your data directory. `keepwell help COMMAND` has the details.";

/// Back up files, encrypted and deduplicated, and get them back.
#[derive(Debug, Parser)]
#[command(name = "keepwell", version, after_help = EXAMPLES, max_term_width = 100, disable_help_subcommand = false)]
pub struct Arguments {
    /// Options of every command.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// The repository: a directory, or s3://…, gs://…, azblob://…, sftp://…, webdav://… [KEEPWELL_REPOSITORY]
    #[arg(short, long, visible_alias = "repo", global = true, value_name = "PLACE")]
    pub repository: Option<String>,
    /// The file with the key to the repository [KEEPWELL_KEY_FILE]
    #[arg(long, visible_alias = "key", global = true, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// A shell command that prints the key file [KEEPWELL_KEY_COMMAND]
    #[arg(long, global = true, value_name = "COMMAND", hide_short_help = true, conflicts_with = "key_file")]
    pub key_command: Option<String>,
    /// An open file descriptor to read the key file from [KEEPWELL_KEY_FD]
    #[arg(long, global = true, value_name = "NUMBER", hide_short_help = true, conflicts_with_all = ["key_file", "key_command"])]
    pub key_fd: Option<u32>,
    /// A file with the passphrase of the key file [KEEPWELL_PASSPHRASE_FILE]
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub passphrase_file: Option<PathBuf>,
    /// A shell command that prints the passphrase [KEEPWELL_PASSPHRASE_COMMAND]
    #[arg(long, global = true, value_name = "COMMAND", hide_short_help = true)]
    pub passphrase_command: Option<String>,
    /// An open file descriptor to read the passphrase from [KEEPWELL_PASSPHRASE_FD]
    #[arg(long, global = true, value_name = "NUMBER", hide_short_help = true)]
    pub passphrase_fd: Option<u32>,
    /// The configuration [KEEPWELL_CONFIG; default $XDG_CONFIG_HOME/keepwell/config.toml]
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub config: Option<PathBuf>,
    /// The profile of the configuration to use [KEEPWELL_PROFILE; default `default`]
    #[arg(long, global = true, value_name = "NAME")]
    pub profile: Option<String>,
    /// Where to cache indexes and the state of files [KEEPWELL_CACHE_DIR; default $XDG_CACHE_HOME/keepwell]
    #[arg(long, global = true, value_name = "DIR", hide_short_help = true)]
    pub cache_dir: Option<PathBuf>,
    /// Keep the cache in memory; every file is read again
    #[arg(long, global = true, hide_short_help = true)]
    pub no_cache: bool,
    /// Threads that compress and encrypt
    #[arg(long, global = true, value_name = "N", hide_short_help = true, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
    /// Memory to use at most, at least 64MiB
    #[arg(long, global = true, value_name = "SIZE", hide_short_help = true, value_parser = crate::text::parse_bytes)]
    pub memory: Option<u64>,
    /// Upload at most so much per second, such as 5MiB
    #[arg(long, global = true, value_name = "SIZE", hide_short_help = true, value_parser = crate::text::parse_bytes)]
    pub limit_upload: Option<u64>,
    /// Download at most so much per second
    #[arg(long, global = true, value_name = "SIZE", hide_short_help = true, value_parser = crate::text::parse_bytes)]
    pub limit_download: Option<u64>,
    /// Print lines of JSON for scripts (docs/scripting.md)
    #[arg(long, global = true)]
    pub json: bool,
    /// Print only the result, and what went wrong
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Say more
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
    /// Answer yes to every question
    #[arg(short, long, global = true)]
    pub yes: bool,
    /// Draw no progress bar
    #[arg(long, global = true, hide_short_help = true)]
    pub no_progress: bool,
    /// When to use colors [NO_COLOR]
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", hide_short_help = true)]
    pub color: Color,
}

/// When to use colors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    Init(commands::init::Args),
    Backup(commands::backup::Args),
    Snapshots(commands::snapshots::Args),
    Ls(commands::ls::Args),
    Find(commands::find::Args),
    Show(commands::show::Args),
    Diff(commands::diff::Args),
    Dump(commands::dump::Args),
    Restore(commands::restore::Args),
    #[cfg(all(feature = "mount", target_os = "linux"))]
    Mount(commands::mount::Args),
    WarmUp(commands::warm_up::Args),
    Check(commands::check::Args),
    Repair(commands::repair::Args),
    Forget(Box<commands::forget::Args>),
    Unforget(commands::unforget::Args),
    Prune(commands::prune::Args),
    Copy(commands::copy::Args),
    Copies(commands::copies::Args),
    Key(commands::key::Args),
    Rewrite(commands::rewrite::Args),
    Tag(commands::tag::Args),
    Stats(commands::stats::Args),
    Cache(commands::cache::Args),
    Doctor(commands::doctor::Args),
    Policy(commands::policy::Args),
    Pg(commands::pg::Args),
    Wal(commands::wal::Args),
    Completions(commands::completions::Args),
    Man(commands::man::Args),
    Version(commands::version::Args),
}

impl Command {
    /// Whether a recovering server asks for WAL: then every failure must look like one to it.
    pub fn serves_recovery(&self) -> bool {
        matches!(self, Self::Wal(args) if args.serves_recovery())
    }
}

impl GlobalArgs {
    /// The options that say which repository is meant, and how it is opened, for a process of our own that goes on with it.
    pub fn again(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        let mut add = |name: &str, value: Option<OsString>| {
            if let Some(value) = value {
                words.extend([name.into(), value]);
            }
        };
        let text = |value: &Option<String>| value.as_ref().map(OsString::from);
        let path = |value: &Option<PathBuf>| value.as_ref().map(|path| path.clone().into_os_string());
        let number = |value: Option<u64>| value.map(|number| number.to_string().into());
        add("--repository", text(&self.repository));
        add("--key-file", path(&self.key_file));
        add("--key-command", text(&self.key_command));
        add("--key-fd", number(self.key_fd.map(u64::from)));
        add("--passphrase-file", path(&self.passphrase_file));
        add("--passphrase-command", text(&self.passphrase_command));
        add("--passphrase-fd", number(self.passphrase_fd.map(u64::from)));
        add("--config", path(&self.config));
        add("--profile", text(&self.profile));
        add("--cache-dir", path(&self.cache_dir));
        add("--threads", number(self.threads.map(u64::from)));
        add("--memory", number(self.memory));
        add("--limit-upload", number(self.limit_upload));
        add("--limit-download", number(self.limit_download));
        if self.no_cache {
            words.push("--no-cache".into());
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn without_examples(command: &clap::Command, above: &str, found: &mut Vec<String>) {
        let name = format!("{above} {}", command.get_name());
        if !command.get_after_help().is_some_and(|help| help.to_string().contains("Example")) {
            found.push(name.clone());
        }
        command.get_subcommands().for_each(|inner| without_examples(inner, &name, found));
    }

    #[test]
    fn a_process_of_our_own_gets_the_options_that_reach_the_repository() {
        use clap::Parser;
        let words = "--repository /r --key-file /k --passphrase-command p --config /c --profile q --cache-dir /d \
            --threads 2 --limit-upload 5 --limit-download 7 --no-cache";
        let words: Vec<&str> = words.split_whitespace().collect();
        let parsed = Arguments::try_parse_from([&["keepwell"], &words[..], &["version"]].concat()).unwrap();
        assert_eq!(parsed.global.again(), words);
    }

    fn dry_runs_below_a_heading(command: &clap::Command, above: &str, found: &mut Vec<String>) {
        let name = format!("{above} {}", command.get_name());
        let mut options = command.get_arguments().filter(|option| option.get_id() == "dry_run");
        if options.any(|option| option.get_help_heading().is_some()) {
            found.push(name.clone());
        }
        command.get_subcommands().for_each(|inner| dry_runs_below_a_heading(inner, &name, found));
    }

    /// A heading goes on to what follows: options of the command itself stand before those that have one.
    #[test]
    fn no_heading_covers_what_it_does_not_mean() {
        let mut found = Vec::new();
        dry_runs_below_a_heading(&Arguments::command(), "", &mut found);
        assert!(found.is_empty(), "below a heading: {found:?}");
    }

    #[test]
    fn every_command_has_examples() {
        let mut found = Vec::new();
        without_examples(&Arguments::command(), "", &mut found);
        assert!(found.is_empty(), "without examples: {found:?}");
    }
}
