//! A sign of life in the log itself: what the archive has of it says how old the newest thing is that would come back.

use std::time::Duration;

use backup_core::Repository;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::options::ConnectOptions;
use crate::wire::{Client, PgError};

/// Writes a message that nobody decodes, and a commit with the time. No table is needed, and no right.
const BEAT: &str = "SELECT pg_logical_emit_message(true, 'keepwell', 'heartbeat')";
const ACTION: &str = "write a heartbeat";

/// The beat goes on until this is dropped.
#[derive(Debug)]
pub(super) struct Heart(JoinHandle<()>);

impl Drop for Heart {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Begins to beat at once, and then this often. What fails is noted once, and tried again.
pub(super) fn start(connect: ConnectOptions, every: Duration, repository: Repository) -> Heart {
    Heart(tokio::spawn(async move {
        let mut tick = tokio::time::interval(every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut client, mut noted) = (None, false);
        loop {
            tick.tick().await;
            match beat(&connect, client.take()).await {
                Ok(connected) => (client, noted) = (Some(connected), false),
                Err(error) if !noted => {
                    noted = true;
                    repository.monitor().note(&format!("no heartbeat: {}", crate::one_line(&error)));
                }
                Err(_) => {}
            }
        }
    }))
}

async fn beat(connect: &ConnectOptions, client: Option<Client>) -> Result<Client, PgError> {
    let mut client = match client {
        Some(client) => client,
        None => Client::connect(connect).await?,
    };
    client.query(BEAT, ACTION).await?;
    Ok(client)
}
