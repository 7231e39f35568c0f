//! SIGINT, SIGTERM and SIGHUP: stop, lose nothing, exit with 130.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use backup_core::Cancel;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Whether the work should stop, and whether it knows how to stop by itself.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<State>);

#[derive(Debug, Default)]
struct State {
    flags: AtomicU8,
    cancel: Cancel,
    last: Mutex<LastDeeds>,
}

/// What is done before the process ends at once.
#[derive(Default)]
struct LastDeeds(Vec<Box<dyn FnOnce() + Send>>);

impl fmt::Debug for LastDeeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} deeds", self.0.len())
    }
}

const REQUESTED: u8 = 1;
const GRACEFUL: u8 = 2;

impl Interrupt {
    /// Whether somebody wants the work to stop.
    pub fn is_requested(&self) -> bool {
        self.0.flags.load(Ordering::SeqCst) & REQUESTED != 0
    }

    /// From now on the work ends by itself when it is asked to; only a second signal ends the process at once.
    pub fn ends_by_itself(&self) {
        if self.0.flags.fetch_or(GRACEFUL, Ordering::SeqCst) & REQUESTED != 0 {
            self.0.cancel.cancel();
        }
    }

    /// The wish, for work that [ends by itself](Self::ends_by_itself).
    pub fn cancel(&self) -> Cancel {
        self.0.cancel.clone()
    }

    /// Returns when work that ends by itself is to end.
    pub async fn requested(&self) {
        self.0.cancel.cancelled().await;
    }

    /// Has something done should the process end at once, on a second signal. It must be quick, and right to do also when
    /// the work has ended in order.
    pub fn before_the_end(&self, deed: impl FnOnce() + Send + 'static) {
        self.deeds().0.push(Box::new(deed));
    }

    /// Does what is to be done before the process ends at once; what was asked for last comes first.
    pub fn do_last(&self) {
        let deeds = std::mem::take(&mut *self.deeds());
        deeds.0.into_iter().rev().for_each(|deed| deed());
    }

    fn deeds(&self) -> std::sync::MutexGuard<'_, LastDeeds> {
        self.0.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the process is to end at once.
    pub async fn at_once(&self, say: impl Fn(&str)) -> std::io::Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = hangup()?;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                () = received(hangup.as_mut()) => {}
            }
            let before = self.0.flags.fetch_or(REQUESTED, Ordering::SeqCst);
            if before & GRACEFUL == 0 || before & REQUESTED != 0 {
                return Ok(());
            }
            self.0.cancel.cancel();
            say("stopping in order (interrupt again to end at once)");
        }
    }
}

/// SIGHUP, unless whoever started us has it ignored, as `nohup` does: to listen would undo that, and a terminal that is closed
/// would end the backup that was to outlive it.
fn hangup() -> std::io::Result<Option<Signal>> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if ignores_hangup(&status) { Ok(None) } else { signal(SignalKind::hangup()).map(Some) }
}

/// Whether a process ignores SIGHUP, the first of all signals, by what the kernel says of it.
fn ignores_hangup(status: &str) -> bool {
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set & 1 != 0)
}

/// Returns when the signal comes; never without one.
async fn received(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_was_started_with_nohup_ignores_hangups() {
        let status =
            |set: &str| format!("SigBlk:\t0000000000000001\nSigIgn:\t{set}\nSigCgt:\t0000000000000001\n");
        for (set, expected) in [("0000000000001001", true), ("0000000000001000", false), ("odd", false)] {
            assert_eq!(ignores_hangup(&status(set)), expected, "{set}");
        }
        assert!(!ignores_hangup(""));
    }
}
