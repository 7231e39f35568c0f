//! `keepwell pg import`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use backup_core::BackupOptions;
use backup_core::source::Source;
use keepwell_source_postgres::logical::ImportSource;
use serde_json::json;

use crate::commands::backup::About;
use crate::context::Context;
use crate::exit::{Complaint, Exit, exit_of};
use crate::{open, text};

const EXAMPLES: &str = "\
Examples:
  keepwell pg import --dataset clinic-old /srv/dumps/clinic-*.sql.gz
  keepwell dump SNAPSHOT:/clinic-2026-03-02.dump | pg_restore -d clinic

FILE.md5, FILE.sha256, FILE.md5sum and FILE.sha256sum are compared if they are there; a
file that does not fit ends the command before it is stored. Each file is a snapshot
of the time at which it was made, so that `forget` counts it where it belongs.";

/// Store dumps that other programs left, as they are
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Scripts (`.sql`, `.sql.gz`) and archives (`pg_dump -Fc`, `-Ft`)
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Name of what they are of
    #[arg(long, value_name = "NAME")]
    dataset: String,
    #[command(flatten)]
    about: About,
}

/// Runs `pg import`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let opened = open::repository(ctx).await?;
    // All are looked at before the first is stored.
    let mut sources = Vec::new();
    for file in args.files.clone() {
        let zone = jiff::tz::TimeZone::system();
        let looked = tokio::task::spawn_blocking(move || ImportSource::open(&file, &zone));
        sources.push(Arc::new(looked.await??));
    }
    sources.sort_by_key(|source| source.made());
    ctx.interrupt.ends_by_itself();
    let mut exit = Exit::Done;
    for (stored, source) in sources.into_iter().enumerate() {
        let began = Instant::now();
        let options = args.about.options(ctx, &opened.repository, args.dataset.clone())?;
        let options = BackupOptions { capture_time: Some(source.made()), ..options };
        let import = source.import();
        let report = opened.repository.backup(Arc::clone(&source) as Arc<dyn Source>, options).await;
        let report = report.map_err(|error| not_stored(error.into(), &import.name, stored))?;
        let id = ctx.printer.strong(&report.snapshot.to_string()[..8]);
        ctx.printer.line(format_args!(
            "snapshot {id} of {}: {} of {}, {}, in {}",
            args.dataset,
            import.name,
            text::time(source.made()),
            text::bytes(import.size),
            text::duration(began.elapsed())
        ));
        match import.checked.as_slice() {
            [] => ctx.printer.say(format_args!("  there is no checksum beside it")),
            names => ctx.printer.say(format_args!("  it fits {}", names.join(" and "))),
        }
        let fields = json!({ "snapshot": report.snapshot.to_string(), "dataset": args.dataset,
            "stored_bytes": report.statistics.new_stored_bytes, "complete": report.complete, "import": import });
        ctx.printer.json("pg_import", fields);
        if report.problem_count > 0 {
            exit = Exit::Skipped;
        }
    }
    opened.progress.end();
    Ok(exit)
}

/// Says so where others were stored before: given again, they would be stored once more.
fn not_stored(error: anyhow::Error, name: &str, stored: usize) -> anyhow::Error {
    if stored == 0 {
        return error;
    }
    let complaint = Complaint::new(exit_of(&error), format!("`{name}` is not stored"));
    error.context(complaint.hint("The files above are stored: name only the others."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::hints_of;

    #[test]
    fn what_is_stored_already_is_said_where_a_later_file_is_not() {
        let away = || anyhow::Error::from(backup_core::Error::NoRepository { place: "x".into() });
        let first = not_stored(away(), "a.sql", 0);
        let later = not_stored(away(), "b.sql", 2);
        assert_eq!(first.to_string(), away().to_string());
        assert_eq!(later.to_string(), "`b.sql` is not stored");
        assert_eq!((exit_of(&first), exit_of(&later)), (Exit::NoRepository, Exit::NoRepository));
        assert!(hints_of(&later)[0].ends_with("name only the others."), "{:?}", hints_of(&later));
    }
}
