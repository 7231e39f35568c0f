//! The assembler: puts outcomes back in order, builds the tree and the recipes, and publishes checkpoints.

use std::collections::{BTreeMap, HashSet};

use crossbeam_channel::Receiver;
use keepwell_catalog::{MapBuilder, MapError, MapKey, NodeSink, RecipeReader, Root, Statistics};
use keepwell_crypto::{ChunkId, ChunkKind, Digest, IdKey};

use super::recipes::RecipesOut;
use super::result::{Outcome, Step};
use super::scan::Window;
use super::sorted::{self, Sorter};
use crate::Error;
use crate::cache::CachedReader;
use crate::error::shown;
use crate::monitor::Monitor;
use crate::write::{Known, Packer};

/// Problems that are kept with their text; all are counted.
const PROBLEMS_MAX: usize = 1000;
/// Items without an entry that are remembered, in 5 MB: of one that comes later, a restore finds that its further names lead
/// nowhere.
const MISSING_MAX: usize = 1 << 16;

/// Stores tree nodes that are new.
pub(crate) struct Nodes<'a> {
    pub packer: Packer<'a>,
    pub known: &'a Known,
    pub id_key: &'a IdKey,
    pub counts: Statistics,
}

impl<'a> Nodes<'a> {
    pub fn new(packer: Packer<'a>, known: &'a Known, id_key: &'a IdKey) -> Self {
        Self { packer, known, id_key, counts: Statistics::default() }
    }

    fn store(&mut self, bytes: &[u8]) -> Result<ChunkId, Error> {
        let id = self.id_key.chunk_id(ChunkKind::Node, bytes);
        if self.known.claim(&id)? {
            self.counts.new_chunks += 1;
            self.counts.new_plain_bytes += bytes.len() as u64;
            self.packer.add(id, bytes)?;
        }
        Ok(id)
    }
}

impl NodeSink for Nodes<'_> {
    fn put_node(&mut self, bytes: Vec<u8>) -> Result<ChunkId, MapError> {
        self.store(&bytes).map_err(|error| MapError::Write { source: Box::new(error) })
    }
}

/// What the assembler collected, as a whole or up to a checkpoint.
#[derive(Debug, Clone)]
pub(super) struct Assembled {
    pub root: Root,
    pub counts: Statistics,
    pub problems: Vec<(Vec<u8>, String)>,
    pub problem_count: u64,
    /// Whether everything that is there was captured.
    pub complete: bool,
}

/// What it takes to assemble what arrives in any order.
pub(super) struct Unordered {
    pub sorter: Sorter,
    /// The last capture, which entries may refer to.
    pub previous: Option<RecipeReader<CachedReader>>,
}

pub(super) struct Assembler<'a> {
    pub builder: MapBuilder,
    pub nodes: Nodes<'a>,
    pub recipes: RecipesOut,
    /// For a source without an order.
    pub unordered: Option<Unordered>,
    pub window: &'a Window,
    pub monitor: &'a dyn Monitor,
    pub counts: Statistics,
    pub problems: Vec<(Vec<u8>, String)>,
    pub problem_count: u64,
    /// Items that are there and could not be captured.
    pub lost: u64,
    /// The keys, hashed, of items of which nothing was captured.
    missing: HashSet<Digest>,
    /// Whether any item was not taken over unchanged.
    pub changed: bool,
}

impl<'a> Assembler<'a> {
    pub fn new(
        nodes: Nodes<'a>,
        recipes: RecipesOut,
        unordered: Option<Unordered>,
        window: &'a Window,
        monitor: &'a dyn Monitor,
    ) -> Self {
        Self {
            builder: MapBuilder::new(nodes.id_key.boundary()),
            nodes,
            recipes,
            unordered,
            window,
            monitor,
            counts: Statistics::default(),
            problems: Vec::new(),
            problem_count: 0,
            lost: 0,
            missing: HashSet::new(),
            changed: false,
        }
    }

    /// Takes in everything until all senders are gone. `checkpoint` publishes what was assembled so far.
    pub fn run(
        &mut self,
        results: &Receiver<Step>,
        checkpoint: &mut dyn FnMut(Assembled) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut next = 0;
        let mut waiting = BTreeMap::new();
        while let Ok(step) = results.recv() {
            match step {
                Step::Batch { number, outcomes } => {
                    waiting.insert(number, outcomes);
                    while let Some(outcomes) = waiting.remove(&next) {
                        next += 1;
                        outcomes.into_iter().try_for_each(|outcome| self.take(outcome))?;
                        self.window.advance(next);
                    }
                }
                Step::Checkpoint { answer } => {
                    let published = self.so_far().and_then(&mut *checkpoint);
                    let failed = published.clone().err();
                    // The scan may be gone already; then it does not need the answer.
                    let _ = answer.send(published);
                    if let Some(error) = failed {
                        return Err(error);
                    }
                }
            }
        }
        if waiting.is_empty() { Ok(()) } else { Err(Error::Cancelled) }
    }

    fn take(&mut self, outcome: Outcome) -> Result<(), Error> {
        let outcome = self.with_first_name(outcome);
        self.lost += u64::from(outcome.lost);
        if let Some(message) = outcome.problem {
            self.monitor.problem(&shown(&outcome.key), &message);
            self.problem_count += 1;
            self.changed = true;
            if self.problems.len() < PROBLEMS_MAX {
                self.problems.push((outcome.key.as_bytes().to_vec(), message));
            }
        }
        let Some(encoded) = outcome.entry else {
            self.recipes.differ(); // the last capture may have had it
            return Ok(());
        };
        add(&mut self.counts, &outcome.counts);
        self.changed |= !outcome.reused;
        let item = sorted::Item { key: outcome.key, entry: encoded, fingerprint: outcome.fingerprint };
        match &mut self.unordered {
            Some(unordered) => unordered.sorter.push(item),
            None => self.place(&item, outcome.follows),
        }
    }

    /// A further name of what was not captured is not captured either: the content would have come with the first.
    fn with_first_name(&mut self, outcome: Outcome) -> Outcome {
        let hashed = |key: &MapKey| Digest::of(key.as_bytes());
        if outcome.is_item && outcome.entry.is_none() && self.missing.len() < MISSING_MAX {
            self.missing.insert(hashed(&outcome.key));
        }
        match outcome.first_name.as_ref().filter(|_| !self.missing.is_empty()) {
            Some(first) if self.missing.contains(&hashed(first)) => {
                let message = format!("its first name, `{}`, could not be captured", shown(first));
                Outcome::lost(outcome.key, message)
            }
            _ => outcome,
        }
    }

    /// `follows`: it is what the last capture's recipes have next.
    fn place(&mut self, item: &sorted::Item, follows: bool) -> Result<(), Error> {
        item.entry.push(&item.key, &mut self.builder, &mut self.nodes)?;
        self.recipes.push(&item.key, &item.entry, &item.fingerprint, follows);
        Ok(())
    }

    /// Places what arrived in any order, completed from the last capture.
    fn place_sorted(&mut self, unordered: Unordered) -> Result<(), Error> {
        let Unordered { sorter, mut previous } = unordered;
        sorter.finish(&mut |item| {
            let before = match &mut previous {
                Some(recipes) => recipes.advance_to(item.key.as_bytes())?,
                None => None,
            };
            let item = sorted::complete(item, before, &mut self.counts)?;
            self.place(&item, false)
        })
    }

    fn so_far(&mut self) -> Result<Assembled, Error> {
        let root = self.builder.checkpoint(&mut self.nodes)?;
        self.nodes.packer.finish()?;
        Ok(self.assembled(root))
    }

    /// Ends the tree and its last pack.
    pub fn finish(mut self) -> Result<(Assembled, RecipesOut, bool), Error> {
        if let Some(unordered) = self.unordered.take() {
            self.place_sorted(unordered)?;
        }
        let builder = std::mem::replace(&mut self.builder, MapBuilder::new(self.nodes.id_key.boundary()));
        let root = builder.finish(&mut self.nodes)?;
        self.nodes.packer.finish()?;
        let assembled = self.assembled(root);
        Ok((assembled, self.recipes, self.changed))
    }

    fn assembled(&self, root: Root) -> Assembled {
        let mut counts = self.counts;
        add(&mut counts, &self.nodes.counts);
        Assembled {
            root,
            counts,
            problems: self.problems.clone(),
            problem_count: self.problem_count,
            complete: self.lost == 0,
        }
    }
}

/// Adds up statistics.
pub(crate) fn add(sum: &mut Statistics, more: &Statistics) {
    sum.files += more.files;
    sum.directories += more.directories;
    sum.others += more.others;
    sum.logical_bytes += more.logical_bytes;
    sum.new_files += more.new_files;
    sum.changed_files += more.changed_files;
    sum.unchanged_files += more.unchanged_files;
    sum.bytes_read += more.bytes_read;
    sum.new_chunks += more.new_chunks;
    sum.new_plain_bytes += more.new_plain_bytes;
    sum.new_stored_bytes += more.new_stored_bytes;
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::sync::Arc;

    use crate::source::{Found, Item, Opened, Preflight, Source, SourceError};
    use crate::testing::{
        MemorySource, Thing, TreeModel, World, assert_same, options, restored, snapshot_of,
    };

    /// A source of which one thing vanishes before it is opened, or cannot be opened.
    struct Lacking {
        source: MemorySource,
        path: &'static str,
        vanishes: bool,
    }

    impl Source for Lacking {
        fn kind(&self) -> &str {
            self.source.kind()
        }

        fn paths(&self) -> Vec<Vec<u8>> {
            self.source.paths()
        }

        fn preflight(&self) -> Result<Preflight, SourceError> {
            self.source.preflight()
        }

        fn walk(&self, visit: &mut dyn FnMut(Found) -> ControlFlow<()>) -> Result<(), SourceError> {
            self.source.walk(visit)
        }

        fn open(&self, item: &Item) -> Result<Option<Opened>, SourceError> {
            match item.key.display_path() == self.path {
                true if self.vanishes => Ok(None),
                true => Err(SourceError::Other("shut".into())),
                false => self.source.open(item),
            }
        }
    }

    #[tokio::test]
    async fn a_further_name_of_what_was_not_captured_does_not_count_as_captured() {
        let tree = TreeModel::default()
            .with("a", Thing::file("one"))
            .with("b", Thing::link("a"))
            .with("c", Thing::file("two"))
            .with("d", Thing::link("c"));
        let rest = tree.clone().without("a").without("b");
        for vanishes in [true, false] {
            let world = World::new().await;
            let source = Lacking { source: MemorySource::new(tree.clone()), path: "a", vanishes };
            let report = world.repository.backup(Arc::new(source), options("data")).await.unwrap();
            let paths: Vec<&str> = report.problems.iter().map(|(path, _)| path.as_str()).collect();
            assert_eq!((paths, report.complete), (vec!["/a", "/b"], false));
            let snapshot = snapshot_of(&world.repository, &report).await;
            assert_same(&restored(&world.repository, &snapshot).await, &rest.as_restored());
        }
    }
}
