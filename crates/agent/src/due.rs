//! When a job runs next: a pure function of what is known and of the time.

use std::time::Duration;

use backup_core::env::Timestamp;

/// A job that failed is tried again after this time, or when it is due, whichever is earlier.
pub const RETRY_AFTER: Duration = Duration::from_secs(600);

/// What is known about a job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct History {
    /// When its last run that succeeded began; kept over restarts.
    pub succeeded: Option<Timestamp>,
    /// When its last run began, if that failed; forgotten at a restart.
    pub failed: Option<Timestamp>,
}

/// When the job is to run; not after `now` means at once.
///
/// A job that never succeeded is due at once. However many times were missed, one run makes up for them. A time that
/// lies in the future counts as none: the clock was wrong, then or now, and what was so far ahead may be years away.
pub fn due(history: History, every: Duration, now: Timestamp) -> Timestamp {
    let after = |moment: Option<Timestamp>, pause| {
        moment.filter(|moment| *moment <= now).map_or(Timestamp::MIN, |moment| plus(moment, pause))
    };
    after(history.succeeded, every).max(after(history.failed, every.min(RETRY_AFTER)))
}

fn plus(moment: Timestamp, length: Duration) -> Timestamp {
    moment.saturating_add(i64::try_from(length.as_nanos()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;
    const HOUR: i64 = 3600 * SECOND;
    const EVERY: Duration = Duration::from_secs(3600);
    const NOW: Timestamp = 1_000_000 * HOUR;

    fn succeeded(moment: Timestamp) -> History {
        History { succeeded: Some(moment), failed: None }
    }

    #[test]
    fn a_job_that_never_ran_is_due_at_once() {
        assert!(due(History::default(), EVERY, NOW) <= NOW);
    }

    #[test]
    fn the_next_run_is_due_an_interval_after_the_start_of_the_last() {
        assert_eq!(due(succeeded(NOW - HOUR / 4), EVERY, NOW), NOW + HOUR * 3 / 4);
        assert_eq!(due(succeeded(NOW - HOUR), EVERY, NOW), NOW);
    }

    #[test]
    fn missed_times_are_made_up_for_once() {
        assert!(due(succeeded(NOW - 50 * HOUR), EVERY, NOW) <= NOW);
        // The run that makes up for them sets the rhythm.
        assert_eq!(due(succeeded(NOW), EVERY, NOW + SECOND), NOW + HOUR);
    }

    #[test]
    fn a_failure_is_tried_again_soon_but_not_at_once() {
        let history = History { succeeded: Some(NOW - 2 * HOUR), failed: Some(NOW) };
        assert_eq!(due(history, EVERY, NOW), NOW + 600 * SECOND);
        assert_eq!(due(history, Duration::from_secs(60), NOW), NOW + 60 * SECOND);
        let never = History { succeeded: None, failed: Some(NOW - HOUR) };
        assert!(due(never, EVERY, NOW) <= NOW);
    }

    #[test]
    fn a_time_in_the_future_is_not_waited_for() {
        assert!(due(succeeded(NOW + 1000 * HOUR), EVERY, NOW) <= NOW);
        let history = History { succeeded: None, failed: Some(i64::MAX) };
        assert!(due(history, EVERY, NOW) <= NOW);
        let history = History { succeeded: Some(NOW + HOUR), failed: Some(NOW) };
        assert_eq!(due(history, EVERY, NOW), NOW + 600 * SECOND, "what failed since is not tried at once");
        assert_eq!(due(succeeded(i64::MAX), Duration::MAX, i64::MAX), i64::MAX);
    }
}
