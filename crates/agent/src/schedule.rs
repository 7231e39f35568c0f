//! The loop: jobs of one repository run one after the other, those of different repositories side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use backup_core::env::{Clock, Timestamp};

use crate::config::{Config, Job, JobName, Place};
use crate::copy::{Copied, Places, is_attached};
use crate::due::{History, due};
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

/// Runs the jobs of a configuration.
pub async fn work(config: Config, clock: Arc<dyn Clock>, stop: Stop, mode: Mode) -> Result<Outcome> {
    let state = State::open(config.state_directory.as_path())?;
    let mut groups: BTreeMap<Place, Vec<Planned>> = BTreeMap::new();
    for (name, job) in config.jobs {
        let history = History { succeeded: state.succeeded(&name)?, failed: None };
        // Whether they are attached nobody knows yet.
        let wanted = job.copies.iter().enumerate().filter(|(_, copy)| copy.when_attached);
        let away = wanted.map(|(at, _)| at).collect();
        groups.entry(job.repository.clone()).or_default().push(Planned { name, job, history, away });
    }
    let lines = groups.into_values().map(|jobs| {
        let line = Line { jobs, state: state.clone(), clock: Arc::clone(&clock), stop: stop.clone() };
        tokio::spawn(line.work(mode))
    });
    let mut sum = Outcome::default();
    for line in lines.collect::<Vec<_>>() {
        let outcome = line.await?;
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
    /// Its copies that are waited for, by their numbers.
    away: BTreeSet<usize>,
}

/// The jobs of one repository.
struct Line {
    jobs: Vec<Planned>,
    state: State,
    clock: Arc<dyn Clock>,
    stop: Stop,
}

impl Line {
    async fn work(mut self, mode: Mode) -> Outcome {
        let mut outcome = Outcome::default();
        loop {
            let (next, when) = self.next();
            let now = self.clock.now();
            let is_due = when <= now;
            if self.stop.is_requested() {
                outcome.interrupted = is_due;
                return outcome;
            } else if is_due {
                self.run(next, now, &mut outcome).await;
            } else if mode == Mode::Once {
                return outcome;
            } else {
                let waits = self.jobs.iter().any(|planned| !planned.away.is_empty());
                let pause = Duration::from_nanos(when.abs_diff(now));
                let pause = pause.min(if waits { ATTACHED_EVERY } else { LOOK_EVERY });
                self.copy_to_attached(now, &mut outcome).await;
                tokio::select! { () = tokio::time::sleep(pause) => {}, () = self.stop.requested() => {} }
            }
        }
    }

    /// Brings copies up to date that were away and have been attached. A failure is told once; the next run of the job
    /// tries again.
    async fn copy_to_attached(&mut self, now: Timestamp, outcome: &mut Outcome) {
        let Self { jobs, state, stop, .. } = self;
        for planned in jobs {
            for at in planned.away.clone() {
                let (name, job, copy) = (&planned.name, &planned.job, &planned.job.copies[at]);
                let places = Places { name, job, copy, state, stop };
                // Without a snapshot yet there is nothing to copy.
                if stop.is_requested() || planned.history.succeeded.is_none() || !is_attached(&places).await {
                    continue;
                }
                planned.away.remove(&at);
                let copied = update_copy(&places, now).await;
                outcome.failed |= !say_copied(name, copy.name.as_str(), &copied);
            }
        }
    }

    /// The job that has been due longest, or will be first.
    fn next(&self) -> (usize, Timestamp) {
        let now = self.clock.now();
        let moments = self.jobs.iter().map(|planned| due(planned.history, planned.job.every.duration(), now));
        let first = moments.enumerate().min_by_key(|(_, moment)| *moment);
        first.expect("a line has a job")
    }

    async fn run(&mut self, index: usize, now: Timestamp, outcome: &mut Outcome) {
        let planned = &mut self.jobs[index];
        let began = self.clock.monotonic();
        let done = run(&planned.name, &planned.job, &self.state, &self.stop, now).await;
        let seconds = (self.clock.monotonic() - began).as_millis() as f64 / 1000.0;
        let done = done.and_then(|done| self.state.remember(&planned.name, now).map(|()| done));
        match done {
            Ok(done) => {
                planned.history = History { succeeded: Some(now), failed: None };
                outcome.skipped |= done.report.problem_count > 0;
                say(&planned.name, &done, seconds);
                planned.away.clear();
                for (at, (copy, copied)) in done.copies.iter().enumerate() {
                    if copied.as_ref().is_ok_and(|copied| copied.away) {
                        planned.away.insert(at);
                    }
                    outcome.failed |= !say_copied(&planned.name, copy, copied);
                }
            }
            Err(_) if self.stop.is_requested() => {
                tracing::info!(job = planned.name.as_str(), seconds, "interrupted");
            }
            Err(error) => {
                planned.history.failed = Some(now);
                outcome.failed = true;
                tracing::error!(job = planned.name.as_str(), seconds, error = format!("{error:#}"), "failed");
            }
        }
    }
}

/// Says what came of a copy; gives whether that is as it should be.
fn say_copied(job: &JobName, copy: &str, copied: &Result<Copied>) -> bool {
    let job = job.as_str();
    let copied = match copied {
        Ok(copied) => copied,
        Err(error) => {
            tracing::error!(job, copy, error = format!("{error:#}"), "not copied");
            return false;
        }
    };
    if copied.stale {
        tracing::warn!(job, copy, "the copy is too old");
    }
    let Copied { away, snapshots, bytes, forgotten, stale } = copied;
    match away {
        true => tracing::info!(job, copy, "not attached"),
        false => tracing::info!(job, copy, snapshots, stored_bytes = bytes, forgotten, "copied"),
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
        forgotten = done.forgotten,
        seconds,
        "backed up"
    );
}
