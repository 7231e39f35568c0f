//! `pg verify`.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result};
use keepwell_source_postgres::recovery::{
    Expect, Ladder, Level, Outcome, Planner, Question, RecoveryPlan, Scratch, Step, failed,
};
use serde::Deserialize;
use serde_json::json;

use super::restore::{find_backups, find_binaries, warn_of_incomplete};
use super::scratch::{self, Place, ScratchArgs};
use super::target::TargetArgs;
use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open::{self, Opened};
use crate::select::Filter;
use crate::text;

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
  at-least = 1000            # or at-most, or equals = \"text\"

Exit code 13 if a check fails. What cannot be checked on this host is reported as
such, and is no failure.";

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
    /// Write the report, as JSON, to this file too
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    scratch: ScratchArgs,
    #[command(flatten)]
    filter: Filter,
}

/// Runs `pg verify`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let level = Level::of(args.level).ok_or_else(|| Complaint::usage("levels go from 0 to 5"))?;
    let questions = match (&args.questions, level) {
        (Some(file), _) => read_questions(file)?,
        (None, Level::Questions) => {
            return Err(Complaint::usage("level 5 needs questions").hint("Say `--questions FILE`.").into());
        }
        (None, _) => Vec::new(),
    };
    let target = args.target.target()?;
    let opened = open::for_reading(ctx).await?;
    let backups = find_backups(&opened, args.snapshot.as_deref(), &args.filter).await?;
    let planner = Planner::new(opened.repository.clone(), backups)?;
    let plan = planner.plan(&target, args.target.timeline).await?;
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
        let (word, why) = words(&step.outcome);
        let detail = if why.is_empty() { &step.detail } else { why };
        let detail = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
        printer.line(format_args!(
            "level {}  {word:<11}  {}{detail}, {}",
            step.level.number(),
            step.name,
            text::duration(step.took)
        ));
        printer.json("pg_verify_step", step_json(step));
    };
    let mut ladder = Ladder::new(&mut report);
    let began = Instant::now();
    climb(ctx, &opened, &plan, level, &questions, &args, &mut ladder).await;
    opened.progress.end();
    if ctx.interrupt.is_requested() {
        return Err(Complaint::failed("stopped").into());
    }
    let (sound, steps) = (ladder.is_sound(), ladder.into_steps());
    finish(ctx, &plan, &steps, sound, began, &args)?;
    Ok(if sound { Exit::Done } else { Exit::Damage })
}

async fn climb(
    ctx: &Context,
    opened: &Opened,
    plan: &RecoveryPlan,
    level: Level,
    questions: &[Question],
    args: &Args,
    ladder: &mut Ladder<'_>,
) {
    ladder.chunks(&opened.repository, plan).await;
    if level >= Level::Log {
        ladder.log(plan);
    }
    if level < Level::Files {
        return;
    }
    let began = Instant::now();
    let binaries = match find_binaries(ctx, plan.backup.cluster.major(), args.scratch.bin_dir.as_deref()) {
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
            return;
        }
    };
    let place = match Place::make(opened, plan, &args.scratch) {
        Ok(place) => place,
        Err(error) => {
            let reason = crate::exit::one_line(&error);
            ladder.note(Level::Files, "a place for a scratch cluster", began, Err(Outcome::Failed(reason)));
            return;
        }
    };
    if let Some(obstacle) = place.obstacle() {
        let reason = format!("the server's user cannot pass `{}`; say `--scratch DIR`", obstacle.display());
        ladder.note(Level::Files, "a place for a scratch cluster", began, Err(Outcome::Unavailable(reason)));
        return;
    }
    let mut scratch = match place.restore(opened, plan, binaries).await {
        Ok(scratch) => scratch,
        Err(error) => {
            ladder.note(Level::Files, "the files are restored", began, Err(failed(error)));
            return;
        }
    };
    ladder.note(Level::Files, "the files are restored", began, Ok(String::new()));
    let climbed = with_server(&mut scratch, plan, level, questions, ladder);
    tokio::select! {
        () = climbed => {}
        // What runs is ended, and what was made is removed.
        () = ctx.interrupt.requested() => {}
    }
    let began = Instant::now();
    if let Err(error) = scratch.stop().await {
        ladder.note(Level::Start, "the scratch server stops", began, Err(failed(error)));
    }
}

/// The levels that need programs of the server.
async fn with_server(
    scratch: &mut Scratch,
    plan: &RecoveryPlan,
    level: Level,
    questions: &[Question],
    ladder: &mut Ladder<'_>,
) {
    ladder.manifest(scratch).await;
    if level >= Level::Start {
        let began = Instant::now();
        let said = scratch::start(scratch, plan).await;
        let open = said.is_ok();
        let detail = said.map_err(failed).map(|said| {
            said.stopped
                .or(said.last_transaction.map(|at| format!("the last transaction ended at {at}")))
                .unwrap_or_default()
        });
        ladder.note(Level::Start, "a server recovers and opens", began, detail);
        if open && level >= Level::Content {
            ladder.content(scratch).await;
        }
        if open && level >= Level::Questions {
            ladder.questions(scratch, questions).await;
        }
    }
}

fn finish(
    ctx: &Context,
    plan: &RecoveryPlan,
    steps: &[Step],
    sound: bool,
    began: Instant,
    args: &Args,
) -> Result<()> {
    let count = |wanted: &str| steps.iter().filter(|step| words(&step.outcome).0 == wanted).count();
    let restored =
        |step: &&Step| step.name == "the files are restored" || step.name == "a server recovers and opens";
    let recovery: std::time::Duration = steps.iter().filter(restored).map(|step| step.took).sum();
    let fields = json!({
        "snapshot": plan.backup.snapshot.id.to_string(),
        "system": plan.backup.cluster.system_identifier.to_string(),
        "target": plan.target.to_string(),
        "level": args.level,
        "time": text::rfc3339(ctx.now()),
        "host": ctx.host(),
        "program": concat!("keepwell ", env!("CARGO_PKG_VERSION")),
        "sound": sound,
        "seconds": began.elapsed().as_secs_f64(),
        "recovery_seconds": (args.level >= 3).then_some(recovery.as_secs_f64()),
        "last_transaction": plan.last_end.map(text::rfc3339),
        "steps": steps.iter().map(step_json).collect::<Vec<_>>(),
    });
    if let Some(file) = &args.report {
        fs::write(file, format!("{fields:#}\n")).with_context(|| format!("write `{}`", file.display()))?;
    }
    ctx.printer.json("pg_verify", fields);
    let took = match args.level {
        3.. => format!("; restoring and recovering took {}", text::duration(recovery)),
        _ => String::new(),
    };
    ctx.printer.line(format_args!(
        "{} passed, {} failed, {} could not be checked here{took}",
        count("passed"),
        count("failed"),
        count("unavailable")
    ));
    Ok(())
}

fn words(outcome: &Outcome) -> (&'static str, &String) {
    static NOTHING: String = String::new();
    match outcome {
        Outcome::Passed => ("passed", &NOTHING),
        Outcome::Failed(why) => ("failed", why),
        Outcome::Unavailable(why) => ("unavailable", why),
    }
}

fn step_json(step: &Step) -> serde_json::Value {
    let (outcome, why) = words(&step.outcome);
    json!({ "level": step.level.number(), "name": step.name, "outcome": outcome, "reason": why,
        "detail": step.detail, "seconds": step.took.as_secs_f64() })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QuestionFile {
    question: Vec<Asked>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Asked {
    name: String,
    database: String,
    sql: String,
    equals: Option<String>,
    at_least: Option<i64>,
    at_most: Option<i64>,
}

fn read_questions(file: &std::path::Path) -> Result<Vec<Question>> {
    let text = fs::read_to_string(file).with_context(|| format!("read `{}`", file.display()))?;
    parse_questions(&text).map_err(|why| Complaint::usage(format!("`{}`: {why}", file.display())).into())
}

fn parse_questions(text: &str) -> Result<Vec<Question>, String> {
    let file: QuestionFile = toml::from_str(text).map_err(|error| error.to_string())?;
    let understood = file.question.into_iter().map(|asked| {
        let expect = match (asked.equals, asked.at_least, asked.at_most) {
            (Some(text), None, None) => Expect::Equal(text),
            (None, least, most) if least.or(most).is_some() => Expect::Between(least, most),
            _ => return Err(format!("`{}` needs `equals`, or `at-least` or `at-most`", asked.name)),
        };
        Ok(Question { name: asked.name, database: asked.database, sql: asked.sql, expect })
    });
    understood.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_says_what_it_expects_once() {
        let one = "[[question]]\nname = 'n'\ndatabase = 'd'\nsql = 'SELECT 1'\n";
        let read = |more: &str| parse_questions(&format!("{one}{more}"));
        assert_eq!(read("equals = '1'").unwrap()[0].expect, Expect::Equal("1".into()));
        assert_eq!(read("at-least = 1\nat-most = 2").unwrap()[0].expect, Expect::Between(Some(1), Some(2)));
        for wrong in ["", "equals = '1'\nat-least = 1", "atleast = 1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
