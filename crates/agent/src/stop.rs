//! Ending in time: a signal becomes a wish that the engine heeds.

use std::process::exit;

use anyhow::Context;
use backup_core::Cancel;
use tokio::signal::unix::{SignalKind, signal};

/// Whether the agent is to end.
#[derive(Debug, Clone)]
pub struct Stop(Cancel);

impl Stop {
    /// Listens to SIGTERM, SIGINT and SIGHUP from now on. The second one ends the process at once.
    pub fn on_signals() -> anyhow::Result<Self> {
        let mut terminate = signal(SignalKind::terminate()).context("listen to SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listen to SIGINT")?;
        // A terminal that is closed, or somebody who means "read your configuration anew".
        let mut hangup = signal(SignalKind::hangup()).context("listen to SIGHUP")?;
        let cancel = Cancel::default();
        let stop = Self(cancel.clone());
        tokio::spawn(async move {
            loop {
                tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {}, _ = hangup.recv() => {} }
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
