//! Proving that a base backup recovers: a ladder of checks, each of which is dearer and says more.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use backup_core::target::TargetError;
use backup_core::{ArchiveFormat, Error as CoreError, Repository, Tree};
use keepwell_catalog::MapKey;

use super::plan::RecoveryPlan;
use super::restore::RestoreError;
use super::scratch::{Scratch, run};
use super::server::ServerError;
use super::target::sql_time;
use crate::cluster::{Answer, Cluster};

/// How far to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Every chunk of the snapshot is read and proved by its id.
    Chunks,
    /// The log is there from its beginning to the target.
    Log,
    /// The files are restored and compared with the manifest that the server made.
    Files,
    /// A server starts on them and recovers.
    Start,
    /// Every table and index is read and checked.
    Content,
    /// The team's own questions are answered as expected.
    Questions,
}

impl Level {
    /// All of them, in order.
    pub const ALL: [Self; 6] =
        [Self::Chunks, Self::Log, Self::Files, Self::Start, Self::Content, Self::Questions];

    /// 0 to 5.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// Of a number from 0 to 5.
    pub fn of(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// What became of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It held.
    Passed,
    /// It did not; with the reason.
    Failed(String),
    /// It could not be made on this host; with the reason.
    Unavailable(String),
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Of which level it is.
    pub level: Level,
    /// What was checked.
    pub name: String,
    /// What became of it.
    pub outcome: Outcome,
    /// What was found, in words.
    pub detail: String,
    /// How long it took.
    pub took: Duration,
}

/// A question with the answer that is expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// What it is about.
    pub name: String,
    /// In which database it is asked.
    pub database: String,
    /// The statement; the first value of its first row counts.
    pub sql: String,
    /// What is expected.
    pub expect: Expect,
}

/// An expectation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// Exactly this text.
    Equal(String),
    /// A number within these bounds, as far as they are given.
    Between(Option<i64>, Option<i64>),
    /// A number that is at least so many percent of the one that the base backup has on record as the answer.
    Recorded(u32),
}

impl Expect {
    fn holds(&self, answer: Option<&str>, recorded: Option<i64>) -> bool {
        let Some(answer) = answer else { return false };
        let number = answer.parse::<i64>();
        match self {
            Self::Equal(text) => text == answer,
            Self::Between(least, most) => number.is_ok_and(|number| {
                least.is_none_or(|least| number >= least) && most.is_none_or(|most| number <= most)
            }),
            Self::Recorded(percent) => number.is_ok_and(|number| {
                let least = |recorded: i64| i128::from(recorded) * i128::from(*percent);
                recorded.is_some_and(|recorded| i128::from(number) * 100 >= least(recorded))
            }),
        }
    }
}

/// Holds an answer against what is expected.
fn judged(question: &Question, cluster: &Cluster, answer: Option<&str>) -> Result<String, Outcome> {
    let is_it = |known: &&Answer| known.database == question.database && known.sql == question.sql;
    let known = cluster.answers.iter().find(is_it).and_then(|known| known.answer.as_deref());
    let recorded = known.and_then(|known| known.parse().ok());
    if let (Expect::Recorded(_), None) = (&question.expect, recorded) {
        let reason = "the base backup has no number on record: `pg backup --questions` records it";
        return Err(Outcome::Unavailable(reason.into()));
    }
    let shown = answer.unwrap_or("nothing").chars().take(200).collect::<String>();
    let said = match (&question.expect, recorded) {
        (Expect::Recorded(_), Some(recorded)) => {
            format!("the answer is {shown}, and {recorded} when it was backed up")
        }
        _ => format!("the answer is {shown}"),
    };
    match question.expect.holds(answer, recorded) {
        true => Ok(said),
        false => Err(Outcome::Failed(said)),
    }
}

/// Collects steps; each is timed, and reported the moment it ends.
pub struct Ladder<'r> {
    report: &'r mut (dyn FnMut(&Step) + Send),
    steps: Vec<Step>,
}

impl<'r> Ladder<'r> {
    /// `report` hears of each step.
    pub fn new(report: &'r mut (dyn FnMut(&Step) + Send)) -> Self {
        Self { report, steps: Vec::new() }
    }

    /// Whether no step failed.
    pub fn is_sound(&self) -> bool {
        !self.steps.iter().any(|step| matches!(step.outcome, Outcome::Failed(_)))
    }

    /// All steps so far.
    pub fn into_steps(self) -> Vec<Step> {
        self.steps
    }

    /// Notes what became of a check that began then.
    pub fn note(&mut self, level: Level, name: &str, began: Instant, result: Result<String, Outcome>) {
        let (outcome, detail) = match result {
            Ok(detail) => (Outcome::Passed, detail),
            Err(outcome) => (outcome, String::new()),
        };
        let step = Step { level, name: name.to_owned(), outcome, detail, took: began.elapsed() };
        (self.report)(&step);
        self.steps.push(step);
    }

    /// Level 0.
    pub async fn chunks(&mut self, repository: &Repository, plan: &RecoveryPlan) {
        let began = Instant::now();
        let read = async {
            let tree: Tree = plan.backup.tree(repository).await?;
            let mut files = 0_u64;
            let count = |_: &MapKey, entry: &keepwell_catalog::Entry| {
                files += u64::from(entry.kind.has_content());
                ControlFlow::Continue(())
            };
            tree.list(&plan.backup.root, backup_core::Depth::All, count).await?;
            let mut sink = Counter(0);
            tree.dump_archive(&plan.backup.root, ArchiveFormat::Tar, &mut sink).await?;
            Ok::<_, backup_core::Error>(format!("{files} files, {} bytes", sink.0))
        };
        let result = read.await.map_err(failed);
        self.note(Level::Chunks, "every chunk of the snapshot is read and proved", began, result);
    }

    /// Level 1; the plan is the proof.
    pub fn log(&mut self, plan: &RecoveryPlan) {
        let last = plan
            .last_end
            .map_or_else(String::new, |end| format!(", the last transaction ended {}", sql_time(end)));
        // Of a plan whose target lay behind a gap there would be none.
        let behind = plan.gap.map_or_else(String::new, |gap| {
            format!("; behind the target the log from {} to {} is missing", gap.from, gap.to)
        });
        let result = Ok(format!("from {} to {}{last}{behind}", plan.from, plan.to));
        self.note(Level::Log, "the log is there without a gap", Instant::now(), result);
    }

    /// Level 2, after the files were restored.
    pub async fn manifest(&mut self, scratch: &Scratch) {
        let began = Instant::now();
        let result = match scratch.program("pg_verifybackup") {
            _ if !scratch.data().join("backup_manifest").exists() => {
                Err(Outcome::Unavailable("the base backup has no manifest".into()))
            }
            None => Err(Outcome::Unavailable("pg_verifybackup is not on this host".into())),
            Some(mut program) => {
                // Places of tablespaces are other ones here; WAL comes from the archive.
                program
                    .args(["-n", "-q", "-i", "tablespace_map", "-i", "postgresql.auto.conf"])
                    .arg(scratch.data());
                run(program).await.map(|()| "no difference".to_owned()).map_err(fault)
            }
        };
        self.note(Level::Files, "pg_verifybackup", began, result);
    }

    /// Level 3, before the server starts: what the cluster needs beside its programs.
    pub fn extensions(&mut self, scratch: &Scratch, plan: &RecoveryPlan) {
        let result = match scratch.missing_extensions(&plan.backup) {
            None => Err(Outcome::Unavailable("where this server has its extensions is not known".into())),
            Some(missing) if missing.is_empty() => Ok(String::new()),
            Some(missing) => {
                let names: Vec<_> = missing.iter().map(ToString::to_string).collect();
                Err(Outcome::Unavailable(format!("not installed on this host: {}", names.join(", "))))
            }
        };
        self.note(Level::Start, "the cluster's extensions are here", Instant::now(), result);
    }

    /// Level 3, of a server that is open: whether it sorts here as it did where its indexes were made.
    pub async fn collations(&mut self, scratch: &Scratch, plan: &RecoveryPlan) {
        let began = Instant::now();
        let result = match scratch.other_collations(plan.backup.cluster.major()).await {
            Err(error) => Err(failed(error)),
            Ok(others) if others.is_empty() => Ok(String::new()),
            Ok(others) => {
                let others: Vec<_> = others.iter().map(ToString::to_string).collect();
                Err(Outcome::Unavailable(format!(
                    "indexes may be in another order here: {}",
                    others.join(", ")
                )))
            }
        };
        self.note(Level::Start, "collations are those that its indexes were made with", began, result);
    }

    /// Level 4: structure of tables and indexes, and every row.
    pub async fn content(&mut self, scratch: &Scratch) {
        let began = Instant::now();
        let result = match (scratch.program("pg_amcheck"), scratch.any_database().await) {
            (None, _) => Err(Outcome::Unavailable("pg_amcheck is not on this host".into())),
            (_, Err(error)) => Err(failed(error)),
            (Some(mut program), Ok(database)) => {
                program.args(["--install-missing=pg_catalog", "--all", "--heapallindexed", "--rootdescend"]);
                program.arg("--maintenance-db").arg(scratch.connection(&database));
                run(program).await.map(|()| "nothing found".to_owned()).map_err(fault)
            }
        };
        self.note(Level::Content, "pg_amcheck of all databases", began, result);
        let databases = match scratch.databases().await {
            Ok(databases) => databases,
            Err(error) => {
                self.note(Level::Content, "list the databases", began, Err(failed(error)));
                return;
            }
        };
        for database in databases {
            let began = Instant::now();
            let result = match scratch.program("pg_dump") {
                None => Err(Outcome::Unavailable("pg_dump is not on this host".into())),
                Some(mut program) => {
                    program.args(["-Fp", "-d"]).arg(scratch.connection(&database));
                    run(program).await.map(|()| String::new()).map_err(fault)
                }
            };
            self.note(Level::Content, &format!("every row of `{database}` is read"), began, result);
        }
    }

    /// Level 5.
    pub async fn questions(&mut self, scratch: &Scratch, plan: &RecoveryPlan, questions: &[Question]) {
        for question in questions {
            let began = Instant::now();
            let result = match scratch.query(&question.database, &question.sql).await {
                Err(error) => Err(failed(error)),
                Ok(rows) => judged(question, &plan.backup.cluster, rows.text(0, 0)),
            };
            self.note(Level::Questions, &question.name, began, result);
        }
    }
}

/// Why a program of the server failed, as the outcome of a check. What it lacks on this host, an extension, room on the disk
/// or itself, says nothing about the backup.
pub fn fault(error: ServerError) -> Outcome {
    let is_full = |reason: &str| reason.contains("No space left on device");
    match &error {
        ServerError::NoExtension { .. } | ServerError::Run { .. } => {
            Outcome::Unavailable(crate::one_line(&error))
        }
        ServerError::Ended { reason, .. } | ServerError::Failed { reason, .. } if is_full(reason) => {
            Outcome::Unavailable(crate::one_line(&error))
        }
        _ => failed(error),
    }
}

/// An error as the outcome of a check.
pub fn failed(error: impl std::error::Error) -> Outcome {
    Outcome::Failed(crate::one_line(&error))
}

/// Why a scratch cluster could not be restored, as the outcome of a check. What its directory lacks (room, permissions, a
/// disk) says nothing about the backup.
pub fn not_restored(error: RestoreError) -> Outcome {
    let is_of_host = match &error {
        RestoreError::Io { .. } | RestoreError::Engine(CoreError::NoSpace { .. }) => true,
        RestoreError::Engine(CoreError::Target(target)) => matches!(**target, TargetError::Io { .. }),
        _ => false,
    };
    match is_of_host {
        true => Outcome::Unavailable(crate::one_line(&error)),
        false => failed(error),
    }
}

struct Counter(u64);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recovery::{Bound, Planner, Target, TargetTime};
    use crate::testing::{Made, SYSTEM, World, put_committed, size};

    #[test]
    fn answers_are_held_against_expectations() {
        let between = |least, most| Expect::Between(least, most);
        for (expect, answer, holds) in [
            (Expect::Equal("t".into()), Some("t"), true),
            (Expect::Equal("t".into()), Some("f"), false),
            (Expect::Equal("".into()), None, false),
            (between(Some(3), None), Some("3"), true),
            (between(Some(3), Some(5)), Some("6"), false),
            (between(None, Some(5)), Some("-1"), true),
            (between(None, None), Some("many"), false),
        ] {
            assert_eq!(expect.holds(answer, None), holds, "{expect:?} {answer:?}");
        }
    }

    #[test]
    fn an_answer_is_held_against_the_one_that_was_recorded() {
        let cluster = |answers: &str| {
            let text = format!(
                r#"{{ "format": 1, "system_identifier": "7", "server_version_num": 150018, "timeline": 1,
                    "start_lsn": "0/28", "stop_lsn": "0/100", "start_time": 0, "stop_time": 0,
                    "wal_segment_size": 16777216, "answers": [{answers}] }}"#
            );
            Cluster::parse(text.as_bytes()).unwrap()
        };
        let question = Question {
            name: "patients".into(),
            database: "clinic".into(),
            sql: "SELECT 1".into(),
            expect: Expect::Recorded(95),
        };
        let other = r#"{ "database": "other", "sql": "SELECT 1", "answer": "5" }"#;
        let word = r#"{ "database": "clinic", "sql": "SELECT 1", "answer": "many" }"#;
        for answers in ["", other, word] {
            let judged = judged(&question, &cluster(answers), Some("1000"));
            assert!(matches!(judged, Err(Outcome::Unavailable(_))), "{judged:?}");
        }
        let cluster = cluster(r#"{ "database": "clinic", "sql": "SELECT 1", "answer": "1000" }"#);
        for (answer, holds) in [
            (Some("1000"), true),
            (Some("950"), true),
            (Some("949"), false),
            (Some("x"), false),
            (None, false),
        ] {
            let judged = judged(&question, &cluster, answer);
            let said =
                format!("the answer is {}, and 1000 when it was backed up", answer.unwrap_or("nothing"));
            assert_eq!(judged, if holds { Ok(said) } else { Err(Outcome::Failed(said)) });
        }
    }

    #[test]
    fn a_full_disk_of_this_host_is_no_fault_of_the_backup() {
        let io = || TargetError::Io {
            operation: "write",
            path: "data/base/1/2".into(),
            source: io::ErrorKind::StorageFull.into(),
        };
        let engine = |error: CoreError| not_restored(RestoreError::Engine(error));
        assert!(matches!(engine(io().into()), Outcome::Unavailable(_)));
        let refused = TargetError::Refused { path: "..".into(), reason: "it leads out".into() };
        assert!(matches!(engine(refused.into()), Outcome::Failed(_)));
        let damaged = CoreError::Damaged { object: "o".into(), reason: "r".into() };
        assert!(matches!(engine(damaged), Outcome::Failed(_)));
        let ended = |reason: &str| fault(ServerError::Ended { status: "1".into(), reason: reason.into() });
        let full = ended("could not write to file \"pg_wal/xlogtemp.29\": No space left on device");
        assert!(matches!(full, Outcome::Unavailable(_)));
        assert!(matches!(ended("invalid checkpoint record"), Outcome::Failed(_)));
    }

    #[tokio::test]
    async fn a_gap_behind_the_target_is_named_and_is_no_failure() {
        const NINE: i64 = 1_795_248_000;
        let world = World::new().await;
        let lsn = |number, offset| size().start_of(number).plus(offset);
        let backup = Made::new(SYSTEM, lsn(3, 40), lsn(3, 80), NINE, "").back_up(&world, "db").await;
        put_committed(&world.repository, 1, 3, &[NINE - 60, NINE + 60, NINE + 120]).await;
        put_committed(&world.repository, 1, 5, &[NINE + 180]).await;
        let planner = Planner::new(world.repository.clone(), vec![backup]).unwrap();
        let time = TargetTime::new((NINE + 90) * 1_000_000_000).unwrap();
        let plan = planner.plan(&Target::Time(time, Bound::Inclusive), None).await.unwrap();
        assert!(plan.gap.is_some());
        assert!(plan.asker().to_gap);
        let mut report = |_: &Step| {};
        let mut ladder = Ladder::new(&mut report);
        ladder.log(&plan);
        let steps = ladder.into_steps();
        assert_eq!(steps[0].outcome, Outcome::Passed);
        assert!(steps[0].detail.ends_with("behind the target the log from 0/400000 to 0/500000 is missing"));
    }

    #[test]
    fn levels_are_counted_from_zero() {
        assert_eq!(Level::ALL.map(Level::number), [0, 1, 2, 3, 4, 5]);
        assert_eq!(Level::of(5), Some(Level::Questions));
        assert_eq!(Level::of(6), None);
    }
}
