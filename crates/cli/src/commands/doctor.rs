//! `keepwell doctor`.

use anyhow::Result;
use keepwell_storage::Role;
use serde_json::json;

use crate::context::Context;
use crate::exit::{Exit, exit_of, hints_of, one_line};
use crate::location::Location;
use crate::{open, text};

const EXAMPLES: &str = "\
Examples:
  keepwell doctor
  keepwell -r s3://acme-backup/web doctor
  keepwell --key-file web1.key doctor       as the backup host that has this key
  keepwell doctor --as-writer               are these credentials fit for one?";

/// Test this machine, the repository's store and the key
///
/// Races writers for names in the store, tries what the store's credentials may do to an object, asks how the bucket is set
/// up (versions, locks, lifecycle rules, clock) or looks at the file system, and tries the key. Leaves nothing behind that it
/// may delete. Exit code 1 when something needs attention, or that of why the repository cannot be opened.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Test as what a backup host should have: credentials that can neither delete nor overwrite
    ///
    /// Goes by itself where the key is a writer's.
    #[arg(long)]
    as_writer: bool,
}

/// Collects findings.
struct Findings<'a> {
    ctx: &'a Context,
    worst: Exit,
}

impl Findings<'_> {
    fn good(&self, text: String) {
        self.ctx.printer.line(format_args!("{} {text}", self.ctx.printer.colored("32", "ok      ")));
        self.ctx.printer.json("finding", json!({ "ok": true, "note": false, "message": text }));
    }

    fn note(&self, text: String) {
        self.ctx.printer.line(format_args!("{} {text}", self.ctx.printer.colored("33", "note    ")));
        self.ctx.printer.json("finding", json!({ "ok": true, "note": true, "message": text }));
    }

    fn bad(&mut self, exit: Exit, text: String) {
        self.ctx.printer.line(format_args!("{} {text}", self.ctx.printer.colored("31;1", "problem ")));
        self.ctx.printer.json("finding", json!({ "ok": false, "note": false, "message": text }));
        // What keeps the repository from being opened says more than that something is wrong.
        if matches!(self.worst, Exit::Done | Exit::Failed) {
            self.worst = exit;
        }
    }
}

/// Runs `doctor`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let mut findings = Findings { ctx, worst: Exit::Done };
    machine(&mut findings);
    let opened = open::repository(ctx).await;
    let location = match &opened {
        Ok(opened) => opened.location.clone(),
        // Without its key, what the key would say about its place is not known either.
        Err(_) => open::location(ctx).unwrap_or_else(|_| Location::default_of(ctx)),
    };
    let is_writer = opened.as_ref().is_ok_and(|opened| !opened.repository.can_read());
    let role = if args.as_writer || is_writer { Role::Writer } else { Role::Keeper };
    if let Ok(opened) = &opened {
        opened.progress.end();
    }
    store(&mut findings, &location, role).await;
    match opened {
        Ok(opened) => {
            let (id, access) = (opened.repository.id(), opened.repository.access().describe());
            findings.good(format!("the key opens repository {id}, as {access}"));
            if !opened.repository.can_read() {
                findings.good("this credential backs up, and cannot decrypt".to_owned());
            }
        }
        Err(error) => {
            findings.bad(exit_of(&error), one_line(&error));
            hints_of(&error).iter().for_each(|hint| ctx.printer.say(format_args!("         {hint}")));
        }
    }
    Ok(findings.worst)
}

fn machine(findings: &mut Findings<'_>) {
    let ctx = findings.ctx;
    findings.good(format!("keepwell {} on {}", env!("CARGO_PKG_VERSION"), ctx.host()));
    let now = ctx.now();
    // Older than this program: the clock was never set.
    if now < 1_790_000_000_000_000_000 {
        findings.bad(
            Exit::Failed,
            format!("the clock says {}: set it, or retention cannot be right", text::time(now)),
        );
    } else {
        let zone = jiff::tz::TimeZone::system();
        findings.good(format!(
            "the clock says {} ({})",
            text::time(now),
            zone.iana_name().unwrap_or("no time zone")
        ));
    }
    findings.good(format!("the cache is in {}", ctx.cache_dir().display()));
}

async fn store(findings: &mut Findings<'_>, location: &Location, role: Role) {
    let report = location.probe(findings.ctx, role).await;
    match report {
        Ok(report) => {
            if let Some(fs) = &report.file_system {
                let (free, total) = (text::bytes(fs.free_bytes), text::bytes(fs.total_bytes));
                findings.good(format!("{location} is on {}, {free} of {total} free", fs.kind));
            }
            for finding in &report.findings {
                findings.good(finding.clone());
            }
            for note in &report.notes {
                findings.note(note.clone());
            }
            for problem in &report.problems {
                findings.bad(Exit::Failed, problem.clone());
            }
            findings.ctx.printer.json("store", json!(report));
        }
        Err(error) => findings.bad(Exit::Failed, one_line(&error)),
    }
}
