//! What the end-to-end tests share: trees of files, repositories to back them up into, and the means to break both.
//!
//! The tests themselves are in `tests/`. Everything is seeded: a failure names what to run again.
#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

pub mod damage;
pub mod faults;
pub mod gate;
pub mod guarded;
pub mod made;
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

/// Runs a test on a runtime of its own, and fails it if it takes longer than `limit`: a part that waits for another
/// for ever must not stop the whole suite.
pub fn within(limit: Duration, test: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().unwrap();
    let ended = runtime.block_on(async { tokio::time::timeout(limit, test).await });
    runtime.shutdown_background();
    assert!(ended.is_ok(), "still at work after {limit:?}: parts of it wait for each other");
}

/// As [`within`], with the limit that suits most tests.
pub fn run(test: impl Future<Output = ()>) {
    within(Duration::from_secs(240), test);
}
