//! Receiving WAL as it is written, and archiving it.
//!
//! A receiver streams from a slot, cuts the log into blocks, and archives each block when it is full, and what there is
//! of the open block every few seconds. It tells the server that WAL is safe only when the repository has it.

mod begin;
mod block;
mod heartbeat;
mod session;
#[cfg(test)]
mod tests;
mod uploads;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use backup_core::Repository;
use backup_core::env::Clock;
use backup_core::wal::WalWriter;
use tokio::sync::watch;

use crate::history::HistoryError;
use crate::lsn::{Lsn, Timeline};
use crate::options::ConnectOptions;
use crate::replication::{SlotName, SystemId};
use crate::wire::PgError;

/// Longest wait between two attempts to reach a server or a store that is away.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// How long a server may take to let us in, unless the connection says it: there may be another one by now.
const CONNECT_MAX: Duration = Duration::from_secs(60);

/// How to receive.
#[derive(Debug, Clone)]
pub struct ReceiveOptions {
    /// What is backed up, under the name that its base backups have as well.
    pub dataset: String,
    /// The slot that makes the server keep WAL for us. Without one a server that is faster than we are leaves gaps.
    pub slot: Option<SlotName>,
    /// Whether to create the slot if there is none.
    pub create_slot: bool,
    /// What there is of the open block is archived this long after its first new byte.
    pub tail_every: Duration,
    /// Archive at once whatever arrives: for a receiver that stands in `synchronous_standby_names`.
    pub synchronous: bool,
    /// Whether the dataset may go over to another cluster than before.
    pub rebind: bool,
    /// End when the WAL is durable up to here.
    pub until: Option<Lsn>,
    /// Have the server commit an empty transaction this often while it streams, so that the last commit in the archive
    /// shows how much could be lost, also when nobody writes. Needs a primary, and a second connection.
    pub heartbeat: Option<Duration>,
}

impl Default for ReceiveOptions {
    fn default() -> Self {
        Self {
            dataset: "postgres".to_owned(),
            slot: None,
            create_slot: false,
            tail_every: Duration::from_secs(2),
            synchronous: false,
            rebind: false,
            until: None,
            heartbeat: None,
        }
    }
}

/// How far a receiver is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Whether it is connected and streams.
    pub streaming: bool,
    /// The cluster; `None` before the first connection.
    pub system: Option<SystemId>,
    /// The timeline that it is on.
    pub timeline: Option<Timeline>,
    /// Received up to here.
    pub received: Lsn,
    /// Archived up to here, without a gap since the stream began.
    pub durable: Lsn,
    /// How far the server's WAL reached when it last said.
    pub server_end: Lsn,
    /// Pieces archived since the start.
    pub pieces: u64,
    /// Gaps that had to be left since the start.
    pub gaps: u64,
    /// Connections that were made.
    pub connections: u64,
}

/// Why a receiver gave up. What may pass, it waits out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// The server.
    #[error(transparent)]
    Server(#[from] PgError),
    /// The repository.
    #[error(transparent)]
    Repository(#[from] backup_core::Error),
    /// A history file that the server sent.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The server is of another cluster than a moment ago.
    #[error("the server is of cluster {found}, and before it was {expected}")]
    OtherCluster {
        /// What it was.
        expected: SystemId,
        /// What it is.
        found: SystemId,
    },
    /// What the server sends differs from what was archived for the same place.
    #[error("the server's WAL at {at} on timeline {timeline} differs from what is archived")]
    Different {
        /// Timeline.
        timeline: Timeline,
        /// Beginning of the stretch.
        at: Lsn,
    },
    /// Two servers were promoted to the same timeline.
    #[error("the server's history of timeline {timeline} is not the one that is archived")]
    OtherHistory {
        /// The timeline.
        timeline: Timeline,
    },
    /// The archive is ahead of the server, or on a timeline that the server does not know.
    #[error("the archive ends at {archived} on timeline {timeline}, and the server {reason}")]
    Diverged {
        /// Timeline of the archive.
        timeline: Timeline,
        /// Its end.
        archived: Lsn,
        /// Where the server is instead.
        reason: String,
    },
    /// A standby that has received less than the archive has; it will have more, or be promoted.
    #[error("the server is a standby that has come only to {position}, and the archive to {archived}")]
    Behind {
        /// How far it is.
        position: Lsn,
        /// The end of the archive.
        archived: Lsn,
    },
    /// There is no such slot, and none may be created.
    #[error("there is no replication slot `{slot}`")]
    NoSlot {
        /// Its name.
        slot: SlotName,
    },
    /// The slot does not hold WAL back for us.
    #[error("the replication slot `{slot}` is {fault}")]
    BadSlot {
        /// Its name.
        slot: SlotName,
        /// What is the matter with it.
        fault: SlotFault,
    },
}

/// Why a slot cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlotFault {
    /// The server did not keep what it should have kept.
    #[error("lost: the server has removed WAL that it should have kept")]
    Lost,
    /// It belongs to somebody else.
    #[error("of the kind `{0}`, and a physical one is needed")]
    Kind(String),
}

impl ReceiveError {
    /// What the operator may do about it, if there is something to say.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Server(error) => error.hint(),
            Self::Repository(backup_core::Error::Invalid(text)) if text.starts_with("the log of") => Some(
                "Give another cluster a dataset of its own. If it takes the place of the old one, as after pg_upgrade, \
                 say so with --new-cluster."
                    .into(),
            ),
            Self::Repository(error) => error.hint(),
            Self::Different { .. } => Some(
                "Two servers write the same timeline: one of them was not stopped before the other took over. \
                 Nothing was overwritten. Stop the wrong one, and promote the right one."
                    .into(),
            ),
            Self::Diverged { .. } | Self::OtherHistory { .. } => Some(
                "This server lost a failover, or was restored without a new timeline. Point the receiver at the right one; \
                 if this is the right one, take a new base backup under a dataset of its own."
                    .into(),
            ),
            Self::NoSlot { .. } => Some("--create-slot creates it; it then holds WAL back on the server until it is archived.".into()),
            Self::BadSlot { fault: SlotFault::Kind(_), .. } => Some(
                "Somebody else uses it: leave it alone, and name another one with --slot and --create-slot.".into(),
            ),
            Self::BadSlot { fault: SlotFault::Lost, .. } => Some(
                "It held back more than `max_slot_wal_keep_size` allows. Drop it, start again with --create-slot, and take a \
                 new base backup: the archive has a gap."
                    .into(),
            ),
            _ => None,
        }
    }

    fn is_passing(&self) -> bool {
        match self {
            Self::Server(error) => error.is_passing(),
            Self::Repository(backup_core::Error::Storage(error)) => uploads::passes(error),
            Self::Behind { .. } => true,
            _ => false,
        }
    }
}

/// Receives and archives until it is told to stop.
#[derive(Debug)]
pub struct Receiver {
    repository: Repository,
    connect: ConnectOptions,
    options: ReceiveOptions,
    clock: Arc<dyn Clock>,
    progress: watch::Sender<Progress>,
    stop: watch::Receiver<bool>,
    archive: Option<WalWriter>,
    /// Where gaps begin that were told of.
    gaps: BTreeSet<Lsn>,
}

impl Receiver {
    /// Prepares; nothing is connected yet. `stop` ends it in order when it becomes true or its sender goes.
    ///
    /// A server that does not let us in is waited for as long as `connect` says, else for a minute.
    pub fn new(
        repository: Repository,
        mut connect: ConnectOptions,
        options: ReceiveOptions,
        clock: Arc<dyn Clock>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        connect.connect_timeout.get_or_insert(CONNECT_MAX);
        let progress = watch::Sender::new(Progress::default());
        Self { repository, connect, options, clock, progress, stop, archive: None, gaps: BTreeSet::new() }
    }

    /// Follows how far it is.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Receives. A server or a store that is away is waited for, with notes to the repository's monitor; what will not
    /// pass by itself is an error. When told to stop, archives what it has, tells the server, and returns.
    pub async fn run(mut self) -> Result<Progress, ReceiveError> {
        let mut wait = Duration::from_secs(1);
        loop {
            let connections = self.progress.borrow().connections;
            let ended = self.session().await;
            self.progress.send_modify(|p| p.streaming = false);
            if self.must_stop() {
                return ended.map(|()| *self.progress.borrow());
            }
            let reason = match ended {
                Ok(()) if self.is_done() => return Ok(*self.progress.borrow()),
                Ok(()) => "the server ended the stream".to_owned(),
                Err(error) if error.is_passing() => crate::one_line(&error),
                Err(error) => return Err(error),
            };
            if self.progress.borrow().connections > connections {
                wait = Duration::from_secs(1);
            }
            self.repository.monitor().note(&format!("{reason}; next attempt in {} s", wait.as_secs()));
            let mut stop = self.stop.clone();
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = told(&mut stop) => return Ok(*self.progress.borrow()),
            }
            wait = (wait * 2).min(WAIT_MAX);
        }
    }

    fn must_stop(&self) -> bool {
        *self.stop.borrow() || self.stop.has_changed().is_err()
    }

    fn is_done(&self) -> bool {
        let durable = self.progress.borrow().durable;
        self.options.until.is_some_and(|until| durable >= until)
    }
}

/// Returns when we are told to stop, or when nobody can tell us any more.
async fn told(stop: &mut watch::Receiver<bool>) {
    // The answer borrows the channel; it must not outlive this.
    let _ = stop.wait_for(|stop| *stop).await;
}
