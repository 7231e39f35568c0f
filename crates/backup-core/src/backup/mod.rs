//! Backing up: from a source to a committed snapshot.
//!
//! One thread scans the source beside the recipes of the last capture; workers open, chunk, compress and seal what is
//! new; the assembler puts outcomes back in order and builds the tree. Packs are stored in the background. Only when
//! everything is durable is the manifest written, and the commit last (format.md §1, rule 6).

mod assemble;
mod encoded;
mod publish;
mod queue;
mod recipes;
mod result;
mod runs;
mod scan;
mod sorted;
#[cfg(test)]
mod stream_tests;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use keepwell_catalog::{PackClass, PackSet, RecipeReader, Statistics};
use keepwell_crypto::{DomainId, SnapshotId};

use self::assemble::{Assembled, Assembler, Nodes, Unordered};
use self::publish::Publisher;
use self::queue::Queue;
use self::recipes::RecipesOut;
use self::scan::{Alarm, Scan, Window};
use self::worker::{Shop, Worker};
use crate::Error;
use crate::cache::{CachedFile, CachedReader};
use crate::chunker::{ChunkSizes, Chunker};
use crate::env::Timestamp;
use crate::planted::planted;
use crate::repository::{Repository, read_plans};
use crate::source::{Order, Source};
use crate::write::{Budget, Known, PackSettings, Packer, Uploads};

pub(crate) use assemble::Nodes as StoredNodes;
pub(crate) use worker::{Novelty, count_kind};

/// Batches that wait for a worker.
const QUEUE_BATCHES: usize = 16;

/// A file of the cache that was begun so long ago, in nanoseconds, and is not done belongs to a process that died.
const PARTIAL_DAY: Timestamp = 86_400 * 1_000_000_000;

/// How to back up.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    /// What is backed up, under a name that stays the same from snapshot to snapshot.
    pub dataset: String,
    /// The host it is backed up from.
    pub host: String,
    /// Labels.
    pub tags: Vec<String>,
    /// Free text.
    pub description: String,
    /// IANA name of the time zone in which retention counts days.
    pub time_zone: String,
    /// zstd level, 1 to 22. 3 is the default; level 1 takes a sixth less time and a tenth more room.
    pub compression_level: i32,
    /// How content is cut into chunks.
    pub chunk_sizes: ChunkSizes,
    /// A checkpoint is committed when this much time has passed since the last.
    pub checkpoint_every: Duration,
    /// Read back and prove what was written before the snapshot is committed.
    pub verify: bool,
    /// Open everything, whatever the recipes of the last capture say.
    pub reread: bool,
    /// An erasable domain to seal content to, instead of the group's default domain.
    pub domain: Option<DomainId>,
    /// Not to be forgotten before this time.
    pub keep_until: Option<Timestamp>,
    /// Never to be forgotten by a retention rule.
    pub keep_forever: bool,
    /// Name and version of the program, for the manifest.
    pub program: String,
    /// What the source wants to have on record.
    pub extra: std::collections::BTreeMap<String, Vec<u8>>,
    /// Overrides the time of capture, for what was captured earlier by other means.
    pub capture_time: Option<Timestamp>,
    /// The snapshot that this one is a rewriting of.
    pub original: Option<SnapshotId>,
}

impl Default for BackupOptions {
    fn default() -> Self {
        Self {
            dataset: "default".to_owned(),
            host: String::new(),
            tags: Vec::new(),
            description: String::new(),
            time_zone: "UTC".to_owned(),
            compression_level: 3,
            chunk_sizes: ChunkSizes::FILES,
            checkpoint_every: Duration::from_secs(3600),
            verify: false,
            reread: false,
            domain: None,
            keep_until: None,
            keep_forever: false,
            program: concat!("backup-core ", env!("CARGO_PKG_VERSION")).to_owned(),
            extra: std::collections::BTreeMap::new(),
            capture_time: None,
            original: None,
        }
    }
}

/// What a backup did.
#[derive(Debug, Clone)]
pub struct BackupReport {
    /// The new snapshot.
    pub snapshot: SnapshotId,
    /// The session that published it.
    pub seq: u64,
    /// The snapshot of the same dataset that it built on.
    pub parent: Option<SnapshotId>,
    /// The sums.
    pub statistics: Statistics,
    /// Items that could not be captured as they are, with the reason; at most 1000.
    pub problems: Vec<(String, String)>,
    /// All such items.
    pub problem_count: u64,
    /// Whether everything that is there was captured. A snapshot that is not complete pushes no other out of retention.
    pub complete: bool,
    /// Checkpoints on the way.
    pub checkpoints: u64,
    /// Chunks read back and proved, if that was asked for.
    pub verified_chunks: u64,
}

impl Repository {
    /// Captures a source into a new snapshot.
    ///
    /// A crash or failure at any moment leaves every older snapshot as it was and no new one; what was stored is found
    /// again by the next backup. Items that cannot be read do not end the backup: see [`BackupReport::problems`].
    pub async fn backup(
        &self,
        source: Arc<dyn Source>,
        options: BackupOptions,
    ) -> Result<BackupReport, Error> {
        let captured = async {
            source.preflight()?.notes.iter().for_each(|note| self.monitor().note(note));
            let publisher = Publisher::begin(self, &*source, options).await?;
            let repository = self.clone();
            let task = tokio::task::spawn_blocking(move || capture(&repository, &*source, publisher));
            task.await.map_err(|e| Error::Task(e.to_string()))?
        };
        self.unless_cancelled(captured).await
    }
}

/// Runs all threads of one capture; on an ordinary thread.
fn capture(
    repository: &Repository,
    source: &dyn Source,
    mut publisher: Publisher,
) -> Result<BackupReport, Error> {
    repository.cache().sweep(repository.now().saturating_sub(PARTIAL_DAY));
    match run(repository, source, &mut publisher) {
        Ok((assembled, recipes, changed)) => publisher.finish(assembled, recipes, changed),
        Err(error) => Err(publisher.fail(error)),
    }
}

type Captured = (Assembled, RecipesOut, bool);

fn run(repository: &Repository, source: &dyn Source, publisher: &mut Publisher) -> Result<Captured, Error> {
    let options = publisher.options.clone();
    let uploads = publisher.uploads.clone();
    let keys = repository.domain_for(options.domain)?;
    let (sizes, level) = (options.chunk_sizes, options.compression_level);
    let Budget { workers, pack_bytes } =
        Budget::new(repository.limits(), sizes, level, repository.wanted_pack_bytes());
    let chunker = Chunker::new(keys.id_key.gear_table(), sizes);
    let settings = |class| {
        let settings = PackSettings::of(repository, class, keys.id, level)?;
        Ok::<_, Error>(PackSettings { pack_bytes, ..settings })
    };
    let known = uploads.known();
    let queue = Queue::new(QUEUE_BATCHES);
    let window = Window::default();
    let (sender, results) = crossbeam_channel::bounded(QUEUE_BATCHES);
    let monitor = repository.monitor();
    let shop = Shop {
        source,
        queue: &queue,
        known,
        chunker: &chunker,
        id_key: &keys.id_key,
        monitor,
        window: &window,
        cancel: repository.cancel(),
    };
    let (mut recipes_in, old) = publisher.recipes_in()?.unzip();
    let unordered = match source.order() {
        Order::Ascending => None,
        Order::Any => Some(unordered(repository, source, known, recipes_in.take(), old.as_ref())?),
    };
    let checkpoint_every = unordered.is_none().then_some(options.checkpoint_every);
    let recipes_out = publisher.recipes_out(old);
    monitor.phase("backup");
    std::thread::scope(|scope| {
        let alarm = Alarm(&queue, &window);
        let mut threads = Vec::new();
        for _ in 0..workers {
            let packer = Packer::new(&uploads, settings(PackClass::Data)?)?;
            let worker = Worker::new(shop, packer, sender.clone());
            threads.push(scope.spawn(move || worker.run()));
        }
        let scan = Scan {
            source,
            recipes: recipes_in,
            known,
            queue: &queue,
            window: &window,
            results: sender,
            monitor,
            clock: repository.clock(),
            cancel: repository.cancel(),
            workers,
            checkpoint_every,
        };
        threads.push(scope.spawn(move || scan.run()));
        let node_packer = Packer::new(&uploads, settings(PackClass::Meta)?)?;
        let nodes = Nodes::new(node_packer, known, &keys.id_key);
        let mut assembler = Assembler::new(nodes, recipes_out, unordered, &window, monitor);
        let assembled = assembler.run(&results, &mut |so_far| publisher.checkpoint(so_far));
        if assembled.is_ok() {
            window.close();
            std::mem::forget(alarm);
        } else {
            drop(alarm);
        }
        drop(results);
        threads.into_iter().fold(assembled, |ended, thread| {
            let result = thread.join().unwrap_or_else(|_| Err(Error::Task("it panicked".to_owned())));
            first_reason(ended, result)
        })?;
        assembler.finish()
    })
}

/// What it takes to assemble what a source without an order gives. The source is told of the last capture first; where it
/// goes by that, what it leaves out is looked up there, in the same file.
fn unordered(
    repository: &Repository,
    source: &dyn Source,
    known: &Known,
    last: Option<RecipeReader<CachedReader>>,
    file: Option<&CachedFile>,
) -> Result<Unordered, Error> {
    let goes_by_it = last.map(|recipes| sorted::tell(source, recipes, known)).transpose()?;
    let previous = match (goes_by_it, file) {
        (Some(true), Some(file)) => Some(RecipeReader::new(file.reader())?),
        _ => None,
    };
    let ceiling = repository.limits().memory_bytes / 8;
    Ok(Unordered { sorter: sorted::Sorter::new(repository.cache(), ceiling), previous })
}

/// Of two results, the error that says why; being cancelled is not a reason.
fn first_reason(a: Result<(), Error>, b: Result<(), Error>) -> Result<(), Error> {
    match (a, b) {
        (Err(Error::Cancelled), Err(error)) => Err(error),
        (Ok(()), b) => b,
        (a, _) => a,
    }
}

/// Reads the plans, then the index, as docs/pruning.md demands. Must follow the claim of the session.
pub(crate) async fn begin_uploads(repository: &Repository) -> Result<Uploads, Error> {
    if planted("stale-cache") && !repository.index().is_empty() {
        return Ok(Uploads::new(
            repository.clone(),
            Arc::new(Known::new(repository.index(), PackSet::default())),
        ));
    }
    let plans = read_plans(repository).await?;
    repository.refresh_index().await?;
    let doomed = if planted("reuse-doomed") { PackSet::default() } else { plans.doomed_packs() };
    let known = Known::new(repository.index(), doomed);
    Ok(Uploads::new(repository.clone(), Arc::new(known)))
}
