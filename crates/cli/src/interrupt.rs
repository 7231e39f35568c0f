//! SIGINT, SIGTERM and SIGHUP: stop, lose nothing, exit with 130.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::signal::unix::{SignalKind, signal};

/// Whether the work should stop, and whether it knows how to stop by itself.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicU8>);

const REQUESTED: u8 = 1;
const GRACEFUL: u8 = 2;

impl Interrupt {
    /// Whether somebody wants the work to stop.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed) & REQUESTED != 0
    }

    /// From now on the work looks at [`is_requested`](Self::is_requested) and ends by itself; only a second signal ends
    /// the process at once.
    pub fn ends_by_itself(&self) {
        self.0.fetch_or(GRACEFUL, Ordering::Relaxed);
    }

    /// Returns when the process is to end at once.
    pub async fn at_once(&self, say: impl Fn(&str)) -> std::io::Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            let before = self.0.fetch_or(REQUESTED, Ordering::Relaxed);
            if before & GRACEFUL == 0 || before & REQUESTED != 0 {
                return Ok(());
            }
            say("stopping; what is stored is kept (interrupt again to end at once)");
        }
    }
}
