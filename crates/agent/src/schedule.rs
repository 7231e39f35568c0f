//! The loop: jobs of one repository run one after the other, those of different repositories side by side.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use backup_core::env::{Clock, Timestamp};
use keepwell_storage::StorageError;
use tokio::task::JoinSet;

use crate::config::{Config, Job, JobName, Place};
use crate::copy::{Copied, Places, is_attached, is_behind, is_passing};
use crate::due::{History, RETRY_AFTER, due};
use crate::run::{Done, run, update_copy};
use crate::state::State;
use crate::stop::Stop;

/// The wall clock is looked at this often, because it may jump, and because a machine that slept counts its sleep.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// It is looked this often whether the place of a copy has been attached.
const ATTACHED_EVERY: Duration = Duration::from_secs(10);

/// How the runs so far went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Some run failed.
    pub failed: bool,
    /// Some run left out what it could not read.
    pub skipped: bool,
    /// A signal ended it before everything that is due had run.
    pub interrupted: bool,
}

/// Whether to go on after everything that is due has run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// End then.
    Once,
    /// Until a signal.
    Forever,
}

/// Runs the jobs of a configuration. Fails at once when the jobs of one repository come to a sudden end, instead of going on
/// without them.
pub async fn work(config: Config, clock: Arc<dyn Clock>, stop: Stop, mode: Mode) -> Result<Outcome> {
    let state = State::open(config.state_directory.as_path())?;
    let mut groups: BTreeMap<Place, Vec<Planned>> = BTreeMap::new();
    for (name, job) in config.jobs {
        let history = History { succeeded: state.succeeded(&name)?, failed: None };
        // Whether they are attached nobody knows yet; and the last run may have ended before it came to others.
        let is_late = |copy| is_behind(&state, &name, copy, history.succeeded);
        let late = job.copies.iter().enumerate().filter(|(_, copy)| copy.when_attached || is_late(copy));
        let late = late.map(|(at, _)| (at, Timestamp::MIN)).collect();
        groups.entry(job.repository.clone()).or_default().push(Planned { name, job, history, late });
    }
    let mut lines = JoinSet::new();
    for jobs in groups.into_values() {
        let line = Line { jobs, state: state.clone(), clock: Arc::clone(&clock), stop: stop.clone() };
        lines.spawn(line.work(mode));
    }
    let mut sum = Outcome::default();
    while let Some(ended) = lines.join_next().await {
        let outcome = ended.context("the jobs of a repository came to a sudden end")?;
        sum.failed |= outcome.failed;
        sum.skipped |= outcome.skipped;
        sum.interrupted |= outcome.interrupted;
    }
    Ok(sum)
}

#[derive(Debug)]
struct Planned {
    name: JobName,
    job: Job,
    history: History,
    /// Its copies that are brought up to date before the next run, by their numbers; each not before this time.
    late: BTreeMap<usize, Timestamp>,
}

/// The jobs of one repository.
struct Line {
    jobs: Vec<Planned>,
    state: State,
    clock: Arc<dyn Clock>,
    stop: Stop,
}

impl Line {
    async fn work(self, mode: Mode) -> Outcome {
        match mode {
            Mode::Once => self.once().await,
            Mode::Forever => self.forever().await,
        }
    }

    /// Runs what is due now, each job once, however soon it would be due again.
    async fn once(mut self) -> Outcome {
        let mut outcome = Outcome::default();
        let now = self.clock.now();
        let mut due: Vec<(Timestamp, usize)> =
            self.moments(now).zip(0..).filter(|(when, _)| *when <= now).collect();
        due.sort_unstable();
        for (_, index) in due {
            if self.stop.is_requested() {
                outcome.interrupted = true;
                break;
            }
            self.run(index, self.clock.now(), &mut outcome).await;
        }
        outcome
    }

    async fn forever(mut self) -> Outcome {
        let mut outcome = Outcome::default();
        loop {
            let (next, when) = self.next();
            let now = self.clock.now();
            if self.stop.is_requested() {
                return outcome;
            } else if when <= now {
                self.run(next, now, &mut outcome).await;
            } else {
                let waits = self.jobs.iter().any(|planned| !planned.late.is_empty());
                let pause = Duration::from_nanos(when.abs_diff(now));
                let pause = pause.min(if waits { ATTACHED_EVERY } else { LOOK_EVERY });
                self.catch_up(now, &mut outcome).await;
                tokio::select! { () = tokio::time::sleep(pause) => {}, () = self.stop.requested() => {} }
            }
        }
    }

    /// Brings copies up to date that are late: they were away and have been attached, their store did not answer, or the agent
    /// ended before it came to them. Any other failure is told once, and the next run of the job tries again.
    async fn catch_up(&mut self, now: Timestamp, outcome: &mut Outcome) {
        let Self { jobs, state, stop, clock } = self;
        for planned in jobs {
            for (at, when) in planned.late.clone() {
                let (name, job, copy) = (&planned.name, &planned.job, &planned.job.copies[at]);
                let places = Places { name, job, copy, state, stop, clock: &**clock };
                // Without a snapshot yet there is nothing to copy.
                if stop.is_requested() || is_to_come(when, now) || planned.history.succeeded.is_none() {
                    continue;
                }
                if copy.when_attached && !is_attached(&places).await {
                    continue;
                }
                let copied = update_copy(&places).await;
                outcome.failed |= !say_copied(name, copy.name.as_str(), &copied);
                planned.late.remove(&at);
                planned.late.extend(again(&copied, now).map(|when| (at, when)));
            }
        }
    }

    /// When each job is due.
    fn moments(&self, now: Timestamp) -> impl Iterator<Item = Timestamp> {
        self.jobs.iter().map(move |planned| due(planned.history, planned.job.every.duration(), now))
    }

    /// The job that has been due longest, or will be first.
    fn next(&self) -> (usize, Timestamp) {
        let first = self.moments(self.clock.now()).enumerate().min_by_key(|(_, moment)| *moment);
        first.expect("a line has a job")
    }

    async fn run(&mut self, index: usize, now: Timestamp, outcome: &mut Outcome) {
        let planned = &mut self.jobs[index];
        let began = self.clock.monotonic();
        let done = run(&planned.name, &planned.job, &self.state, &self.stop, &*self.clock).await;
        let seconds = (self.clock.monotonic() - began).as_millis() as f64 / 1000.0;
        match done {
            Ok(done) => {
                planned.history = History { succeeded: Some(now), failed: None };
                if let Err(error) = self.state.remember(&planned.name, now) {
                    // The snapshot is there; after a restart the job runs once more.
                    let (job, error) = (planned.name.as_str(), format!("{error:#}"));
                    tracing::error!(job, error, "that the run succeeded cannot be remembered");
                    outcome.failed = true;
                }
                outcome.skipped |= done.report.problem_count > 0;
                outcome.failed |= done.forgotten.is_err();
                say(&planned.name, &done, seconds);
                outcome.interrupted |= self.stop.is_requested() && !done.is_whole(&planned.job);
                planned.late.clear();
                for (at, (copy, copied)) in done.copies.iter().enumerate() {
                    planned.late.extend(again(copied, now).map(|when| (at, when)));
                    outcome.failed |= !say_copied(&planned.name, copy, copied);
                }
            }
            Err(_) if self.stop.is_requested() => {
                outcome.interrupted = true;
                tracing::info!(job = planned.name.as_str(), seconds, "interrupted");
            }
            Err(error) => {
                planned.history.failed = Some(now);
                outcome.failed = true;
                let (job, hint) = (planned.name.as_str(), hint(&error));
                let (error, hint) = (format!("{error:#}"), hint.as_deref());
                tracing::error!(job, seconds, error, hint, "failed");
            }
        }
    }
}

/// When a copy is tried again before the next run of its job, if it is: as soon as it is attached, or some time after its store
/// did not answer.
fn again(copied: &Result<Copied>, now: Timestamp) -> Option<Timestamp> {
    match copied {
        Ok(copied) => copied.away.then_some(Timestamp::MIN),
        Err(error) => is_passing(error).then(|| now.saturating_add(retry_nanoseconds())),
    }
}

/// Whether a time is still to come. One that is further away than it can have been is not: the clock was set back.
fn is_to_come(when: Timestamp, now: Timestamp) -> bool {
    (1..=retry_nanoseconds()).contains(&when.saturating_sub(now))
}

fn retry_nanoseconds() -> Timestamp {
    Timestamp::try_from(RETRY_AFTER.as_nanos()).unwrap_or(Timestamp::MAX)
}

/// Says what came of a copy; gives whether that is as it should be.
fn say_copied(job: &JobName, copy: &str, copied: &Result<Copied>) -> bool {
    let job = job.as_str();
    let copied = match copied {
        Ok(copied) => copied,
        Err(error) => {
            let hint = hint(error);
            tracing::error!(job, copy, error = format!("{error:#}"), hint = hint.as_deref(), "not copied");
            return false;
        }
    };
    if copied.stale {
        tracing::warn!(job, copy, "the copy is too old");
    }
    let Copied { away, snapshots, bytes, forgotten, bytes_freed, stale } = copied;
    match away {
        true => tracing::info!(job, copy, "not attached"),
        false => {
            let (stored_bytes, freed_bytes) = (bytes, bytes_freed);
            tracing::info!(job, copy, snapshots, stored_bytes, freed_bytes, forgotten, "copied");
        }
    }
    !stale
}

fn say(name: &JobName, done: &Done, seconds: f64) {
    let (report, s) = (&done.report, &done.report.statistics);
    for (item, reason) in report.problems.iter().take(20) {
        tracing::warn!(job = name.as_str(), item, reason, "not captured as it is");
    }
    tracing::info!(
        job = name.as_str(),
        snapshot = &report.snapshot.to_string()[..8],
        files = s.files,
        new = s.new_files,
        changed = s.changed_files,
        stored_bytes = s.new_stored_bytes,
        problems = report.problem_count,
        forgotten = done.forgotten.as_ref().unwrap_or(&0),
        seconds,
        "backed up"
    );
    if let Err(error) = &done.forgotten {
        let hint = hint(error);
        tracing::error!(
            job = name.as_str(),
            error = format!("{error:#}"),
            hint = hint.as_deref(),
            "not forgotten"
        );
    }
}

/// What may help, of the outermost cause that knows something.
fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| match cause.downcast_ref::<backup_core::Error>() {
        Some(error) => error.hint(),
        None => cause.downcast_ref::<StorageError>().and_then(|error| error.hint.clone()),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use backup_core::env::SystemClock;
    use backup_core::{CreateOptions, Created};
    use keepwell_storage::{LocalFs, LocalOptions};

    use super::*;

    #[test]
    fn a_copy_whose_store_did_not_answer_is_tried_again_and_one_that_was_refused_is_not() {
        use keepwell_storage::StorageErrorKind as Kind;
        let failed = |kind| StorageError::new(kind, "get", "keepwell.json", "no");
        let of_engine = |kind| -> Result<Copied> { Err(backup_core::Error::from(failed(kind)).into()) };
        let now = 1_795_000_000_000_000_000;
        let later = now + 600 * 1_000_000_000;
        assert_eq!(again(&of_engine(Kind::Unavailable), now), Some(later));
        assert_eq!(again(&Err(failed(Kind::Throttled).into()), now), Some(later));
        assert_eq!(again(&of_engine(Kind::PermissionDenied), now), None);
        assert_eq!(again(&Err(anyhow::anyhow!("the copy is damaged")), now), None);
        assert_eq!(again(&Ok(Copied::default()), now), None);
        let when = again(&Ok(Copied { away: true, ..Copied::default() }), now).unwrap();
        assert!(!is_to_come(when, now) && is_to_come(later, now) && !is_to_come(later, later));
        assert!(!is_to_come(later, 0), "the clock was set back");
    }

    /// Breaks when it is looked at for the third time: by the second of two lines, when the first has begun a run.
    #[derive(Debug, Default)]
    struct Broken(AtomicU32);

    impl Clock for Broken {
        fn now(&self) -> Timestamp {
            assert!(self.0.fetch_add(1, Ordering::SeqCst) < 2, "it breaks");
            0
        }

        fn monotonic(&self) -> Duration {
            Duration::ZERO
        }
    }

    /// A configuration of jobs by these names, of which nothing is there.
    fn config_of(directory: &std::path::Path, names: &[&str]) -> Config {
        let top = directory.display();
        let mut text = format!("state-directory = \"{top}/state\"\n");
        for name in names {
            text.push_str(&format!(
                "[job.{name}]\nrepository = \"{top}/{name}\"\nkey-file = \"{top}/key\"\npaths = [\"{top}\"]\nevery = \"1h\"\n"
            ));
        }
        std::fs::write(directory.join("config"), text).unwrap();
        crate::config::load(&directory.join("config")).unwrap()
    }

    #[tokio::test]
    async fn jobs_that_come_to_a_sudden_end_are_not_gone_on_without() {
        let dir = tempfile::tempdir().unwrap();
        let config = config_of(dir.path(), &["a", "b"]);
        let stop = Stop::on_signals().unwrap();
        let working = work(config, Arc::new(Broken::default()), stop, Mode::Forever);
        let ended = tokio::time::timeout(Duration::from_secs(60), working).await.expect("it must not go on");
        assert!(ended.unwrap_err().to_string().contains("sudden end"));
    }

    /// It is two hours later when a run has begun.
    #[derive(Debug, Default)]
    struct Late(AtomicU32);

    impl Clock for Late {
        fn now(&self) -> Timestamp {
            let has_begun = self.0.fetch_add(1, Ordering::SeqCst) >= 2;
            SystemClock.now() - if has_begun { 0 } else { 2 * 3600 * 1_000_000_000 }
        }

        fn monotonic(&self) -> Duration {
            Duration::ZERO
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_long_run_captured_is_copied_by_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("tree")).unwrap();
        std::fs::write(path("tree/file"), "content").unwrap();
        let store = LocalFs::create(path("repository"), &LocalOptions::default()).await.unwrap();
        let options = CreateOptions { owner: "o".into(), member: "m".into(), store_hint: None, probe: None };
        let key = Created::generate(&options, 1).unwrap().store(&store).await.unwrap();
        std::fs::write(path("key"), key.to_toml().expose()).unwrap();
        let text = "state-directory = \"TOP/state\"\n[job.a]\nrepository = \"TOP/repository\"\n\
                    key-file = \"TOP/key\"\npaths = [\"TOP/tree\"]\nevery = \"1h\"\n[[job.a.copy]]\n\
                    name = \"near\"\nto = \"TOP/near\"\nselect = { daily = \"all\" }\n";
        std::fs::write(path("config"), text.replace("TOP", &dir.path().display().to_string())).unwrap();
        let config = crate::config::load(&path("config")).unwrap();
        let stop = Stop::on_signals().unwrap();
        let outcome = work(config, Arc::new(Late::default()), stop, Mode::Once).await.unwrap();
        assert_eq!(outcome, Outcome::default());
        let state = State::open(&path("state")).unwrap();
        let name = |text: &str| JobName::try_from(text.to_owned()).unwrap();
        assert!(state.newest_in(&name("a"), &name("near")).unwrap().is_some(), "it came to the copy");
    }

    /// A signal comes as soon as a run begins, which is when it is looked at how long that takes.
    #[derive(Debug)]
    struct Interrupting(backup_core::Cancel);

    impl Clock for Interrupting {
        fn now(&self) -> Timestamp {
            0
        }

        fn monotonic(&self) -> Duration {
            self.0.cancel();
            Duration::ZERO
        }
    }

    #[tokio::test]
    async fn a_signal_during_the_last_run_is_no_success() {
        let dir = tempfile::tempdir().unwrap();
        let stop = Stop::on_signals().unwrap();
        let clock = Arc::new(Interrupting(stop.cancel()));
        let outcome = work(config_of(dir.path(), &["a"]), clock, stop, Mode::Once).await.unwrap();
        assert_eq!(outcome, Outcome { interrupted: true, ..Outcome::default() });
    }
}
