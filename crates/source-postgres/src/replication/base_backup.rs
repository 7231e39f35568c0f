//! `BASE_BACKUP` in the syntax of 14 and of 15 and newer, as one stream of events.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use super::odd;
use crate::lsn::{Lsn, Timeline};
use crate::wire::{Answer, Client, PgError, Rows};

/// First version with the option list in parentheses and all archives in one COPY.
const NEW_SYNTAX: u32 = 15;

/// How the checkpoint before a backup is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Checkpoint {
    /// At once, with all the server's might.
    Fast,
    /// Spread out, as scheduled ones are; it may take minutes.
    #[default]
    Spread,
}

/// What is asked of the server.
#[derive(Debug, Clone)]
pub struct BackupCommand {
    /// Goes into `backup_label`.
    pub label: String,
    /// How it begins.
    pub checkpoint: Checkpoint,
    /// At most this many kilobytes per second (32 to 1048576); `None` for no limit.
    pub max_rate_kb: Option<u32>,
    /// Whether the server checks page checksums too, for a log of its own.
    pub server_checks_pages: bool,
    /// Whether the WAL from start to end comes along, at the end of the main archive.
    pub wal: bool,
    /// Only what changed since the manifest that was uploaded on this connection (17 and newer).
    pub incremental: bool,
}

impl BackupCommand {
    fn text(&self, major: u32) -> String {
        let label = self.label.replace('\'', "''");
        let fast = self.checkpoint == Checkpoint::Fast;
        if major < NEW_SYNTAX {
            let rate = self.max_rate_kb.map_or_else(String::new, |rate| format!(" MAX_RATE {rate}"));
            return format!(
                "BASE_BACKUP LABEL '{label}' PROGRESS{}{}{rate} NOWAIT TABLESPACE_MAP{} MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'",
                if fast { " FAST" } else { "" },
                if self.wal { " WAL" } else { "" },
                if self.server_checks_pages { "" } else { " NOVERIFY_CHECKSUMS" },
            );
        }
        let rate = self.max_rate_kb.map_or_else(String::new, |rate| format!(", MAX_RATE {rate}"));
        format!(
            "BASE_BACKUP (LABEL '{label}', PROGRESS, CHECKPOINT '{}', WAL {}, WAIT false, TABLESPACE_MAP, \
             MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C', VERIFY_CHECKSUMS {}{rate}{})",
            if fast { "fast" } else { "spread" },
            self.wal,
            self.server_checks_pages,
            if self.incremental { ", INCREMENTAL" } else { "" },
        )
    }
}

/// A tablespace of the cluster, the default ones left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// Its OID, the name of its link in `pg_tblspc`.
    pub oid: u32,
    /// Where it is on the server.
    pub location: String,
}

/// What the server says before the first byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// Recovery begins here.
    pub start: Lsn,
    /// On this timeline.
    pub timeline: Timeline,
    /// In the order in which they are sent; the main data directory comes last.
    pub tablespaces: Vec<Tablespace>,
    /// All that is to come, in bytes, as the server estimates it.
    pub estimate: u64,
}

/// A step of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupEvent {
    /// A new archive begins: of a tablespace, or (`None`) of the main data directory, which is the last.
    Archive(Option<Tablespace>),
    /// The next bytes of the archive.
    Data(Bytes),
    /// The next bytes of the backup manifest, which follows the last archive.
    Manifest(Bytes),
}

enum State {
    /// Archives of the new protocol, all in one COPY.
    Together {
        in_manifest: bool,
    },
    /// Archives of the old protocol, one COPY each, and one for the manifest.
    Apart {
        copying: bool,
    },
    Over,
}

/// A base backup on its way.
pub struct BackupStream<'a> {
    client: &'a mut Client,
    waiting: VecDeque<Option<Tablespace>>,
    state: State,
    end: Option<(Lsn, Timeline)>,
}

/// What the server says at the very end when it found pages whose checksum does not fit. All has been sent then.
const DATA_CORRUPTED: &str = "XX001";
const ACTION: &str = "take a base backup";

impl Client {
    /// Starts a base backup. Returns when the checkpoint is done and the server begins to send.
    pub async fn base_backup(
        &mut self,
        command: &BackupCommand,
    ) -> Result<(Started, BackupStream<'_>), PgError> {
        let major = self.major();
        let Answer::CopyOut(tables) = self.run(&command.text(major), ACTION).await? else {
            return Err(odd("BASE_BACKUP"));
        };
        let started = started(&tables).ok_or_else(|| odd("BASE_BACKUP"))?;
        let archives = started.tablespaces.iter().cloned().map(Some).chain([None]);
        let state = if major < NEW_SYNTAX {
            State::Apart { copying: true }
        } else {
            State::Together { in_manifest: false }
        };
        let mut stream = BackupStream { client: self, waiting: archives.collect(), state, end: None };
        if major < NEW_SYNTAX {
            // The first COPY has begun already; its archive is announced by the first event.
            stream.state = State::Apart { copying: false };
        }
        Ok((started, stream))
    }

    /// Hands the server the manifest of what we have, for an incremental backup on this connection (17 and newer).
    pub async fn upload_manifest(&mut self, manifest: &[u8]) -> Result<(), PgError> {
        const ACTION: &str = "upload the manifest of the last backup";
        match self.run("UPLOAD_MANIFEST", ACTION).await? {
            Answer::CopyIn => self.copy_in(manifest, ACTION).await,
            _ => Err(odd("UPLOAD_MANIFEST")),
        }
    }
}

fn started(tables: &[Rows]) -> Option<Started> {
    let [start, spaces] = tables else { return None };
    let mut found = Started {
        start: start.text(0, 0)?.parse().ok()?,
        timeline: start.text(0, 1)?.parse().ok()?,
        tablespaces: Vec::new(),
        estimate: 0,
    };
    let last = spaces.rows.len().checked_sub(1)?;
    for row in 0..spaces.rows.len() {
        let kilobytes: u64 = spaces.text(row, 2).map_or(Some(0), |text| text.parse().ok())?;
        found.estimate = found.estimate.saturating_add(kilobytes.saturating_mul(1024));
        match (spaces.text(row, 0), spaces.text(row, 1)) {
            (Some(oid), Some(location)) => {
                found.tablespaces.push(Tablespace { oid: oid.parse().ok()?, location: location.to_owned() });
            }
            // The data directory is the last one; elsewhere a space without a place is nonsense.
            (None, None) if row == last => return Some(found),
            _ => return None,
        }
    }
    None
}

impl BackupStream<'_> {
    /// The next event, or `None` when everything has arrived; then [`BackupStream::end`] knows where the backup ended.
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<BackupEvent>, PgError> {
        loop {
            let event = match self.state {
                State::Together { in_manifest } => self.together(in_manifest).await?,
                State::Apart { copying } => self.apart(copying).await?,
                State::Over => return Ok(None),
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    /// Where the backup ended: the cluster is consistent from here on. `None` before the stream ended.
    pub fn end(&self) -> Option<(Lsn, Timeline)> {
        self.end
    }

    async fn together(&mut self, in_manifest: bool) -> Result<Option<BackupEvent>, PgError> {
        let Some(mut message) = self.client.copy_out(ACTION).next().await? else {
            return self.finish().await;
        };
        let Some(kind) = message.first().copied() else { return Ok(None) };
        message.advance(1);
        match kind {
            b'd' if in_manifest => Ok(Some(BackupEvent::Manifest(message))),
            b'd' => Ok(Some(BackupEvent::Data(message))),
            b'n' => {
                let archive = self.waiting.pop_front().ok_or_else(|| odd("BASE_BACKUP"))?;
                let name = archive
                    .as_ref()
                    .map_or_else(|| "base.tar".to_owned(), |space| format!("{}.tar", space.oid));
                // What goes where follows from our own list; the name must agree with it.
                if message.split(|byte| *byte == 0).next() != Some(name.as_bytes()) {
                    return Err(PgError::Protocol(
                        "an archive of the base backup has an unexpected name".to_owned(),
                    ));
                }
                Ok(Some(BackupEvent::Archive(archive)))
            }
            b'm' => {
                self.state = State::Together { in_manifest: true };
                Ok(None)
            }
            b'p' => Ok(None),
            _ => Err(odd("BASE_BACKUP")),
        }
    }

    async fn apart(&mut self, copying: bool) -> Result<Option<BackupEvent>, PgError> {
        if !copying {
            self.state = State::Apart { copying: true };
            if let Some(archive) = self.waiting.front().cloned() {
                return Ok(Some(BackupEvent::Archive(archive)));
            }
        }
        if let Some(data) = self.client.copy_out(ACTION).next().await? {
            return Ok(Some(match self.waiting.front() {
                Some(_) => BackupEvent::Data(data),
                None => BackupEvent::Manifest(data),
            }));
        }
        if self.waiting.pop_front().is_none() {
            return self.finish().await;
        }
        match self.client.answer(ACTION).await? {
            Answer::CopyOut(_) => {
                self.state = State::Apart { copying: false };
                Ok(None)
            }
            _ => Err(odd("BASE_BACKUP")),
        }
    }

    async fn finish(&mut self) -> Result<Option<BackupEvent>, PgError> {
        let (answer, error) = self.client.answer_and_error().await?;
        let Answer::Done(tables) = answer else { return Err(odd("BASE_BACKUP")) };
        match error {
            None => {}
            // It found pages whose checksum does not fit; they are found here as well, and named.
            Some(error) if error.code == DATA_CORRUPTED && !tables.is_empty() => {}
            Some(error) => return Err(PgError::Server { action: ACTION.to_owned(), error }),
        }
        let parse = || {
            let table = tables.first()?;
            Some((table.text(0, 0)?.parse().ok()?, table.text(0, 1)?.parse().ok()?))
        };
        self.end = Some(parse().ok_or_else(|| odd("BASE_BACKUP"))?);
        self.state = State::Over;
        if !self.waiting.is_empty() {
            return Err(PgError::Protocol("the base backup ended before its last archive".to_owned()));
        }
        Ok(None)
    }
}
