//! When jobs succeeded, remembered over restarts: a small file for each in the state directory.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use backup_core::env::Timestamp;

use crate::config::JobName;

/// The state directory.
#[derive(Debug, Clone)]
pub struct State(PathBuf);

impl State {
    /// Uses a directory, and makes it (0700) if it is missing.
    pub fn open(directory: &Path) -> Result<Self> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.with_context(|| format!("create the state directory `{}`", directory.display()))?;
        Ok(Self(directory.to_owned()))
    }

    /// Where repositories are cached.
    pub fn cache(&self) -> PathBuf {
        self.0.join("cache")
    }

    /// When the last run of a job that succeeded began. A file that makes no sense counts as none: the job then runs.
    pub fn succeeded(&self, job: &JobName) -> Result<Option<Timestamp>> {
        self.read(job.as_str())
    }

    /// Remembers that a run that began at `moment` succeeded; durable when it returns, and whole after a crash.
    pub fn remember(&self, job: &JobName, moment: Timestamp) -> Result<()> {
        self.write(job.as_str(), moment)
    }

    /// When the newest snapshot in a copy of a job was made, as far as is remembered.
    pub fn newest_in(&self, job: &JobName, copy: &JobName) -> Result<Option<Timestamp>> {
        self.read(&of_copy(job, copy))
    }

    /// Remembers when the newest snapshot in a copy of a job was made, as [`State::remember`] does.
    pub fn remember_copy(&self, job: &JobName, copy: &JobName, newest: Timestamp) -> Result<()> {
        self.write(&of_copy(job, copy), newest)
    }

    fn read(&self, name: &str) -> Result<Option<Timestamp>> {
        let path = self.path(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(nanoseconds(text.trim())),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read `{}`", path.display())),
        }
    }

    fn write(&self, name: &str, moment: Timestamp) -> Result<()> {
        let (path, partial) = (self.path(name), self.0.join(format!(".{name}.partial")));
        let time = jiff::Timestamp::from_nanosecond(i128::from(moment))?;
        let write = || {
            let mut file = File::create(&partial)?;
            writeln!(file, "{time}")?;
            file.sync_all()?;
            fs::rename(&partial, &path)?;
            File::open(&self.0)?.sync_all()
        };
        write().with_context(|| format!("write `{}`", path.display()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.last"))
    }
}

/// No name of a job or a copy has an `@`: no two of them share a file.
fn of_copy(job: &JobName, copy: &JobName) -> String {
    format!("{}@{}", job.as_str(), copy.as_str())
}

fn nanoseconds(text: &str) -> Option<Timestamp> {
    let time: jiff::Timestamp = text.parse().ok()?;
    i64::try_from(time.as_nanosecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_success_is_remembered_to_the_nanosecond() {
        let directory = tempfile::tempdir().unwrap();
        let job = JobName::try_from("home".to_owned()).unwrap();
        let open = || State::open(&directory.path().join("state")).unwrap();
        assert_eq!(open().succeeded(&job).unwrap(), None);
        for moment in [1_795_000_000_123_456_789, 7] {
            open().remember(&job, moment).unwrap();
            assert_eq!(open().succeeded(&job).unwrap(), Some(moment));
        }
        for nonsense in [&b"yesterday"[..], b"", b"\0\0\0\0", b"2026-\xff"] {
            fs::write(directory.path().join("state/home.last"), nonsense).unwrap();
            assert_eq!(open().succeeded(&job).unwrap(), None, "{nonsense:?}");
        }
    }

    #[test]
    fn whatever_jobs_and_copies_are_called_each_is_remembered_for_itself() {
        let directory = tempfile::tempdir().unwrap();
        let state = State::open(directory.path()).unwrap();
        let name = |text: &str| JobName::try_from(text.to_owned()).unwrap();
        let long = "x".repeat(100);
        let long = long.as_str();
        let copies = [("a", "b"), ("a", "b.copy.c"), ("a.copy.b", "c"), (long, long)];
        let jobs = ["a", "b", "a.copy.b", "a.b", long];
        for (moment, (job, copy)) in (1..).zip(copies) {
            state.remember_copy(&name(job), &name(copy), moment).unwrap();
        }
        for (moment, job) in (100..).zip(jobs) {
            state.remember(&name(job), moment).unwrap();
        }
        for (moment, (job, copy)) in (1..).zip(copies) {
            assert_eq!(state.newest_in(&name(job), &name(copy)).unwrap(), Some(moment), "{job} {copy}");
        }
        for (moment, job) in (100..).zip(jobs) {
            assert_eq!(state.succeeded(&name(job)).unwrap(), Some(moment), "{job}");
        }
    }
}
