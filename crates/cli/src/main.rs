//! The `keepwell` command: thin over the libraries.
//!
//! `args` has the command line, `commands` one file per command: arguments, options, one call of the library, a report.
//! `open` finds repository and key; `printer` and `progress` are the only ways to say something; `exit` maps errors to
//! exit codes.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod args;
mod commands;
mod config;
mod confirm;
mod context;
mod copies;
mod environment;
mod exit;
mod interrupt;
mod known;
mod location;
mod mountinfo;
mod open;
mod ours;
mod printer;
mod progress;
mod retention;
mod secret;
mod select;
mod table;
#[cfg(test)]
mod testing;
mod text;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use clap::Parser;
use clap::error::ErrorKind;
use tracing_subscriber::EnvFilter;

use crate::args::{Arguments, Command};
use crate::context::Context;
use crate::environment::Environment;
use crate::exit::{Complaint, Exit};
use crate::printer::Printer;

/// Packs of many megabytes are made on one thread and dropped on another; glibc keeps what was freed for the thread that
/// made it, which doubled the memory of a restore.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    keepwell_storage::raise_file_limit();
    let environment = Environment::read();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are asked for; everything else is a mistake. Nothing can be done if printing fails.
            let _ = error.print();
            return match error.use_stderr() {
                true => usage(&error).into(),
                false => Exit::Done.into(),
            };
        }
    };
    start_logging(&environment);
    let printer = Arc::new(Printer::new(&arguments.global, &environment));
    let serves_recovery = arguments.command.serves_recovery();
    let outcome = run(arguments, environment, &printer);
    let exit = outcome.unwrap_or_else(|error| {
        let exit = if serves_recovery { Exit::Recovery } else { exit::exit_of(&error) };
        printer.error(&exit::one_line(&error), &exit::hints_of(&error), exit.number());
        exit
    });
    // Threads that still work on something that nobody waits for must not hold up the end.
    std::process::exit(i32::from(exit.number()))
}

/// How a command line that cannot be understood ends; who reads JSON is told there too.
fn usage(error: &clap::Error) -> Exit {
    let exit = if names_wal_get(std::env::args_os()) { Exit::Recovery } else { Exit::Usage };
    if std::env::args_os().any(|word| word == "--json") {
        let text = error.to_string();
        let hints: Vec<_> = text.lines().filter_map(|line| line.trim().strip_prefix("tip: ")).collect();
        printer::error_line(&fact(error), &hints, exit.number());
    }
    exit
}

/// What is wrong, on one line: what a message about the command line says before the first empty line. Where it is the help,
/// that says nothing of it.
fn fact(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "the command line ends too early: a command or an argument is missing".to_owned();
    }
    let text = error.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    let fact = lines.join(" ");
    fact.strip_prefix("error: ").map(str::to_owned).unwrap_or(fact)
}

/// Whether a command line that cannot be understood may be one by which a recovering server asks for WAL: then its failure
/// must look like one to the server.
fn names_wal_get(words: impl Iterator<Item = OsString>) -> bool {
    words.skip_while(|word| word != "wal").any(|word| word == "get")
}

fn run(arguments: Arguments, environment: Environment, printer: &Arc<Printer>) -> Result<Exit> {
    let ctx = Context::new(arguments.global, environment, Arc::clone(printer))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(until_interrupted(ctx, arguments.command));
    runtime.shutdown_background();
    outcome
}

async fn until_interrupted(ctx: Context, command: Command) -> Result<Exit> {
    let (interrupt, printer) = (ctx.interrupt.clone(), Arc::clone(&ctx.printer));
    let stopping = interrupt.clone();
    let work = tokio::spawn(async move { commands::run(&ctx, command).await });
    let outcome = tokio::select! {
        done = work => done.map_err(|error| Complaint::failed(format!("a worker died: {error}")))?,
        ended = interrupt.at_once(|text| printer.say(text)) => {
            ended?;
            stopping.do_last();
            secret::restore_terminal();
            return Err(interrupted().into());
        }
    };
    outcome.map_err(|error| if stopping.is_requested() { ended_by_interrupt(error) } else { error })
}

fn interrupted() -> Complaint {
    Complaint::new(Exit::Interrupted, "interrupted")
        .hint("Nothing that was in the repository is lost; run the command again to go on.")
}

/// What is told of work that ended because somebody wanted it to. What it says of that itself is no news, unless it says what
/// there is to do now.
fn ended_by_interrupt(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<Complaint>().is_some_and(Complaint::has_hints) {
        true => error.context(interrupted()),
        false => interrupted().into(),
    }
}

fn start_logging(environment: &Environment) {
    let Some(filter) = &environment.log else { return };
    let filter = EnvFilter::builder().parse_lossy(filter);
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_command_still_says_what_there_is_to_do() {
        let server = || Complaint::failed("the server was stopped");
        for (error, told, hints) in [
            (anyhow::anyhow!("the work was cancelled"), "interrupted", 1),
            (server().into(), "interrupted", 1),
            (server().hint("Start it again.").into(), "interrupted: the server was stopped", 2),
        ] {
            let ended = ended_by_interrupt(error);
            assert_eq!((exit::one_line(&ended).as_str(), exit::hints_of(&ended).len()), (told, hints));
            assert_eq!(exit::exit_of(&ended), Exit::Interrupted);
        }
    }

    #[test]
    fn a_wrong_command_line_is_told_in_full_on_one_line() {
        for (line, wanted) in [
            ("keepwell restore latest", "the following required arguments were not provided: --target <DIR>"),
            (
                "keepwell snapshots --color x",
                "invalid value 'x' for '--color <WHEN>' [possible values: auto, always, never]",
            ),
            ("keepwell snapshots x", "unexpected argument 'x' found"),
            ("keepwell tag latest --add=", "a value is required for '--add <TAG>' but none was supplied"),
            ("keepwell backup --tag=", "a value is required for '--tag <TAG>' but none was supplied"),
            ("keepwell --json key", "the command line ends too early: a command or an argument is missing"),
        ] {
            let error = Arguments::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(fact(&error), wanted, "{line}");
        }
    }

    #[test]
    fn a_command_that_serves_a_recovery_is_told_by_what_it_means() {
        let parsed = |line: &str| Arguments::try_parse_from(line.split(' '));
        let serves = |line: &str| parsed(line).unwrap().command.serves_recovery();
        assert!(serves("keepwell wal get 000000010000000000000003 x"));
        assert!(serves("keepwell wal -r /x get 000000010000000000000003 x"));
        assert!(serves("keepwell wal --quiet -r wal get 000000010000000000000003 x"));
        assert!(!serves("keepwell ls wal:/get"));
        assert!(!serves("keepwell wal status get"));
        for wrong in ["keepwell wal -r /x get", "keepwell wal --key-file f get a b c"] {
            assert!(parsed(wrong).is_err());
            assert!(names_wal_get(wrong.split(' ').map(OsString::from)), "{wrong}");
        }
        assert!(!names_wal_get(["keepwell", "get", "wal"].map(OsString::from).into_iter()));
    }
}
