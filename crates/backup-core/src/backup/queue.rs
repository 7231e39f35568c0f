//! The work queue of a backup: batches of items, and frames that a busy worker hands to an idle one.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::result::Outcome;
use crate::pack::FrameBuilder;
use crate::source::{Item, Opened};

/// A run of consecutive items; `number` restores their order afterwards.
#[derive(Debug)]
pub(super) struct Batch {
    pub number: u64,
    pub items: Vec<Work>,
}

/// What is to be done with one item.
#[derive(Debug)]
pub(super) enum Work {
    /// Nothing: the previous capture's entry is taken over.
    Reuse(Box<Outcome>),
    /// Open and store it. `seen` says whether the previous capture had an item under this key.
    Capture { item: Item, seen: bool },
    /// Store it; it came with its content.
    Opened { item: Item, opened: Box<Opened> },
}

impl Work {
    /// The outcome of work that needs none.
    pub fn into_outcome(self) -> Outcome {
        match self {
            Self::Reuse(outcome) => *outcome,
            Self::Capture { item, .. } | Self::Opened { item, .. } => {
                Outcome::lost(item.key, "was never captured".into())
            }
        }
    }
}

/// What a worker is given.
#[derive(Debug)]
pub(super) enum Task {
    Batch(Batch),
    Frame(FrameBuilder),
    /// Finish open packs, then say so with [`Queue::flushed`].
    Flush,
}

/// Bounded by `batches_max` batches and, because only idle workers are offered frames, as many frames as workers.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    batches_max: usize,
}

#[derive(Debug, Default)]
struct State {
    batches: VecDeque<Batch>,
    frames: VecDeque<FrameBuilder>,
    /// Workers waiting for a task, minus frames already meant for them.
    idle: usize,
    /// Batches being worked on; each may still produce frames.
    active: usize,
    /// Flushes asked for so far, and workers that have answered the newest.
    flushes: u64,
    flushed: usize,
    closed: bool,
    aborted: bool,
}

impl Queue {
    pub fn new(batches_max: usize) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), batches_max }
    }

    /// Adds a batch, waiting while the queue is full. `false` once the work was aborted.
    pub fn push(&self, batch: Batch) -> bool {
        let mut state = self.lock();
        while state.batches.len() >= self.batches_max && !state.aborted {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.aborted {
            return false;
        }
        state.batches.push_back(batch);
        self.changed.notify_all();
        true
    }

    /// No further batch will come.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Ends all work as soon as the workers look again. What waits is dropped: somebody may be filling its contents.
    pub fn abort(&self) {
        let dropped = {
            let mut state = self.lock();
            state.aborted = true;
            (std::mem::take(&mut state.batches), std::mem::take(&mut state.frames))
        };
        drop(dropped);
        self.changed.notify_all();
    }

    /// Gives a frame to an idle worker, or gives it back when all are busy.
    pub fn offer(&self, frame: FrameBuilder) -> Result<(), FrameBuilder> {
        let mut state = self.lock();
        if state.frames.len() >= state.idle {
            return Err(frame);
        }
        state.frames.push_back(frame);
        self.changed.notify_all();
        Ok(())
    }

    /// Asks each of `workers` to finish its open packs and waits until all have. No batch may be queued or active.
    /// `false` once the work was aborted.
    pub fn flush(&self, workers: usize) -> bool {
        let mut state = self.lock();
        state.flushes += 1;
        state.flushed = 0;
        self.changed.notify_all();
        while state.flushed < workers && !state.aborted {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.aborted
    }

    /// A worker finished its open packs.
    pub fn flushed(&self) {
        self.lock().flushed += 1;
        self.changed.notify_all();
    }

    /// The next task: frames first. `None` when everything is done or aborted. `flushes` is the worker's own count.
    pub fn next(&self, flushes: &mut u64) -> Option<Task> {
        let mut state = self.lock();
        loop {
            if state.aborted {
                return None;
            }
            if let Some(frame) = state.frames.pop_front() {
                return Some(Task::Frame(frame));
            }
            if *flushes < state.flushes {
                *flushes = state.flushes;
                return Some(Task::Flush);
            }
            if let Some(batch) = state.batches.pop_front() {
                state.active += 1;
                self.changed.notify_all();
                return Some(Task::Batch(batch));
            }
            if state.closed && state.active == 0 {
                return None;
            }
            state.idle += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    /// A worker ended the batch it took.
    pub fn done(&self) {
        self.lock().active -= 1;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
