//! Replication commands: who the server is, slots, timelines, base backups, the WAL stream.

mod base_backup;
#[cfg(test)]
mod recorded;
mod stream;

use std::fmt;

use crate::history::{HISTORY_BYTES_MAX, History, HistoryError};
use crate::lsn::{Lsn, SegmentSize, Timeline};
use crate::wire::{Client, PgError};

pub use base_backup::{BackupCommand, BackupEvent, BackupStream, Checkpoint, Started, Tablespace};
pub use stream::{Begun, StreamEnd, WalMessage, WalStream};

/// What `initdb` drew to tell a cluster from every other; a restored copy and a standby have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemId(u64);

impl SystemId {
    /// Wraps the number.
    pub fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number, as `pg_controldata` shows it.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What `IDENTIFY_SYSTEM` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Which cluster.
    pub system_id: SystemId,
    /// The timeline it is on.
    pub timeline: Timeline,
    /// How far its WAL is flushed; on a standby, how far it is received or replayed.
    pub position: Lsn,
}

/// A name for a replication slot: 1 to 63 of `a-z`, `0-9` and `_`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotName(String);

impl SlotName {
    /// `None` for what PostgreSQL would refuse.
    pub fn new(name: &str) -> Option<Self> {
        let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        ((1..=63).contains(&name.len()) && name.bytes().all(fine)).then(|| Self(name.to_owned()))
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A slot as the server sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotState {
    /// `physical` or `logical`.
    pub kind: String,
    /// Whether somebody streams from it now.
    pub active: bool,
    /// The oldest WAL it holds back; `None` for a slot that was never used, or whose WAL is lost.
    pub restart: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Bytes that may still be written before the slot loses WAL; `None` without `max_slot_wal_keep_size`.
    pub safe_bytes: Option<i64>,
    /// WAL between `restart` and the server's newest.
    pub lag_bytes: Option<i64>,
}

/// Reads a message of the stream; for the fuzzer.
#[doc(hidden)]
pub fn fuzz_stream(bytes: &[u8]) {
    if let Ok(WalMessage::Data { data, .. }) = WalMessage::parse(bytes::Bytes::copy_from_slice(bytes)) {
        assert_eq!(data.len() + 25, bytes.len());
    }
}

fn odd(what: &str) -> PgError {
    PgError::Protocol(format!("its answer to {what} cannot be read"))
}

impl Client {
    /// Asks the server who it is.
    pub async fn identify(&mut self) -> Result<Identity, PgError> {
        let rows = self.query("IDENTIFY_SYSTEM", "identify the cluster").await?;
        let parse = || {
            Some(Identity {
                system_id: SystemId(rows.first("systemid")?.parse().ok()?),
                timeline: rows.first("timeline")?.parse().ok()?,
                position: rows.first("xlogpos")?.parse().ok()?,
            })
        };
        parse().ok_or_else(|| odd("IDENTIFY_SYSTEM"))
    }

    /// How large the cluster's WAL segments are.
    pub async fn segment_size(&mut self) -> Result<SegmentSize, PgError> {
        let sql = "SELECT setting::int8 * CASE unit WHEN '8kB' THEN 8192 ELSE 1 END AS bytes FROM pg_settings \
                   WHERE name = 'wal_segment_size'";
        let rows = self.query(sql, "read the size of WAL segments").await?;
        let size = rows.first("bytes").and_then(|text| text.parse().ok()).and_then(SegmentSize::new);
        size.ok_or_else(|| odd("the size of WAL segments"))
    }

    /// The history of a timeline as its file has it; `None` for the first, which has none.
    pub async fn timeline_history(&mut self, timeline: Timeline) -> Result<Option<Vec<u8>>, PgError> {
        if timeline == Timeline::FIRST {
            return Ok(None);
        }
        let command = format!("TIMELINE_HISTORY {timeline}");
        let rows = self.query(&command, &format!("read the history of timeline {timeline}")).await?;
        if rows.first("filename") != Some(&timeline.history_file()) {
            return Err(odd("TIMELINE_HISTORY"));
        }
        let content =
            rows.rows.first().and_then(|row| row.get(1)?.clone()).ok_or_else(|| odd("TIMELINE_HISTORY"))?;
        if content.len() > HISTORY_BYTES_MAX {
            return Err(odd("TIMELINE_HISTORY"));
        }
        Ok(Some(content.to_vec()))
    }

    /// The same, understood.
    pub async fn history(&mut self, timeline: Timeline) -> Result<History, PgError> {
        match self.timeline_history(timeline).await? {
            None => Ok(History::root(timeline)),
            Some(content) => History::parse(timeline, &content)
                .map_err(|error: HistoryError| PgError::Protocol(error.to_string())),
        }
    }

    /// Creates a physical slot that holds WAL back from now on. A temporary one goes with the connection.
    pub async fn create_slot(&mut self, name: &SlotName, temporary: bool) -> Result<(), PgError> {
        // The old form is understood by every version.
        let command = format!(
            "CREATE_REPLICATION_SLOT {name}{} PHYSICAL RESERVE_WAL",
            if temporary { " TEMPORARY" } else { "" }
        );
        self.query(&command, &format!("create the slot `{name}`")).await.map(drop)
    }

    /// Drops a slot, waiting until nobody uses it.
    pub async fn drop_slot(&mut self, name: &SlotName) -> Result<(), PgError> {
        let command = format!("DROP_REPLICATION_SLOT {name} WAIT");
        self.query(&command, &format!("drop the slot `{name}`")).await.map(drop)
    }

    /// Looks at a slot; `None` if there is none.
    pub async fn slot(&mut self, name: &SlotName) -> Result<Option<SlotState>, PgError> {
        let sql = format!(
            "SELECT slot_type, active, restart_lsn, wal_status, safe_wal_size, \
             (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END \
             - restart_lsn)::int8 FROM pg_replication_slots WHERE slot_name = '{name}'"
        );
        let rows = self.query(&sql, &format!("look at the slot `{name}`")).await?;
        if rows.rows.is_empty() {
            return Ok(None);
        }
        let text = |column| rows.text(0, column);
        let restart = match text(2) {
            None => None,
            Some(text) => Some(text.parse().map_err(|_| odd("a question about a slot"))?),
        };
        Ok(Some(SlotState {
            kind: text(0).unwrap_or_default().to_owned(),
            active: text(1) == Some("t"),
            restart,
            wal_status: text(3).map(str::to_owned),
            safe_bytes: text(4).and_then(|text| text.parse().ok()),
            lag_bytes: text(5).and_then(|text| text.parse().ok()),
        }))
    }
}
