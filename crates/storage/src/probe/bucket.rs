//! How is the bucket set up?

use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{ProbeOptions, ProbeReport};
use crate::control::{Answer, BucketFacts, Danger, LifecycleRule, NOTICE_DAYS, ObjectLock, Versioning};
use crate::{Control, StorageError};

/// Clocks further apart than this are worth a word.
const CLOCK_NOTE_SECONDS: i64 = 60;
/// S3 refuses requests that are signed further from its time than this.
const CLOCK_PROBLEM_SECONDS: i64 = 15 * 60;

/// How a bucket is set up; what is absent is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketReport {
    /// Whether it keeps what is deleted or overwritten.
    pub versioning: Option<Versioning>,
    /// Whether it can lock objects.
    pub object_lock: Option<bool>,
    /// The mode in which new objects are locked, if they are.
    pub default_lock_mode: Option<String>,
    /// Days for which new objects are locked, if they are.
    pub default_lock_days: Option<u32>,
    /// Days that an object must have been there before anybody may delete it; 0 if there is no such rule.
    #[serde(default)]
    pub retention_days: Option<u32>,
    /// Days for which what is deleted can be brought back, beside versions.
    #[serde(default)]
    pub undelete_days: Option<u32>,
    /// Names of the lifecycle rules that are in force.
    pub lifecycle_rules: Option<Vec<String>>,
    /// What lifecycle rules do that loses backups or puts them out of reach, as sentences that name the rule.
    #[serde(default)]
    pub lifecycle_problems: Vec<String>,
    /// How it encrypts by default.
    pub encryption: Option<String>,
    /// How far its clock is ahead of this machine's, in seconds.
    pub clock_ahead_seconds: Option<i64>,
}

/// Asks, and says what the answers mean.
pub(super) async fn examine(control: &dyn Control, options: &ProbeOptions<'_>, report: &mut ProbeReport) {
    let before = (options.now)();
    let clock = control.server_time().await.map(|there| ahead_seconds(there, before, (options.now)()));
    let facts = control.bucket().await;
    report.bucket = Some(summary(&facts, clock.as_ref().ok().copied()));
    describe_clock(clock, report);
    describe_versions(&facts, report);
    let prefix = if options.prefix.is_empty() { String::new() } else { format!("{}/", options.prefix) };
    describe_lifecycle(&facts, &prefix, report);
    match &facts.encryption {
        Answer::Known(Some(how)) => report
            .findings
            .push(format!("The store encrypts objects by itself ({how}), beside our own encryption.")),
        Answer::Known(None) => {}
        other => not_known(report, "encryption by the store", other),
    }
}

fn summary(facts: &BucketFacts, clock_ahead_seconds: Option<i64>) -> BucketReport {
    let (default_lock_mode, default_lock_days) = match facts.lock.known() {
        Some(ObjectLock::Default { mode, days }) => (Some(mode.clone()), Some(*days)),
        _ => (None, None),
    };
    let active = |rules: &Vec<LifecycleRule>| {
        rules.iter().filter(|rule| rule.enabled).map(|rule| rule.id.clone()).collect()
    };
    let retention = |lock: &ObjectLock| match lock {
        ObjectLock::Retention { days } => *days,
        _ => 0,
    };
    BucketReport {
        versioning: facts.versioning.known().copied(),
        object_lock: facts
            .lock
            .known()
            .map(|lock| matches!(lock, ObjectLock::On | ObjectLock::Default { .. })),
        default_lock_mode,
        default_lock_days,
        retention_days: facts.lock.known().map(retention),
        undelete_days: facts.undelete_days.known().copied(),
        lifecycle_rules: facts.lifecycle.known().map(active),
        lifecycle_problems: Vec::new(),
        encryption: facts.encryption.known().cloned().flatten(),
        clock_ahead_seconds,
    }
}

/// Seconds that `there` is ahead of the middle between `before` and `after`.
fn ahead_seconds(there: SystemTime, before: SystemTime, after: SystemTime) -> i64 {
    let middle = before + after.duration_since(before).unwrap_or_default() / 2;
    let seconds = |time: std::time::Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    match there.duration_since(middle) {
        Ok(ahead) => seconds(ahead),
        Err(behind) => -seconds(behind.duration()),
    }
}

fn describe_clock(clock: Result<i64, StorageError>, report: &mut ProbeReport) {
    let seconds = match clock {
        Ok(seconds) => seconds,
        Err(error) => {
            report.notes.push(format!("The clock of the store could not be read: {error}."));
            return;
        }
    };
    let direction = if seconds < 0 { "behind" } else { "ahead of" };
    let text = format!("The clock of the store is {} seconds {direction} ours.", seconds.unsigned_abs());
    match seconds.abs() {
        0..=CLOCK_NOTE_SECONDS => report.findings.push("The clock of the store agrees with ours.".into()),
        ..=CLOCK_PROBLEM_SECONDS => report.notes.push(text),
        _ => report
            .problems
            .push(format!("{text} Set the clocks: requests are refused, or retention goes wrong.")),
    }
}

fn describe_versions(facts: &BucketFacts, report: &mut ProbeReport) {
    let undelete = facts.undelete_days.known().copied().unwrap_or(0);
    describe_undelete(undelete, report);
    match &facts.versioning {
        Answer::Known(Versioning::Enabled) => report.findings.push(
            "The bucket keeps old versions: what is deleted or overwritten can be brought back until they expire.".into(),
        ),
        Answer::Known(Versioning::Off) if undelete > 0 => {}
        Answer::Known(Versioning::Off) => report.notes.push(
            "The bucket keeps no old versions: what is deleted or overwritten there is gone. Versions are the second line \
             against stolen credentials; switch them on if they can be paid for."
                .into(),
        ),
        Answer::Known(Versioning::Suspended) => report.notes.push(
            "Versions are suspended in this bucket: what is stored now and deleted or overwritten later is gone.".into(),
        ),
        other => not_known(report, "versions", other),
    }
    match &facts.lock {
        Answer::Known(ObjectLock::Default { mode, days }) => report.findings.push(format!(
            "New objects are locked for {days} days ({mode}): nobody can remove their versions before that. A delete then \
             only hides them."
        )),
        Answer::Known(ObjectLock::On) => report.notes.push(
            "The bucket can lock objects, and does not lock new ones: set a default retention to make backups \
             undeletable for a time."
                .into(),
        ),
        Answer::Known(ObjectLock::Retention { days }) => report.notes.push(format!(
            "The bucket lets nobody delete or replace an object before it is {days} days old: `prune` leaves younger packs, \
             and what else it tidies up may be refused. A time for which deleted objects can be brought back protects as \
             well, and is not in its way."
        )),
        Answer::Known(ObjectLock::Off) => {}
        other => not_known(report, "object lock", other),
    }
}

/// Says for how long the bucket keeps what is gone, if it does.
fn describe_undelete(days: u32, report: &mut ProbeReport) {
    match days {
        0 => {}
        NOTICE_DAYS.. => report.findings.push(format!(
            "The bucket keeps what is deleted or overwritten for {days} days, out of reach of whoever may delete objects."
        )),
        _ => report.notes.push(format!(
            "The bucket keeps what is deleted or overwritten for {days} days: what an attacker or a mistake deletes can be \
             brought back only until then. {NOTICE_DAYS} or more are advised."
        )),
    }
}

fn describe_lifecycle(facts: &BucketFacts, prefix: &str, report: &mut ProbeReport) {
    let Answer::Known(rules) = &facts.lifecycle else {
        not_known(
            report,
            "lifecycle rules, which can delete backups or put them out of reach",
            &facts.lifecycle,
        );
        return;
    };
    let mut harmless = true;
    for danger in rules.iter().flat_map(|rule| rule.dangers(prefix)) {
        match danger {
            Danger::Problem(text) => {
                harmless = false;
                if let Some(bucket) = &mut report.bucket {
                    bucket.lifecycle_problems.push(text.clone());
                }
                report.problems.push(text);
            }
            Danger::Note(text) => report.notes.push(text),
        }
    }
    if harmless {
        report.findings.push("No lifecycle rule deletes what is ours, or puts it out of reach.".into());
    }
    if !facts.clears_uploads && !rules.iter().any(|rule| rule.cleans_uploads(prefix)) {
        report.notes.push(
            "No lifecycle rule removes the parts of uploads that were broken off, which are paid for and not seen: \
             `keepwell policy lifecycle` prints one."
                .into(),
        );
    }
    let versions = matches!(facts.versioning, Answer::Known(Versioning::Enabled | Versioning::Suspended));
    if versions && !rules.iter().any(|rule| rule.cleans_versions(prefix)) {
        report.notes.push(
            "No lifecycle rule removes old versions: what `prune` deletes stays, and is paid for, for ever. `keepwell \
             policy lifecycle` prints one."
                .into(),
        );
    }
}

fn not_known<T: fmt::Debug>(report: &mut ProbeReport, what: &str, answer: &Answer<T>) {
    let why = match answer {
        Answer::Denied(right) => format!("these credentials lack {right}"),
        Answer::Unknown(why) => why.clone(),
        Answer::Known(_) => return,
    };
    report.notes.push(format!("Not checked: {what} ({why})."));
}
