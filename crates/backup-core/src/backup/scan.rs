//! The scan: walks the source beside the recipes of the last capture and sorts items into reuse and work.

use std::io::Read;
use std::ops::ControlFlow;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::Sender;
use keepwell_catalog::{Entry, Extent, RecipeReader, Statistics};

use super::encoded::Encoded;
use super::queue::{Batch, Queue, Work};
use super::result::{Outcome, Step};
use super::worker::{Novelty, count_kind};
use crate::Error;
use crate::cancel::Cancel;
use crate::env::Clock;
use crate::monitor::Monitor;
use crate::source::{Found, Item, Source};
use crate::write::Known;

const BATCH_ITEMS_MAX: usize = 256;
const BATCH_BYTES_MAX: u64 = 4 << 20;
/// Batches between the scan and the assembler; bounds what waits behind one huge file.
const WINDOW_BATCHES: u64 = 96;

/// How far the assembler has come; keeps the scan from running away.
#[derive(Debug, Default)]
pub(super) struct Window {
    assembled: Mutex<Option<u64>>,
    moved: Condvar,
}

impl Window {
    /// The assembler has taken in this many batches.
    pub fn advance(&self, assembled: u64) {
        let mut now = self.assembled.lock().unwrap_or_else(PoisonError::into_inner);
        *now = (*now).max(Some(assembled)); // once closed it stays closed, whatever still arrives
        self.moved.notify_all();
    }

    /// The assembler takes in nothing more.
    pub fn close(&self) {
        self.advance(u64::MAX);
    }

    /// Waits until at most `ahead` of `sent` batches are not assembled. `false` when closed.
    fn wait(&self, sent: u64, ahead: u64) -> bool {
        let mut assembled = self.assembled.lock().unwrap_or_else(PoisonError::into_inner);
        while sent > assembled.unwrap_or(0).saturating_add(ahead) {
            assembled = self.moved.wait(assembled).unwrap_or_else(PoisonError::into_inner);
        }
        *assembled != Some(u64::MAX)
    }
}

/// Stops everybody else when its thread fails or panics: nobody must wait for what will never come.
pub(super) struct Alarm<'a>(pub &'a Queue, pub &'a Window);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        self.0.abort();
        self.1.close();
    }
}

pub(super) struct Scan<'a, R: Read> {
    pub source: &'a dyn Source,
    pub recipes: Option<RecipeReader<R>>,
    pub known: &'a Known,
    pub queue: &'a Queue,
    pub window: &'a Window,
    pub results: Sender<Step>,
    pub monitor: &'a dyn Monitor,
    pub clock: &'a dyn Clock,
    pub cancel: &'a Cancel,
    pub workers: usize,
    /// `None` for a source without an order: what it has so far is no tree.
    pub checkpoint_every: Option<Duration>,
}

/// The batch being filled.
#[derive(Default)]
struct Filling {
    items: Vec<Work>,
    bytes: u64,
    work: bool,
    sent: u64,
    /// Whether the source has said how much there is.
    expected: bool,
}

impl<R: Read> Scan<'_, R> {
    /// Walks to the end; then no further batch will come.
    pub fn run(mut self) -> Result<(), Error> {
        let alarm = Alarm(self.queue, self.window);
        self.walk()?;
        std::mem::forget(alarm);
        self.queue.close();
        Ok(())
    }

    fn walk(&mut self) -> Result<(), Error> {
        let mut filling = Filling::default();
        let mut failed = None;
        let mut last_checkpoint = self.clock.monotonic();
        let source = self.source;
        source.walk(&mut |found| {
            let step = self
                .take(found, &mut filling)
                .and_then(|()| self.maybe_checkpoint(&mut filling, &mut last_checkpoint));
            match step {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        match failed {
            Some(error) => Err(error),
            None => self.send(&mut filling),
        }
    }

    fn take(&mut self, found: Found, filling: &mut Filling) -> Result<(), Error> {
        self.cancel.check()?;
        let work = match found {
            Found::Problem { key, message } => {
                Work::Reuse(Box::new(Outcome { is_item: false, ..Outcome::lost(key, message) }))
            }
            Found::Note(text) => {
                self.monitor.note(&text);
                return Ok(());
            }
            Found::Expected(bytes) => {
                filling.expected = true;
                self.monitor.total(0, bytes);
                return Ok(());
            }
            Found::Item(item) => {
                self.monitor.total(1, if filling.expected { 0 } else { item.size });
                self.sort(item)?
            }
            Found::Opened(item, opened) => {
                self.monitor.total(1, if filling.expected { 0 } else { item.size });
                Work::Opened { item, opened }
            }
        };
        filling.bytes += 512;
        if let Work::Capture { item, .. } | Work::Opened { item, .. } = &work {
            filling.bytes = filling.bytes.saturating_add(item.size);
            filling.work = true;
        }
        // Its content may be on the way; somebody has to read it.
        let urgent = matches!(work, Work::Opened { .. });
        filling.items.push(work);
        let full = urgent || filling.items.len() >= BATCH_ITEMS_MAX || filling.bytes >= BATCH_BYTES_MAX;
        if full { self.send(filling) } else { Ok(()) }
    }

    /// Decides whether the last capture's entry still stands.
    fn sort(&mut self, item: Item) -> Result<Work, Error> {
        let Some(recipes) = &mut self.recipes else { return Ok(Work::Capture { item, seen: false }) };
        let recipe = match recipes.advance_to(item.key.as_bytes()) {
            Ok(Some(recipe)) => recipe,
            Ok(None) => return Ok(Work::Capture { item, seen: false }),
            Err(error) => {
                let reason = crate::error::one_line(&error);
                self.monitor.note(&format!(
                    "every further file is read: the local state of the last backup is damaged ({reason})"
                ));
                self.recipes = None;
                return Ok(Work::Capture { item, seen: false });
            }
        };
        if item.fingerprint == [0; 16] || recipe.fingerprint != item.fingerprint {
            return Ok(Work::Capture { item, seen: true });
        }
        let encoded = Encoded::of_recipe(&recipe);
        let follows = recipes.passed_over() == 0;
        let decoded = (encoded.extents(&item.key), Entry::decode(&encoded.value));
        let (Ok(extents), Ok(entry)) = decoded else { return Ok(Work::Capture { item, seen: true }) };
        let mut all_known = true;
        for extent in extents {
            if let Extent::Chunk { id, .. } = extent
                && !self.known.contains(&id)?
            {
                all_known = false;
                break;
            }
        }
        if !all_known {
            return Ok(Work::Capture { item, seen: true });
        }
        let mut counts = Statistics::default();
        count_kind(&mut counts, &entry, Novelty::Unchanged);
        self.monitor.advance(1, item.size);
        let fingerprint = item.fingerprint;
        let outcome = Outcome {
            key: item.key,
            entry: Some(encoded),
            is_item: true,
            first_name: entry.hard_link,
            fingerprint,
            lost: false,
            problem: None,
            reused: true,
            follows,
            counts,
        };
        Ok(Work::Reuse(Box::new(outcome)))
    }

    fn send(&mut self, filling: &mut Filling) -> Result<(), Error> {
        if filling.items.is_empty() {
            return Ok(());
        }
        let number = filling.sent;
        if !self.window.wait(number, WINDOW_BATCHES) {
            return Err(Error::Cancelled);
        }
        let items = std::mem::take(&mut filling.items);
        let work = std::mem::take(&mut filling.work);
        filling.bytes = 0;
        filling.sent += 1;
        let sent = if work {
            self.queue.push(Batch { number, items })
        } else {
            let outcomes = items.into_iter().map(Work::into_outcome).collect();
            self.results.send(Step::Batch { number, outcomes }).is_ok()
        };
        if sent { Ok(()) } else { Err(Error::Cancelled) }
    }

    fn maybe_checkpoint(&mut self, filling: &mut Filling, last: &mut Duration) -> Result<(), Error> {
        let Some(every) = self.checkpoint_every else { return Ok(()) };
        if self.clock.monotonic().saturating_sub(*last) < every {
            return Ok(());
        }
        self.send(filling)?;
        let drained = self.window.wait(filling.sent, 0) && self.queue.flush(self.workers);
        if !drained {
            return Err(Error::Cancelled);
        }
        let (answer, done) = crossbeam_channel::bounded(1);
        self.results.send(Step::Checkpoint { answer }).map_err(|_| Error::Cancelled)?;
        done.recv().map_err(|_| Error::Cancelled)??;
        *last = self.clock.monotonic();
        Ok(())
    }
}
