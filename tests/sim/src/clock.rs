//! The clocks of a host: its wall clock may be wrong and jump, its monotonic clock only goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use backup_core::env::{Clock, Rng, Timestamp};

/// 2026-01-01T00:00:00Z, where all worlds begin.
const BEGINNING: Timestamp = 1_767_225_600_000_000_000;

/// The clocks of one host. Clones show the same time.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostClock(Arc<Times>);

#[derive(Debug, Default)]
struct Times {
    elapsed: AtomicI64,
    /// How far the wall clock is off.
    wrong_by: AtomicI64,
}

impl HostClock {
    /// Time passes.
    pub fn advance(&self, by: Duration) {
        self.0.elapsed.fetch_add(nanos(by), Ordering::SeqCst);
    }

    /// Somebody sets the wall clock wrong by so many seconds.
    pub fn set_wrong(&self, seconds: i64) {
        self.0.wrong_by.store(seconds.saturating_mul(1_000_000_000), Ordering::SeqCst);
    }
}

impl Clock for HostClock {
    fn now(&self) -> Timestamp {
        BEGINNING + self.0.elapsed.load(Ordering::SeqCst) + self.0.wrong_by.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.0.elapsed.load(Ordering::SeqCst).unsigned_abs())
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).expect("a world lasts less than 292 years")
}

/// Random bytes from the seed of the world.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WorldRng;

impl Rng for WorldRng {
    fn fill(&self, buf: &mut [u8]) {
        keepwell_sim_entropy::fill(buf);
    }
}
