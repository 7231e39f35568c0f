//! How long a restore will take: what the last one took here, for as many bytes.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use backup_core::Repository;
use serde::{Deserialize, Serialize};

/// In the cache of a store: another one may be far away.
const FILE: &str = "restore-pace.json";
/// What is smaller takes as long as it takes to begin.
const BYTES_MIN: u64 = 8 << 20;

/// What restores of this store achieved last on this host, in bytes per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pace {
    files: Option<f64>,
    log: Option<f64>,
}

impl Pace {
    /// What is remembered; nothing where that is lost or damaged.
    pub fn of(repository: &Repository) -> Self {
        let text = path(repository).and_then(|path| fs::read(path).ok());
        text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// How long so much of files takes; `None` as long as that is not known.
    pub fn of_files(&self, bytes: u64) -> Option<Duration> {
        time(self.files, bytes)
    }

    /// How long a server takes for so much of the log.
    pub fn of_log(&self, bytes: u64) -> Option<Duration> {
        time(self.log, bytes)
    }

    /// Remembers how long files took.
    pub fn note_files(repository: &Repository, bytes: u64, took: Duration) {
        Self::note(repository, |pace| pace.files = rate(bytes, took).or(pace.files));
    }

    /// Remembers how long a server took for the log.
    pub fn note_log(repository: &Repository, bytes: u64, took: Duration) {
        Self::note(repository, |pace| pace.log = rate(bytes, took).or(pace.log));
    }

    /// What cannot be written is not known the next time.
    fn note(repository: &Repository, change: impl FnOnce(&mut Self)) {
        let mut pace = Self::of(repository);
        change(&mut pace);
        if let (Some(path), Ok(text)) = (path(repository), serde_json::to_vec(&pace)) {
            let _ = fs::write(path, text);
        }
    }
}

fn path(repository: &Repository) -> Option<PathBuf> {
    Some(repository.cache_path()?.join(FILE))
}

fn rate(bytes: u64, took: Duration) -> Option<f64> {
    let seconds = took.as_secs_f64();
    (bytes >= BYTES_MIN && seconds > 0.0).then(|| bytes as f64 / seconds)
}

fn time(rate: Option<f64>, bytes: u64) -> Option<Duration> {
    Duration::try_from_secs_f64(bytes as f64 / rate.filter(|rate| *rate > 0.0)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_some_time_takes_as_much_for_as_many_bytes() {
        let second = Duration::from_secs(1);
        let pace = Pace { files: rate(100 << 20, second * 2), log: rate(1 << 20, second) };
        assert_eq!(pace.of_files(400 << 20), Some(second * 8));
        assert_eq!(pace.of_log(400 << 20), None, "so little says nothing");
        assert_eq!(Pace::default().of_files(0), None);
        for odd in [0.0, -1.0, f64::NAN, f64::MIN_POSITIVE] {
            let pace = Pace { files: Some(odd), log: None };
            assert_eq!(pace.of_files(u64::MAX), None, "{odd}");
        }
        assert_eq!(rate(u64::MAX, Duration::ZERO), None);
        let text = serde_json::to_vec(&pace).unwrap();
        assert_eq!(serde_json::from_slice::<Pace>(&text).unwrap(), pace);
    }
}
