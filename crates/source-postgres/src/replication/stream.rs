//! The WAL stream: `START_REPLICATION PHYSICAL`.

use bytes::{Buf, Bytes};

use super::{SlotName, odd};
use crate::lsn::{Lsn, Timeline};
use crate::wire::{Client, CopyBoth, PgError, Rows};

/// What the server sends while it streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalMessage {
    /// WAL from `start` on.
    Data {
        /// Where it begins.
        start: Lsn,
        /// How far the server's WAL reaches.
        server_end: Lsn,
        /// The bytes; at most 128 KiB.
        data: Bytes,
    },
    /// A sign of life.
    KeepAlive {
        /// How far the server's WAL reaches.
        server_end: Lsn,
        /// Whether it wants to hear from us at once.
        reply: bool,
    },
}

impl WalMessage {
    pub(crate) fn parse(mut message: Bytes) -> Result<Self, PgError> {
        let malformed = || PgError::Protocol("a message of the WAL stream cannot be read".to_owned());
        let kind = message.first().copied();
        match (kind, message.len()) {
            (Some(b'w'), 25..) => {
                message.advance(1);
                let (start, server_end) = (Lsn::new(message.get_u64()), Lsn::new(message.get_u64()));
                message.advance(8);
                Ok(Self::Data { start, server_end, data: message })
            }
            (Some(b'k'), 18) => {
                message.advance(1);
                let server_end = Lsn::new(message.get_u64());
                message.advance(8);
                Ok(Self::KeepAlive { server_end, reply: message.get_u8() == 1 })
            }
            _ => Err(malformed()),
        }
    }
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamEnd {
    /// The timeline is no longer the server's newest: it was followed to `at`, and `next` branched off there.
    Switch {
        /// The timeline that follows.
        next: Timeline,
        /// Where it branched off.
        at: Lsn,
    },
    /// The server ended the stream without saying that there is more: it is shutting down.
    Closed,
}

/// WAL as it is written. Ended by [`WalStream::end`]; dropped, it leaves the connection unusable.
pub struct WalStream<'a> {
    copy: CopyBoth<'a>,
}

/// A stream, or the news that there is nothing to stream.
pub enum Begun<'a> {
    /// It streams.
    Stream(WalStream<'a>),
    /// `from` is exactly where the timeline ends.
    Ended(StreamEnd),
}

impl Client {
    /// Streams the WAL of `timeline` from `from` on, which should be the start of a segment.
    pub async fn start_wal(
        &mut self,
        slot: Option<&SlotName>,
        from: Lsn,
        timeline: Timeline,
    ) -> Result<Begun<'_>, PgError> {
        let slot = slot.map_or_else(String::new, |slot| format!("SLOT {slot} "));
        let command = format!("START_REPLICATION {slot}PHYSICAL {from} TIMELINE {timeline}");
        match self.run(&command, &format!("stream the WAL from {from} on timeline {timeline}")).await? {
            crate::wire::Answer::CopyBoth => Ok(Begun::Stream(WalStream { copy: self.copy_both() })),
            crate::wire::Answer::Done(tables) => end(&tables).map(Begun::Ended),
            _ => Err(odd("START_REPLICATION")),
        }
    }
}

fn end(tables: &[Rows]) -> Result<StreamEnd, PgError> {
    let Some(rows) = tables.iter().find(|table| !table.rows.is_empty()) else { return Ok(StreamEnd::Closed) };
    let parse = || {
        let next = rows.first("next_tli")?.parse().ok()?;
        Some(StreamEnd::Switch { next, at: rows.first("next_tli_startpos")?.parse().ok()? })
    };
    parse().ok_or_else(|| odd("the end of the stream"))
}

impl WalStream<'_> {
    /// The next message, or `None` when the server has no more of this timeline. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<WalMessage>, PgError> {
        self.copy.next().await?.map(WalMessage::parse).transpose()
    }

    /// Says how far the WAL is written and how far it is durable. The server keeps what is not durable, and lets
    /// transactions that wait for us as a synchronous standby commit. `micros` is the time since 2000-01-01; `ask` wants a
    /// [`WalMessage::KeepAlive`] in return.
    pub async fn report(
        &mut self,
        written: Lsn,
        durable: Lsn,
        micros: i64,
        ask: bool,
    ) -> Result<(), PgError> {
        let mut message = [0; 34];
        message[0] = b'r';
        message[1..9].copy_from_slice(&written.get().to_be_bytes());
        message[9..17].copy_from_slice(&durable.get().to_be_bytes());
        message[25..33].copy_from_slice(&micros.to_be_bytes());
        message[33] = ask.into();
        self.copy.send(&message).await
    }

    /// Ends the stream; `server_is_done` says whether [`WalStream::next`] gave `None`. The connection is free afterwards.
    pub async fn end(self, server_is_done: bool) -> Result<StreamEnd, PgError> {
        end(&self.copy.finish(server_is_done).await?)
    }
}
