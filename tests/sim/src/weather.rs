//! How rough a world is. Every seed draws its own mixture, and leaves many faults out: what each one does shows best when
//! not all of them rage at once.

use std::time::Duration;

use keepwell_storage::RetryPolicy;

use crate::dice::Dice;

/// Chances are of ten thousand: those of requests per request, the others per step.
#[derive(Debug, Clone)]
pub(crate) struct Weather {
    /// A request takes effect and its answer is lost.
    pub lost: u32,
    /// A request does not take effect and fails.
    pub failed: u32,
    /// A request fails and takes effect later.
    pub late: u32,
    /// A request takes effect, and a copy of it arrives later.
    pub twice: u32,
    /// A request takes effect, and its answer takes its time.
    pub held: u32,
    /// The store asks to slow down.
    pub throttled: u32,
    /// A process crashes.
    pub crash: u32,
    /// It comes back without its cache.
    pub amnesia: u32,
    /// It comes back with an older state of its cache.
    pub stale: u32,
    /// A process is stopped for a while, and its clock has jumped afterwards.
    pub freeze: u32,
    /// Somebody sets a wall clock, or it stops.
    pub jump: u32,
    /// A process loses both stores from sight, or one of them.
    pub cut: u32,
    /// Everybody loses a store from sight.
    pub away: u32,
    /// The disk fills up, or is cleared.
    pub full: u32,
    /// An owner revokes a writer.
    pub revoke: u32,
    /// A source makes its reader wait before an item.
    pub slow_source: u32,
    /// Processes try again by themselves after failures that may pass.
    pub retry: Option<RetryPolicy>,
    /// Objects in a page of a listing.
    pub page: usize,
    /// Stores tell when objects were stored.
    pub times: bool,
    /// Caches are directories on a disk, so that processes of one host see each other's lock files.
    pub disk_caches: bool,
}

impl Weather {
    /// Draws the weather of a world.
    pub fn draw(dice: &mut Dice) -> Self {
        let calm = dice.chance(1500);
        let mut some = |of_ten: u64, up_to: u64| {
            if !calm && dice.roll(10) < of_ten { 1 + dice.roll(up_to) as u32 } else { 0 }
        };
        let mut weather = Self {
            lost: some(5, 300),
            failed: some(5, 300),
            late: some(4, 200),
            twice: some(4, 300),
            held: some(6, 2000),
            throttled: some(3, 300),
            crash: some(6, 60),
            amnesia: some(5, 5000),
            stale: some(4, 3000),
            freeze: some(5, 60),
            jump: some(5, 100),
            cut: some(3, 30),
            away: some(3, 20),
            full: some(3, 30),
            revoke: some(2, 15),
            slow_source: some(7, 4000),
            retry: None,
            page: 0,
            times: false,
            disk_caches: false,
        };
        let attempts = 2 + dice.roll(4) as u32;
        let policy = RetryPolicy {
            attempts,
            first_delay: Duration::from_millis(250),
            max_delay: Duration::from_secs(15),
        };
        weather.retry = (!dice.chance(2500)).then_some(policy);
        weather.times = dice.chance(5000);
        weather.page = *dice.pick(&[2, 7, 1000, 1000]);
        weather.disk_caches = dice.chance(4000);
        weather
    }

    /// Nothing goes wrong any more.
    pub fn clear(&mut self) {
        let (retry, page, times, disk_caches) = (self.retry, self.page, self.times, self.disk_caches);
        *self = Self {
            lost: 0,
            failed: 0,
            late: 0,
            twice: 0,
            held: 0,
            throttled: 0,
            crash: 0,
            amnesia: 0,
            stale: 0,
            freeze: 0,
            jump: 0,
            cut: 0,
            away: 0,
            full: 0,
            revoke: 0,
            slow_source: 0,
            retry,
            page,
            times,
            disk_caches,
        };
    }
}
