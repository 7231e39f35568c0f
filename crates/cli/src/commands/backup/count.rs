//! `backup --dry-run`: walks the source and counts.

use std::ops::ControlFlow;

use anyhow::Result;
use backup_core::source::{Found, Source};
use keepwell_catalog::EntryKind;
use serde_json::json;

use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::text;

#[derive(Debug, Default)]
struct Counts {
    files: u64,
    directories: u64,
    others: u64,
    bytes: u64,
    problems: u64,
}

/// Counts what a backup would look at. `--verbose` names everything.
pub fn run(ctx: &Context, source: &dyn Source) -> Result<Exit> {
    let mut counts = Counts::default();
    for note in source.preflight().map_err(backup_core::Error::from)?.notes {
        ctx.printer.say(note);
    }
    let mut visit = |found| {
        counts.take(ctx, found);
        if ctx.interrupt.is_requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    source.walk(&mut visit).map_err(backup_core::Error::from)?;
    if ctx.interrupt.is_requested() {
        return Err(Complaint::new(Exit::Interrupted, "interrupted").into()); // what was counted so far is no answer
    }
    let Counts { files, directories, others, bytes, problems } = counts;
    ctx.printer.line(format_args!(
        "would back up {}, {}; {}, {} of other kinds",
        text::count(files, "file", "files"),
        text::bytes(bytes),
        text::count(directories, "directory", "directories"),
        text::number(others),
    ));
    let fields = json!({
        "files": files, "directories": directories, "others": others, "bytes": bytes, "problems": problems,
    });
    ctx.printer.json("backup_plan", fields);
    Ok(if problems > 0 { Exit::Skipped } else { Exit::Done })
}

impl Counts {
    fn take(&mut self, ctx: &Context, found: Found) {
        match found {
            Found::Expected(_) => {}
            Found::Note(text) => ctx.printer.say(text),
            Found::Item(item) | Found::Opened(item, _) => {
                match item.kind {
                    EntryKind::File => self.files += 1,
                    EntryKind::Directory => self.directories += 1,
                    _ => self.others += 1,
                }
                self.bytes += item.size;
                ctx.printer.verbose(format_args!("/{}", item.key.display_path()));
            }
            Found::Problem { key, message } => {
                self.problems += 1;
                let path = format!("/{}", key.display_path());
                ctx.printer.warn(format_args!("`{path}`: {message}"));
                ctx.printer.json("problem", json!({ "item": path, "message": message }));
            }
        }
    }
}
