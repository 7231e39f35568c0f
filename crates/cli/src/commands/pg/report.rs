//! What a verification found, as a report that is signed and can be checked.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use backup_core::Error as CoreError;
use keepwell_crypto::STATEMENT_BYTES_MAX;
use keepwell_source_postgres::recovery::{Outcome, Step};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open::{self, Opened};
use crate::text;

/// What the first field of a report says.
const TYPE: &str = "pg_verify_report";

/// A report (format §18). Names and units are those of the format.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    #[serde(rename = "type")]
    pub kind: String,
    pub format: u32,
    pub snapshot: String,
    pub backup_ended: String,
    pub system: String,
    pub major: u32,
    pub target: String,
    pub level: u8,
    pub time: String,
    pub host: String,
    pub program: String,
    pub sound: bool,
    pub proved: Option<u8>,
    pub seconds: f64,
    pub recovery_seconds: Option<f64>,
    pub last_transaction: Option<String>,
    pub recovery_point: Option<RecoveryPoint>,
    pub steps: Vec<StepReport>,
}

/// How much would be lost, measured: when recovery was to the end of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecoveryPoint {
    /// When the end of the log was looked for.
    pub asked: String,
    /// When the last transaction ended that came back.
    pub last_transaction: String,
    /// Whether a server came to it; else it was read in the log.
    pub recovered: bool,
    /// What lies between.
    pub seconds: f64,
}

/// One check of a report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    pub level: u8,
    pub name: String,
    pub outcome: String,
    pub reason: String,
    pub detail: String,
    pub seconds: f64,
}

impl StepReport {
    /// Of a check that was made.
    pub fn of(step: &Step) -> Self {
        let (outcome, reason) = match &step.outcome {
            Outcome::Passed => ("passed", ""),
            Outcome::Failed(why) => ("failed", why.as_str()),
            Outcome::Unavailable(why) => ("unavailable", why.as_str()),
        };
        Self {
            level: step.level.number(),
            name: step.name.clone(),
            outcome: outcome.to_owned(),
            reason: reason.to_owned(),
            detail: step.detail.clone(),
            seconds: rounded(step.took),
        }
    }

    /// As people read it.
    pub fn line(&self) -> String {
        let said = if self.reason.is_empty() { &self.detail } else { &self.reason };
        let said = if said.is_empty() { String::new() } else { format!(" ({said})") };
        format!("level {}  {:<11}  {}{said}, {}", self.level, self.outcome, self.name, shown(self.seconds))
    }
}

impl Report {
    /// What every report begins with.
    pub fn kind() -> (String, u32) {
        (TYPE.to_owned(), 1)
    }

    /// How many checks ended so: `passed`, `failed` or `unavailable`.
    pub fn count(&self, outcome: &str) -> usize {
        self.steps.iter().filter(|step| step.outcome == outcome).count()
    }

    /// The last lines: the numbers, how long recovery took, and how much would be lost.
    pub fn summary(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{} passed, {} failed, {} could not be checked here",
            self.count("passed"),
            self.count("failed"),
            self.count("unavailable")
        )];
        match self.proved {
            _ if self.exit() != Exit::Skipped => {}
            Some(proved) => lines.push(format!(
                "proved up to level {proved}, and not up to level {}: nothing of level {} could be checked here",
                self.level,
                proved.saturating_add(1)
            )),
            None => lines.push("nothing is proved: nothing could be checked here".to_owned()),
        }
        if let Some(seconds) = self.recovery_seconds {
            lines.push(format!("recovery time: restoring and recovering took {}", shown(seconds)));
        }
        if let Some(point) = &self.recovery_point {
            let how = if point.recovered { "that came back" } else { "in the log" };
            lines.push(format!(
                "recovery point: the last transaction {how} ended {}, {} before it was asked for",
                point.last_transaction,
                shown(point.seconds)
            ));
        }
        lines
    }

    /// How a command ends that found this.
    pub fn exit(&self) -> Exit {
        match self.sound {
            false => Exit::Damage,
            true if self.proved < Some(self.level) => Exit::Skipped,
            true => Exit::Done,
        }
    }

    /// Signs it with the credential's key; gives the text of the file.
    pub fn signed(&self, opened: &Opened) -> Result<String> {
        let text = serde_json::to_string_pretty(self).context("write the report")?;
        Ok(opened.repository.sign_statement(&text)?)
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let report: Self = serde_json::from_slice(text).ok()?;
        (report.kind == TYPE && report.format == 1).then_some(report)
    }
}

/// A duration to the millisecond, in seconds.
pub fn rounded(took: Duration) -> f64 {
    took.as_millis() as f64 / 1000.0
}

fn shown(seconds: f64) -> String {
    Duration::try_from_secs_f64(seconds).map_or_else(|_| format!("{seconds} s"), text::duration)
}

/// Text of a file of somebody else, which must not speak to the terminal.
fn plain(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

/// Checks who signed a report and that nothing of it changed, and shows it.
pub async fn check(ctx: &Context, file: &Path) -> Result<Exit> {
    let mut content = Vec::new();
    let opening = || format!("read `{}`", file.display());
    let limit = STATEMENT_BYTES_MAX as u64 + 1;
    File::open(file).with_context(opening)?.take(limit).read_to_end(&mut content).with_context(opening)?;
    let opened = open::repository(ctx).await?;
    opened.progress.end();
    let unbelievable = |why: String| {
        Complaint::new(Exit::Damage, format!("`{}` is not to be believed: {why}", file.display()))
    };
    let signatory = opened.repository.check_statement(&content).map_err(|error| match error {
        CoreError::Damaged { reason, .. } => anyhow::Error::from(unbelievable(reason)),
        error => error.into(),
    })?;
    let report = Report::parse(&content)
        .ok_or_else(|| Complaint::failed(format!("`{}` is no report of `pg verify`", file.display())))?;
    let printer = &ctx.printer;
    let line = |text: String| printer.line(plain(&text));
    line(format!(
        "snapshot {} of PostgreSQL {}, cluster {}, ended {}",
        report.snapshot.chars().take(8).collect::<String>(),
        report.major,
        report.system,
        report.backup_ended
    ));
    line(format!(
        "verified {} on {} by {}, up to level {}, recovered to {}",
        report.time, report.host, report.program, report.level, report.target
    ));
    report.steps.iter().map(StepReport::line).chain(report.summary()).for_each(line);
    let verdict = match report.exit() {
        Exit::Done => "it holds",
        Exit::Skipped => "it says that not everything could be checked",
        _ => "it says that a check failed",
    };
    line(format!("signed by `{}` ({}), and unchanged: {verdict}", signatory.name, signatory.id));
    printer.json(
        "pg_verify_report_checked",
        json!({ "signer": signatory.id.to_string(), "name": signatory.name, "sound": report.sound, "report": report }),
    );
    Ok(report.exit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_somebody_else_cannot_speak_to_the_terminal() {
        assert_eq!(plain("level 3\u{1b}]0;title\u{7}\nwas näht"), "level 3\\u{1b}]0;title\\u{7}\\nwas näht");
    }

    #[test]
    fn a_report_is_read_as_it_was_written_and_says_what_was_measured() {
        let step = StepReport {
            level: 3,
            name: "a server recovers and opens".into(),
            outcome: "passed".into(),
            reason: String::new(),
            detail: "at last".into(),
            seconds: 1.25,
        };
        let (kind, format) = Report::kind();
        let report = Report {
            kind,
            format,
            snapshot: "ab".repeat(32),
            backup_ended: "2026-11-21T15:23:59Z".into(),
            system: "7710645820138149909".into(),
            major: 15,
            target: "the end of the log".into(),
            level: 3,
            time: "2026-11-21T15:24:41Z".into(),
            host: "h".into(),
            program: "keepwell 0.1.0".into(),
            sound: true,
            proved: Some(3),
            seconds: 4.5,
            recovery_seconds: Some(3.5),
            last_transaction: None,
            recovery_point: Some(RecoveryPoint {
                asked: "2026-11-21T15:24:40Z".into(),
                last_transaction: "2026-11-21T15:24:38Z".into(),
                recovered: true,
                seconds: 2.0,
            }),
            steps: vec![step],
        };
        let text = serde_json::to_string_pretty(&report).unwrap();
        assert_eq!(Report::parse(text.as_bytes()), Some(report.clone()));
        assert_eq!(Report::parse(text.replace(TYPE, "other").as_bytes()), None);
        assert_eq!(
            report.steps[0].line(),
            "level 3  passed       a server recovers and opens (at last), 1.2 s"
        );
        assert_eq!(
            report.summary(),
            [
                "1 passed, 0 failed, 0 could not be checked here",
                "recovery time: restoring and recovering took 3.5 s",
                "recovery point: the last transaction that came back ended 2026-11-21T15:24:38Z, 2.0 s before it was asked for",
            ]
        );
        assert_eq!(report.exit(), Exit::Done);
        for (proved, expected) in [
            (
                Some(1),
                "proved up to level 1, and not up to level 3: nothing of level 2 could be checked here",
            ),
            (None, "nothing is proved: nothing could be checked here"),
        ] {
            let less = Report { proved, ..report.clone() };
            assert_eq!((less.exit(), less.summary()[1].as_str()), (Exit::Skipped, expected));
            assert_eq!(Report { sound: false, ..less }.exit(), Exit::Damage);
        }
    }
}
