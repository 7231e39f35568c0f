//! Progress: a bar on a terminal, a plain line now and then elsewhere, lines of JSON for scripts.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use backup_core::monitor::Monitor;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::context::Context;
use crate::interrupt::Interrupt;
use crate::printer::{Printer, Volume};
use crate::text;

const TICK: Duration = Duration::from_millis(100);
/// Shorter work shows no bar.
const QUIET_START: Duration = Duration::from_millis(250);
const JSON_EVERY: Duration = Duration::from_secs(1);
const LINE_EVERY: Duration = Duration::from_secs(60);
const LINE_EVERY_VERBOSE: Duration = Duration::from_secs(10);
/// The rate is that of the last so many seconds.
const RATE_WINDOW: Duration = Duration::from_secs(10);
/// Of the items that fail, so many are named at once; all are counted, and the report names up to a thousand.
const PROBLEMS_NAMED: u64 = 20;

/// Shows what the engine reports. Dropped, it takes its bar away.
#[derive(Debug)]
pub struct Progress {
    shared: Arc<Shared>,
    ticker: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    printer: Arc<Printer>,
    interrupt: Interrupt,
    phase: Mutex<Phase>,
    items: AtomicU64,
    bytes: AtomicU64,
    total_items: AtomicU64,
    total_bytes: AtomicU64,
    problems: AtomicU64,
    ended: AtomicBool,
}

#[derive(Debug)]
struct Phase {
    name: &'static str,
    current: String,
    began: Instant,
    /// When, and how many bytes were done then; the oldest is at most [`RATE_WINDOW`] old.
    samples: Vec<(Instant, u64)>,
    /// The totals, and since when they stand still.
    totals: (u64, u64),
    settled: Instant,
}

impl Phase {
    fn new(name: &'static str) -> Self {
        let now = Instant::now();
        Self {
            name,
            current: String::new(),
            began: now,
            samples: vec![(now, 0)],
            totals: (0, 0),
            settled: now,
        }
    }
}

/// A moment of the work, as shown.
#[derive(Debug, Clone, Default, PartialEq)]
struct Moment {
    phase: &'static str,
    items: u64,
    bytes: u64,
    total_items: u64,
    total_bytes: u64,
    bytes_per_second: f64,
    eta: Option<Duration>,
    current: String,
}

impl Progress {
    /// Starts to show progress.
    pub fn start(ctx: &Context) -> Arc<Self> {
        let shared = Arc::new(Shared {
            printer: Arc::clone(&ctx.printer),
            interrupt: ctx.interrupt.clone(),
            phase: Mutex::new(Phase::new("")),
            items: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            total_items: AtomicU64::new(0),
            total_bytes: AtomicU64::new(0),
            problems: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        let progress = Arc::new(Self { shared, ticker: Mutex::new(None) });
        progress.begin();
        progress
    }

    /// Shows progress again after an [end](Self::end).
    pub fn begin(&self) {
        let mut ticker = self.ticker.lock().unwrap_or_else(PoisonError::into_inner);
        if ticker.is_none() {
            self.shared.ended.store(false, Ordering::Relaxed);
            let ticking = Arc::clone(&self.shared);
            *ticker = Some(std::thread::spawn(move || ticking.tick()));
        }
    }

    /// Takes the bar away; what is said from now on stays. May be called more than once.
    pub fn end(&self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        if let Some(ticker) = self.ticker.lock().unwrap_or_else(PoisonError::into_inner).take() {
            ticker.thread().unpark();
            // A ticker that panicked has nothing more to show.
            let _ = ticker.join();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

impl Monitor for Progress {
    fn phase(&self, name: &'static str) {
        let shared = &self.shared;
        for counter in [&shared.items, &shared.bytes, &shared.total_items, &shared.total_bytes] {
            counter.store(0, Ordering::Relaxed);
        }
        *shared.lock_phase() = Phase::new(name);
    }

    fn total(&self, items: u64, bytes: u64) {
        self.shared.total_items.fetch_add(items, Ordering::Relaxed);
        self.shared.total_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn advance(&self, items: u64, bytes: u64) {
        self.shared.items.fetch_add(items, Ordering::Relaxed);
        self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn current(&self, name: &str) {
        name.clone_into(&mut self.shared.lock_phase().current);
    }

    fn problem(&self, item: &str, message: &str) {
        let printer = &self.shared.printer;
        if self.shared.interrupt.is_requested() {
            return; // that it was interrupted is no news about an item
        }
        match self.shared.problems.fetch_add(1, Ordering::Relaxed) {
            n if n < PROBLEMS_NAMED || printer.volume() == Volume::Verbose => {
                printer.warn(format_args!("`{item}`: {message}"));
            }
            PROBLEMS_NAMED => printer.warn("there are more; they are counted (`--verbose` names all)"),
            _ => {}
        }
        printer.json("problem", json!({ "item": item, "message": message }));
    }

    fn note(&self, message: &str) {
        self.shared.printer.say(message);
        self.shared.printer.json("note", json!({ "message": message }));
    }
}

impl Shared {
    fn lock_phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tick(&self) {
        let mut bar: Option<ProgressBar> = None;
        let mut last_line = Instant::now();
        while !self.ended.load(Ordering::Relaxed) {
            std::thread::park_timeout(TICK);
            let (moment, began) = self.moment();
            if moment.phase.is_empty() {
                continue;
            }
            if self.printer.draws() {
                if bar.is_none() && began.elapsed() >= QUIET_START {
                    bar = Some(self.new_bar());
                }
                if let Some(bar) = &bar {
                    draw(bar, &moment);
                }
            } else if last_line.elapsed() >= self.line_every() {
                last_line = Instant::now();
                self.print(&moment);
            }
        }
        self.printer.attach(None);
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
    }

    fn line_every(&self) -> Duration {
        match (self.printer.is_json(), self.printer.volume()) {
            (true, _) => JSON_EVERY,
            (false, Volume::Verbose) => LINE_EVERY_VERBOSE,
            _ => LINE_EVERY,
        }
    }

    fn new_bar(&self) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr_with_hz(10));
        let style = ProgressStyle::with_template("{prefix} {bar:24} {wide_msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸ "));
        self.printer.attach(Some(bar.clone()));
        bar
    }

    fn moment(&self) -> (Moment, Instant) {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut phase = self.lock_phase();
        let now = Instant::now();
        let bytes = of(&self.bytes);
        let totals = (of(&self.total_items), of(&self.total_bytes));
        if totals != phase.totals {
            (phase.totals, phase.settled) = (totals, now);
        }
        phase.samples.push((now, bytes));
        let old = phase.samples.partition_point(|(when, _)| now.duration_since(*when) > RATE_WINDOW);
        let keep_from = old.min(phase.samples.len() - 1);
        phase.samples.drain(..keep_from);
        let (since, then) = phase.samples[0];
        let seconds = now.duration_since(since).as_secs_f64();
        let rate = if seconds > 0.0 { bytes.saturating_sub(then) as f64 / seconds } else { 0.0 };
        // While the totals still grow, nobody knows the end.
        let settled = now.duration_since(phase.settled) > Duration::from_secs(2);
        let left = totals.1.saturating_sub(bytes);
        let eta = (settled && left > 0 && rate > 1.0)
            .then(|| Duration::try_from_secs_f64(left as f64 / rate).unwrap_or(Duration::MAX));
        let moment = Moment {
            phase: phase.name,
            items: of(&self.items),
            bytes,
            total_items: totals.0,
            total_bytes: totals.1,
            bytes_per_second: rate,
            eta,
            current: phase.current.clone(),
        };
        (moment, phase.began)
    }

    fn print(&self, moment: &Moment) {
        if self.printer.is_json() {
            let fields = json!({
                "phase": moment.phase,
                "items": moment.items,
                "bytes": moment.bytes,
                "total_items": moment.total_items,
                "total_bytes": moment.total_bytes,
                "bytes_per_second": moment.bytes_per_second as u64,
                "seconds_left": moment.eta.map(|eta| eta.as_secs()),
            });
            self.printer.json("progress", fields);
        } else {
            self.printer.say(format_args!("{}: {}", moment.phase, moment.describe()));
        }
    }
}

fn draw(bar: &ProgressBar, moment: &Moment) {
    // Before anything is known the bar is empty, not full.
    let (position, length) = match moment {
        Moment { total_bytes: 1.., .. } => (moment.bytes, moment.total_bytes),
        Moment { total_items: 1.., .. } => (moment.items, moment.total_items),
        _ => (0, 1),
    };
    bar.set_prefix(moment.phase);
    bar.set_length(length.max(position).max(1));
    bar.set_position(position);
    bar.set_message(moment.describe());
    bar.tick();
}

impl Moment {
    /// `1,204 of 8,310 items · 1.20 GiB of 3.41 GiB · 118 MiB/s · 0:19 left`.
    fn describe(&self) -> String {
        let of = |done: String, total: String, known: bool| {
            if known { format!("{done} of {total}") } else { done }
        };
        let items = of(text::number(self.items), text::number(self.total_items), self.total_items > 0);
        let mut parts = vec![format!("{items} items")];
        if self.bytes > 0 || self.total_bytes > 0 {
            parts.push(of(text::bytes(self.bytes), text::bytes(self.total_bytes), self.total_bytes > 0));
            parts.push(format!("{}/s", text::bytes(self.bytes_per_second as u64)));
        }
        if let Some(eta) = self.eta {
            let seconds = eta.as_secs();
            parts.push(match seconds {
                0..3600 => format!("{}:{:02} left", seconds / 60, seconds % 60),
                _ => format!("{}:{:02}:{:02} left", seconds / 3600, seconds / 60 % 60, seconds % 60),
            });
        }
        if !self.current.is_empty() {
            parts.push(self.current.clone());
        }
        parts.join(" · ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_says_only_what_is_known() {
        let mut moment = Moment { phase: "backup", items: 1204, ..Moment::default() };
        assert_eq!(moment.describe(), "1,204 items");
        moment.total_items = 8310;
        (moment.bytes, moment.total_bytes, moment.bytes_per_second) = (1 << 30, 3 << 30, 1e8);
        assert_eq!(moment.describe(), "1,204 of 8,310 items · 1.00 GiB of 3.00 GiB · 95.4 MiB/s");
        moment.eta = Some(Duration::from_secs(79));
        assert!(moment.describe().ends_with(" · 1:19 left"));
    }
}
