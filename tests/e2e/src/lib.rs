//! What the end-to-end tests share: trees of files, repositories to back them up into, and the means to break both.
//!
//! The tests themselves are in `tests/`. Everything is seeded: a failure names what to run again.
#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

pub mod case;
pub mod damage;
pub mod faults;
pub mod gate;
pub mod guarded;
pub mod made;
pub mod proxy;
pub mod server;
pub mod tree;
pub mod world;

use std::time::Duration;

/// Bytes that do not compress and are the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut out = vec![0; len];
    blake3::Hasher::new_keyed(&key).finalize_xof().fill(&mut out);
    out
}

/// A stream of numbers that are the same for the same seed.
#[derive(Debug, Clone)]
pub struct Dice(blake3::OutputReader);

impl Dice {
    /// Begins the stream.
    pub fn new(seed: u64) -> Self {
        let mut key = [1; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        Self(blake3::Hasher::new_keyed(&key).finalize_xof())
    }

    /// The next number, below `sides`, which is at least 1.
    pub fn roll(&mut self, sides: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % sides
    }
}

/// A test in which the process does next to nothing for so long is stuck. A disk that others write to may keep one that
/// syncs, or is killed while it syncs, waiting for a minute.
const IDLE: Duration = Duration::from_secs(240);
/// Next to nothing.
const IDLE_WORK: Duration = Duration::from_millis(50);

/// Runs a test on a runtime of its own, and fails it if its process works for longer than `limit`, or does nothing for
/// minutes: a part that waits for another for ever must not stop the whole suite. What is measured is processor time, so
/// that a crowded machine fails nobody.
pub fn within(limit: Duration, test: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().unwrap();
    let stuck = runtime.block_on(async {
        tokio::select! {
            () = test => None,
            why = stuck(limit) => Some(why),
        }
    });
    runtime.shutdown_background();
    assert_eq!(stuck, None);
}

/// Waits until the process has worked for too long, or not at all.
async fn stuck(limit: Duration) -> String {
    let (begun, mut last) = (worked(), worked());
    loop {
        tokio::time::sleep(IDLE).await;
        let now = worked();
        if now.saturating_sub(begun) > limit {
            return format!("still at work after {limit:?} of processor time");
        }
        if now.saturating_sub(last) < IDLE_WORK {
            return format!("nothing was done for {IDLE:?}: parts of it wait for each other");
        }
        last = now;
    }
}

/// Processor time of this process and of its children that have ended, in ticks of 10 ms.
fn worked() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace();
    let ticks: u64 = fields.skip(11).take(4).map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(10 * ticks)
}

/// As [`within`], with a limit that suits most tests.
pub fn run(test: impl Future<Output = ()>) {
    within(Duration::from_secs(900), test);
}
