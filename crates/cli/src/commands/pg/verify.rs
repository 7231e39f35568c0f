//! `pg verify`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use keepwell_source_postgres::recovery::{
    Ladder, Level, Outcome, Question, RecoveryPlan, Said, Scratch, Step, Target, failed, fault, not_restored,
};

use super::pace::Pace;
use super::questions;
use super::recover::{RecoverArgs, warn_of_incomplete};
use super::report::{self, RecoveryPoint, Report, StepReport};
use super::scratch::{self, Place};
use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open::{self, Opened};
use crate::text;

const RESTORED: &str = "the files are restored";
const RECOVERED: &str = "a server recovers and opens";

const EXAMPLES: &str = "\
Levels, each with those before it:
  0  every chunk of the snapshot is read and proved
  1  the log is there from its beginning to the target
  2  the files are restored and compared with the server's manifest (pg_verifybackup)
  3  a server starts on them and recovers to the target
  4  every table and index is checked (pg_amcheck), every row is read (pg_dump)
  5  your own questions are answered as expected (--questions)

Examples:
  keepwell pg verify --level 3
  keepwell pg verify latest --level 5 --questions checks.toml --report proof.json

A file of questions:
  [[question]]
  name = \"patients\"
  database = \"clinic\"
  sql = \"SELECT count(*) FROM patients\"
  at-least = 1000            # or at-most, or equals = \"text\"; or at-least-recorded = 95,
                             # percent of what `pg backup --questions` recorded

Exit code 13 if a check fails. What cannot be checked on this host is reported as
such, and is no failure; where nothing of a level can be, the exit code is 3. A report
is signed with your key; --check-report shows one, and ends with 13 if it was changed,
nobody in force signed it, or a check failed, and with 3 if it did not get so far.";

/// Prove that a base backup recovers, and measure how long that takes
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The base backup [default: the newest that leads to the target]
    snapshot: Option<String>,
    /// How far to go, 0 to 5
    #[arg(long, value_name = "LEVEL", default_value_t = 3, value_parser = clap::value_parser!(u8).range(0..=5))]
    level: u8,
    /// A file of questions for level 5
    #[arg(long, value_name = "FILE")]
    questions: Option<PathBuf>,
    /// Write the report, signed JSON, to this file too
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Verify nothing; show such a report, and who signed it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["snapshot", "level", "questions", "report", "target"])]
    check_report: Option<PathBuf>,
    #[command(flatten)]
    recover: RecoverArgs,
}

/// Runs `pg verify`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    if let Some(file) = &args.check_report {
        return report::check(ctx, file).await;
    }
    let level = Level::of(args.level).ok_or_else(|| Complaint::usage("levels go from 0 to 5"))?;
    let questions = match (&args.questions, level) {
        (Some(file), _) => questions::read(file)?,
        (None, Level::Questions) => {
            return Err(Complaint::usage("level 5 needs questions").hint("Say `--questions FILE`.").into());
        }
        (None, _) => Vec::new(),
    };
    let target = args.recover.target.target()?;
    let opened = open::for_reading(ctx).await?;
    if let Some(file) = &args.report {
        // Whoever cannot sign, or not write there, is to hear it now.
        opened.repository.sign_statement("{\"type\": \"nothing\"}")?;
        demand_writable(file)?;
    }
    let asked = ctx.now();
    let plan = args.recover.plan(&opened, args.snapshot.as_deref(), &target).await?;
    ctx.printer.say(format_args!(
        "verify snapshot {} of cluster {}, up to level {}",
        plan.backup.snapshot.short(),
        plan.backup.cluster.system_identifier,
        args.level
    ));
    warn_of_incomplete(ctx, &plan);
    ctx.interrupt.ends_by_itself();
    let printer = std::sync::Arc::clone(&ctx.printer);
    let mut report = move |step: &Step| {
        let step = StepReport::of(step);
        printer.line(step.line());
        printer.json("pg_verify_step", serde_json::to_value(&step).unwrap_or_default());
    };
    let mut ladder = Ladder::new(&mut report);
    let began = Instant::now();
    let said = climb(ctx, &opened, &plan, level, &questions, &args, &mut ladder).await;
    opened.progress.end();
    if ctx.interrupt.is_requested() {
        return Err(Complaint::failed("stopped").into());
    }
    let (sound, steps) = (ladder.is_sound(), ladder.into_steps());
    let proved = proved(&steps).map(Level::number);
    note_pace(&opened, &plan, &steps);
    let report = Report { sound, proved, ..made(ctx, &plan, &steps, began, args.level) };
    let report = Report { recovery_point: recovery_point(&plan, said.as_ref(), asked), ..report };
    finish(ctx, &opened, &report, &args)?;
    Ok(report.exit())
}

/// Up to which level each has a check that held, and none that failed. That extensions are here is no recovery.
fn proved(steps: &[Step]) -> Option<Level> {
    let holds = |level: &Level| {
        let own = || steps.iter().filter(|step| step.level == *level);
        let passed = |step: &Step| {
            step.outcome == Outcome::Passed && (*level != Level::Start || step.name == RECOVERED)
        };
        own().any(passed) && !own().any(|step| matches!(step.outcome, Outcome::Failed(_)))
    };
    Level::ALL.into_iter().take_while(holds).last()
}

async fn climb(
    ctx: &Context,
    opened: &Opened,
    plan: &RecoveryPlan,
    level: Level,
    questions: &[Question],
    args: &Args,
    ladder: &mut Ladder<'_>,
) -> Option<Said> {
    ladder.chunks(&opened.repository, plan).await;
    if level >= Level::Log {
        ladder.log(plan);
    }
    if level < Level::Files {
        return None;
    }
    let began = Instant::now();
    let binaries = match args.recover.binaries(ctx, plan) {
        Ok(binaries) => binaries,
        Err(error) => {
            let reason = crate::exit::one_line(&error);
            for level in Level::ALL.into_iter().filter(|l| *l >= Level::Files && *l <= level) {
                ladder.note(
                    level,
                    "a server of this major",
                    began,
                    Err(Outcome::Unavailable(reason.clone())),
                );
            }
            return None;
        }
    };
    let place = match Place::make(ctx, opened, plan, &args.recover.scratch) {
        Ok(place) => place,
        Err(error) => {
            ladder.note(Level::Files, "a place for a scratch cluster", began, Err(no_place(&error)));
            return None;
        }
    };
    if let Some(obstacle) = place.obstacle() {
        let reason = format!("the server's user cannot pass `{}`; say `--scratch DIR`", obstacle.display());
        ladder.note(Level::Files, "a place for a scratch cluster", began, Err(Outcome::Unavailable(reason)));
        return None;
    }
    let mut scratch = match place.restore(opened, plan, binaries).await {
        Ok(scratch) => scratch,
        Err(error) => {
            ladder.note(Level::Files, RESTORED, began, Err(not_restored(error)));
            return None;
        }
    };
    ladder.note(Level::Files, RESTORED, began, Ok(String::new()));
    let climbed = with_server(&mut scratch, plan, level, questions, ladder);
    let said = tokio::select! {
        said = climbed => said,
        // What runs is ended, and what was made is removed.
        () = ctx.interrupt.requested() => None,
    };
    let began = Instant::now();
    if let Err(error) = scratch.stop().await {
        ladder.note(Level::Start, "the scratch server stops", began, Err(failed(error)));
    }
    said
}

/// That this host has no place for a scratch cluster says nothing about the backup; that the repository fails does.
fn no_place(error: &anyhow::Error) -> Outcome {
    let reason = crate::exit::one_line(error);
    match error.chain().any(|cause| cause.is::<backup_core::Error>()) {
        true => Outcome::Failed(reason),
        false => Outcome::Unavailable(reason),
    }
}

/// The levels that need programs of the server; gives what it said when it was open.
async fn with_server(
    scratch: &mut Scratch,
    plan: &RecoveryPlan,
    level: Level,
    questions: &[Question],
    ladder: &mut Ladder<'_>,
) -> Option<Said> {
    ladder.manifest(scratch).await;
    if level < Level::Start {
        return None;
    }
    ladder.extensions(scratch, plan);
    let began = Instant::now();
    let said = scratch::start(scratch, plan).await;
    let detail = |said: &Said| {
        let last = said.last_transaction.as_ref().map(|at| format!("the last transaction ended at {at}"));
        said.stopped.clone().or(last).unwrap_or_default()
    };
    let (said, noted) = match said {
        Ok(said) => (Some(said.clone()), Ok(detail(&said))),
        Err(error) => (None, Err(fault(error))),
    };
    ladder.note(Level::Start, RECOVERED, began, noted);
    if said.is_some() {
        ladder.collations(scratch, plan).await;
    }
    if said.is_some() && level >= Level::Content {
        ladder.content(scratch).await;
    }
    if said.is_some() && level >= Level::Questions {
        ladder.questions(scratch, plan, questions).await;
    }
    said
}

/// How long restoring and recovering took, if both came about.
fn recovery_time(steps: &[Step]) -> Option<Duration> {
    Some(took(steps, RESTORED)? + took(steps, RECOVERED)?)
}

fn took(steps: &[Step], name: &str) -> Option<Duration> {
    let passed = |step: &&Step| step.name == name && step.outcome == Outcome::Passed;
    steps.iter().find(passed).map(|step| step.took)
}

/// What a restore will take, somebody wants to know before he needs it.
fn note_pace(opened: &Opened, plan: &RecoveryPlan, steps: &[Step]) {
    if let (Some(took), Ok(manifest)) = (took(steps, RESTORED), plan.backup.snapshot.manifest()) {
        Pace::note_files(&opened.repository, manifest.statistics.logical_bytes, took);
    }
    if let Some(took) = took(steps, RECOVERED).filter(|_| plan.target == Target::Latest) {
        Pace::note_log(&opened.repository, plan.log_bytes(), took);
    }
}

/// The report, as far as it does not say what was proved, and how much would be lost.
fn made(ctx: &Context, plan: &RecoveryPlan, steps: &[Step], began: Instant, level: u8) -> Report {
    let (kind, format) = Report::kind();
    Report {
        kind,
        format,
        snapshot: plan.backup.snapshot.id.to_string(),
        backup_ended: text::rfc3339(plan.backup.cluster.stop_time),
        system: plan.backup.cluster.system_identifier.to_string(),
        major: plan.backup.cluster.major(),
        target: plan.target.to_string(),
        level,
        time: text::rfc3339(ctx.now()),
        host: ctx.host(),
        program: concat!("keepwell ", env!("CARGO_PKG_VERSION")).to_owned(),
        sound: false,
        proved: None,
        seconds: report::rounded(began.elapsed()),
        recovery_seconds: recovery_time(steps).map(report::rounded),
        last_transaction: plan.last_end.map(text::rfc3339),
        recovery_point: None,
        steps: steps.iter().map(StepReport::of).collect(),
    }
}

/// How old the newest thing was that came back, when the end of the log was looked for.
fn recovery_point(plan: &RecoveryPlan, said: Option<&Said>, asked: i64) -> Option<RecoveryPoint> {
    if plan.target != Target::Latest {
        return None;
    }
    let recovered = said.and_then(|said| said.last_transaction.as_ref()?.parse::<jiff::Timestamp>().ok());
    let recovered = recovered.and_then(|at| i64::try_from(at.as_nanosecond()).ok());
    let last = recovered.or(plan.last_end)?;
    // Clocks of two hosts may differ by more than what lies between.
    let between = Duration::from_nanos(u64::try_from(asked.saturating_sub(last)).unwrap_or(0));
    Some(RecoveryPoint {
        asked: text::rfc3339(asked),
        last_transaction: text::rfc3339(last),
        recovered: recovered.is_some(),
        seconds: report::rounded(between),
    })
}

/// Fails if a file cannot be made, or what it holds not be replaced; one that is new is left empty until there is a report.
fn demand_writable(file: &Path) -> Result<()> {
    let opened = fs::File::options().create(true).append(true).open(file);
    opened.map(drop).with_context(|| format!("write `{}`", file.display()))
}

fn finish(ctx: &Context, opened: &Opened, report: &Report, args: &Args) -> Result<()> {
    let mut fields = serde_json::to_value(report).context("write the report")?;
    if let Some(fields) = fields.as_object_mut() {
        fields.remove("type");
    }
    ctx.printer.json("pg_verify", fields);
    report.summary().into_iter().for_each(|line| ctx.printer.line(line));
    // Last: what was found is said, whatever becomes of the file.
    if let Some(file) = &args.report {
        let text = report.signed(opened)?;
        fs::write(file, text).with_context(|| format!("write `{}`", file.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_that_cannot_be_written_is_found_out_before_and_one_that_is_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        assert!(
            demand_writable(&dir.path().join("missing/report")).unwrap_err().to_string().contains("write `")
        );
        let report = dir.path().join("report");
        demand_writable(&report).unwrap();
        fs::write(&report, "an older one").unwrap();
        demand_writable(&report).unwrap();
        assert_eq!(fs::read_to_string(&report).unwrap(), "an older one");
    }

    fn step(level: Level, name: &str, outcome: Outcome) -> Step {
        Step { level, name: name.to_owned(), outcome, detail: String::new(), took: Duration::from_secs(2) }
    }

    #[test]
    fn only_a_recovery_that_came_about_has_a_time() {
        let restored = step(Level::Files, RESTORED, Outcome::Passed);
        let recovered = |outcome| step(Level::Start, RECOVERED, outcome);
        let missing = Outcome::Unavailable("there is no server".into());
        let both = [restored.clone(), recovered(Outcome::Passed)];
        assert_eq!(recovery_time(&both), Some(Duration::from_secs(4)));
        assert_eq!(recovery_time(&[restored.clone(), recovered(Outcome::Failed("x".into()))]), None);
        assert_eq!(recovery_time(&[restored]), None);
        assert_eq!(recovery_time(&[step(Level::Start, "a server of this major", missing)]), None);
        assert_eq!(recovery_time(&[]), None);
    }

    #[test]
    fn a_level_of_which_nothing_could_be_checked_is_not_proved_nor_what_is_above_it() {
        let missing = || Outcome::Unavailable("it is not here".into());
        let below = |level: Level| -> Vec<Step> {
            let name = |l| if l == Level::Start { RECOVERED } else { "a check" };
            let levels = Level::ALL.into_iter().filter(|l| *l < level);
            levels.map(|l| step(l, name(l), Outcome::Passed)).collect()
        };
        assert_eq!(proved(&[]), None);
        assert_eq!(proved(&[step(Level::Chunks, "a check", missing())]), None);
        for level in [Level::Log, Level::Files, Level::Start, Level::Content, Level::Questions] {
            let (before, mut steps) = (below(level).last().map(|step| step.level), below(level));
            assert_eq!(proved(&steps), before);
            steps.push(step(level, "a check", missing()));
            assert_eq!(proved(&steps), before);
            let above = Level::of(level.number() + 1).unwrap_or(level);
            if above != level {
                steps.push(step(above, "a check", Outcome::Passed));
                assert_eq!(proved(&steps), before);
            }
            steps.push(step(
                level,
                if level == Level::Start { RECOVERED } else { "another" },
                Outcome::Passed,
            ));
            assert!(proved(&steps) >= Some(level), "one of two checks was made");
            steps.push(step(level, "a third", Outcome::Failed("it is damaged".into())));
            assert_eq!(proved(&steps), before);
        }
        let mut steps = below(Level::Start);
        steps.push(step(Level::Start, "the cluster's extensions are here", Outcome::Passed));
        assert_eq!(proved(&steps), Some(Level::Files), "no server has recovered");
    }

    #[test]
    fn a_host_without_a_place_says_nothing_about_the_backup() {
        let missing = anyhow::Error::from(std::io::Error::from(std::io::ErrorKind::NotFound));
        let outcome = no_place(&missing.context("list `/nowhere`"));
        assert!(matches!(outcome, Outcome::Unavailable(reason) if reason.starts_with("list `/nowhere`: ")));
        let damaged = backup_core::Error::Damaged { object: "o".into(), reason: "r".into() };
        assert!(matches!(no_place(&damaged.into()), Outcome::Failed(_)));
    }
}
