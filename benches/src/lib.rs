//! Benchmarks of the whole workspace. Every one runs also as a count, which is the same on every machine.

mod engine;
mod micro;
mod tree;
mod world;

use std::time::{Duration, Instant};

use anyhow::Result;
use keepwell_storage::Recorded;

pub use tree::Tree;
pub use world::World;

/// What one iteration did.
#[derive(Debug, Clone, Default)]
pub struct Work {
    /// Chunks, records, lookups or entries, as fits the benchmark.
    pub items: u64,
    /// Plain bytes that went in or came out.
    pub bytes: u64,
    /// Bytes that resulted, in a pack or in the store; 0 where nothing does.
    pub stored_bytes: u64,
    /// Calls of the store.
    pub calls: Recorded,
    /// How long the part took that is measured.
    pub took: Duration,
}

/// A benchmark, ready to run as often as one likes.
pub struct Bench {
    /// Its name in the table.
    pub name: &'static str,
    run: Box<dyn FnMut() -> Result<Work>>,
}

impl Bench {
    fn new(name: &'static str, run: impl FnMut() -> Result<Work> + 'static) -> Self {
        Self { name, run: Box::new(run) }
    }

    /// One iteration.
    pub fn once(&mut self) -> Result<Work> {
        (self.run)()
    }

    /// The iteration of median time, of as many as fit into `budget`, at least three. The first is not counted.
    pub fn median(&mut self, budget: Duration) -> Result<Work> {
        self.once()?;
        let began = Instant::now();
        let mut runs = Vec::new();
        while runs.len() < 3 || began.elapsed() < budget {
            runs.push(self.once()?);
        }
        runs.sort_by_key(|work| work.took);
        Ok(runs.swap_remove(runs.len() / 2))
    }
}

/// Every benchmark, from the smallest part to the whole engine.
pub fn all() -> Result<Vec<Bench>> {
    let mut benches = micro::all()?;
    benches.extend(engine::all()?);
    Ok(benches)
}

/// Runs the part that is measured.
fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let began = Instant::now();
    let done = work()?;
    Ok((done, began.elapsed()))
}

/// Bytes that do not compress and are the same for the same seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// Bytes that compress to a third.
fn text(seed: u64, length: usize) -> Vec<u8> {
    let random = noise(seed, length.div_ceil(4));
    random.iter().flat_map(|n| [b'a' + n / 16, b'a' + n % 16, b':', b' ']).take(length).collect()
}
