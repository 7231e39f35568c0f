//! The clocks of a host: its wall clock may be wrong, jump and stand still, its monotonic clock only goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use backup_core::env::{Clock, Rng, Timestamp};

/// 2026-01-01T00:00:00Z, where all worlds begin.
pub(crate) const BEGINNING: Timestamp = 1_767_225_600_000_000_000;

/// The clocks of one host. Clones show the same time.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostClock(Arc<Times>);

#[derive(Debug, Default)]
struct Times {
    elapsed: AtomicI64,
    /// How far the wall clock is off.
    wrong_by: AtomicI64,
    /// What the wall clock shows while it stands still; 0 while it goes.
    stands_at: AtomicI64,
}

impl HostClock {
    /// Time passes.
    pub fn advance(&self, by: Duration) {
        self.0.elapsed.fetch_add(nanos(by), Ordering::SeqCst);
    }

    /// Somebody sets the wall clock wrong by so many seconds.
    pub fn set_wrong(&self, seconds: i64) {
        self.0.stands_at.store(0, Ordering::SeqCst);
        self.0.wrong_by.store(seconds.saturating_mul(1_000_000_000), Ordering::SeqCst);
    }

    /// From now on the wall clock shows the same time, until somebody sets it.
    pub fn stand_still(&self) {
        self.0.stands_at.store(self.now(), Ordering::SeqCst);
    }
}

impl Clock for HostClock {
    fn now(&self) -> Timestamp {
        let stands_at = self.0.stands_at.load(Ordering::SeqCst);
        if stands_at != 0 {
            return stands_at;
        }
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
