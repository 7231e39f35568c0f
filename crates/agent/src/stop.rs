//! Ending in time: a signal becomes a wish that the engine heeds.

use std::process::exit;
use std::{fs, io};

use anyhow::Context;
use backup_core::Cancel;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Whether the agent is to end.
#[derive(Debug, Clone)]
pub struct Stop(Cancel);

impl Stop {
    /// Listens to SIGTERM, SIGINT and SIGHUP from now on. The second one ends the process at once.
    pub fn on_signals() -> anyhow::Result<Self> {
        let mut terminate = signal(SignalKind::terminate()).context("listen to SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listen to SIGINT")?;
        let mut hangup = hangup().context("listen to SIGHUP")?;
        let cancel = Cancel::default();
        let stop = Self(cancel.clone());
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                    () = received(hangup.as_mut()) => {}
                }
                if cancel.is_cancelled() {
                    exit(130);
                }
                cancel.cancel();
                tracing::info!("ending; what is stored is kept");
            }
        });
        Ok(stop)
    }

    /// The wish, for the engine.
    pub fn cancel(&self) -> Cancel {
        self.0.clone()
    }

    /// Whether the agent is to end.
    pub fn is_requested(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Returns when the agent is to end.
    pub async fn requested(&self) {
        self.0.cancelled().await;
    }
}

/// A terminal that is closed, or somebody who means "read your configuration anew". Not where whoever started us has it ignored,
/// as `nohup` does: to listen would undo that.
fn hangup() -> io::Result<Option<Signal>> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    // SIGHUP is the first of all signals.
    match ignored.is_some_and(|set| set & 1 != 0) {
        true => Ok(None),
        false => signal(SignalKind::hangup()).map(Some),
    }
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
