//! One connection: from where the archive ends to where the stream does.

use std::time::Duration;

use backup_core::wal::WalWriter;
use tokio::time::{Instant, MissedTickBehavior};

use super::begin::{self, Begin, Behind};
use super::block::{Block, Different};
use super::heartbeat;
use super::uploads::Uploads;
use super::{ReceiveError, Receiver, told};
use crate::lsn::{Lsn, SegmentSize};
use crate::replication::{Begun, Identity, StreamEnd, SystemId, WalMessage, WalStream};
use crate::wire::{Client, PgError};

/// The server hears from us at least this often; it gives up after `wal_sender_timeout`, 60 s by default.
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// A server from which nothing comes for so long, though each such report asks for an answer, is given up.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// 2000-01-01 in seconds since 1970.
const POSTGRES_EPOCH_S: i64 = 946_684_800;
/// When told to stop, at most this long is waited for the store.
const LAST_WAIT: Duration = Duration::from_secs(30);

/// Why a stream of one timeline is over.
enum Over {
    /// The server has no more of it.
    Server,
    /// We are told to stop, or have all that was asked for.
    Us,
}

/// Why a stream of one timeline came to a bad end.
struct Ended {
    error: ReceiveError,
    /// More is durable than where it began.
    is_further: bool,
}

impl<E: Into<ReceiveError>> From<E> for Ended {
    fn from(error: E) -> Self {
        Self { error: error.into(), is_further: false }
    }
}

impl Receiver {
    /// Connects and streams until the server goes away, or we are to stop.
    pub(super) async fn session(&mut self) -> Result<(), ReceiveError> {
        let mut stop = self.stop.clone();
        let opened = tokio::select! {
            biased;
            () = told(&mut stop) => return Ok(()),
            opened = self.open() => opened,
        };
        let (mut client, archive, size, mut begin) = opened?;
        let _heart = self
            .options
            .heartbeat
            .map(|every| heartbeat::start(self.connect.clone(), every, self.repository.clone()));
        loop {
            let end = match self.timeline(&mut client, &archive, size, &begin).await {
                Ok(end) => end,
                Err(Ended { error: ReceiveError::Server(error), is_further }) if is_gone(&error) => {
                    begin = match begin.behind.take() {
                        // What belongs where this began came.
                        _ if is_further => {
                            let identity = client.identify().await?;
                            self.find(&mut client, &archive, &identity, size).await?
                        }
                        Some(behind) => self.across_hole(&begin, *behind),
                        None => self.across_gap(&mut client, &archive, size, &begin).await?,
                    };
                    continue;
                }
                Err(ended) => return Err(ended.error),
            };
            let Some(StreamEnd::Switch { next, at }) = end else { return Ok(()) };
            let history = client.history(next).await?;
            begin::keep_histories(&mut client, &archive, &history).await?;
            self.repository
                .monitor()
                .note(&format!("timeline {next} goes on where {} ended, at {at}", begin.timeline));
            begin = Begin { timeline: next, durable: at, ..begin::fresh(&history, at, size) };
        }
    }

    /// Connects, and finds out where to begin.
    async fn open(&mut self) -> Result<(Client, WalWriter, SegmentSize, Begin), ReceiveError> {
        let mut client = Client::connect(&self.connect).await?;
        let identity = client.identify().await?;
        let size = client.segment_size().await?;
        let archive = self.archive_of(identity.system_id, size).await?;
        self.progress.send_modify(|p| {
            p.connections += 1;
            p.system = Some(identity.system_id);
            p.server_end = identity.position;
        });
        let begin = self.find(&mut client, &archive, &identity, size).await?;
        Ok((client, archive, size, begin))
    }

    async fn find(
        &self,
        client: &mut Client,
        archive: &WalWriter,
        identity: &Identity,
        size: SegmentSize,
    ) -> Result<Begin, ReceiveError> {
        let slot = begin::slot(client, &self.options).await?;
        begin::find(client, archive, identity, size, slot.as_ref()).await
    }

    async fn archive_of(&mut self, system: SystemId, size: SegmentSize) -> Result<WalWriter, ReceiveError> {
        if let Some(archive) = &self.archive {
            return match SystemId::new(archive.system()) {
                expected if expected == system => Ok(archive.clone()),
                expected => Err(ReceiveError::OtherCluster { expected, found: system }),
            };
        }
        let options = &self.options;
        let archive =
            self.repository.wal_writer(&options.dataset, system.get(), size.get(), options.rebind).await?;
        self.archive = Some(archive.clone());
        Ok(archive)
    }

    /// The server has removed what never reached the archive, and what follows did: goes on behind that.
    fn across_hole(&mut self, begin: &Begin, behind: Behind) -> Begin {
        if behind.is_gap && self.gaps.insert(begin.durable) {
            self.progress.send_modify(|p| p.gaps += 1);
            self.repository.monitor().note(&format!(
                "the server has removed WAL from {} on that never reached the archive, which has a gap there; recovery needs a base backup taken after it",
                begin.durable
            ));
        }
        behind.begin
    }

    /// The server has removed what comes next: goes on where the slot begins, or without one where the server is now, and
    /// says so.
    async fn across_gap(
        &mut self,
        client: &mut Client,
        archive: &WalWriter,
        size: SegmentSize,
        begin: &Begin,
    ) -> Result<Begin, ReceiveError> {
        let identity = client.identify().await?;
        let history = client.history(identity.timeline).await?;
        let slot = match &self.options.slot {
            Some(name) => client.slot(name).await?.and_then(|slot| slot.restart),
            None => None,
        };
        let next = begin::fresh(&history, slot.unwrap_or(identity.position), size);
        if next.at <= begin.at {
            return Err(ReceiveError::Diverged {
                timeline: begin.timeline,
                archived: begin.durable,
                reason: "has removed the WAL that follows".to_owned(),
            });
        }
        // A standby may be on another timeline by now than when the connection began.
        begin::keep_histories(client, archive, &history).await?;
        self.gaps.insert(begin.durable);
        self.progress.send_modify(|p| p.gaps += 1);
        self.repository.monitor().note(&format!(
            "the server has removed WAL from {} on; the archive has a gap up to {}, and recovery needs a base backup taken after it",
            begin.durable, next.at
        ));
        Ok(next)
    }

    /// Streams one timeline. `None` when we are to stop or the server closed the stream.
    async fn timeline(
        &mut self,
        client: &mut Client,
        archive: &WalWriter,
        size: SegmentSize,
        begin: &Begin,
    ) -> Result<Option<StreamEnd>, Ended> {
        let stream = match client.start_wal(self.options.slot.as_ref(), begin.at, begin.timeline).await? {
            Begun::Stream(stream) => stream,
            Begun::Ended(end) => return Ok(Some(end)),
        };
        self.progress.send_modify(|p| {
            p.streaming = true;
            p.timeline = Some(begin.timeline);
            p.received = begin.at;
            p.durable = begin.durable;
        });
        let mut flow = Flow {
            receiver: self,
            stream,
            archive,
            uploads: Uploads::new(self.repository.clone(), archive.clone()),
            block: Block::new(size, begin.timeline, begin.at, &begin.names),
            tail_due: None,
            heard: Instant::now(),
        };
        let over = match flow.run().await {
            // The server may be gone for good, and have been the last to have it.
            Err(ReceiveError::Server(error)) => {
                flow.archive_rest().await?;
                let is_further = self.progress.borrow().durable > begin.durable;
                return Err(Ended { error: error.into(), is_further });
            }
            over => over?,
        };
        flow.last_words(&over).await?;
        match over {
            Over::Server if flow.uploads.is_empty() => {
                let received = flow.block.end();
                let end = flow.stream.end(true).await?;
                all_of_it(&end, received)?;
                Ok(Some(end))
            }
            // We are told to stop, and gave up what the store did not take: nobody may hear on the next timeline that all of
            // this one is durable.
            Over::Server => Ok(None),
            Over::Us => {
                // The server may be dead or far ahead; the archive is complete either way.
                let _ = tokio::time::timeout(Duration::from_secs(5), flow.stream.end(false)).await;
                Ok(None)
            }
        }
    }
}

/// On the next timeline all of this one counts as durable: a server must not end it behind what it sent.
fn all_of_it(end: &StreamEnd, received: Lsn) -> Result<(), PgError> {
    match end {
        StreamEnd::Switch { at, .. } if *at > received => {
            Err(PgError::Protocol(format!("a timeline ends at {at}, and it sent WAL only up to {received}")))
        }
        _ => Ok(()),
    }
}

/// Whether the server no longer has the WAL that was asked for.
fn is_gone(error: &PgError) -> bool {
    matches!(error, PgError::Server { error, .. } if error.code == "58P01")
}

struct Flow<'a> {
    receiver: &'a Receiver,
    stream: WalStream<'a>,
    archive: &'a WalWriter,
    uploads: Uploads,
    block: Block,
    /// When what is unsent must go out as a tail.
    tail_due: Option<Instant>,
    /// When something came from the server, or could not have been read.
    heard: Instant,
}

impl Flow<'_> {
    async fn run(&mut self) -> Result<Over, ReceiveError> {
        let mut report = tokio::time::interval(REPORT_EVERY);
        report.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stop = self.receiver.stop.clone();
        loop {
            if self.receiver.is_done() {
                return Ok(Over::Us);
            }
            let due = self.tail_due;
            tokio::select! {
                biased;
                () = told(&mut stop) => return Ok(Over::Us),
                durable = self.uploads.next(), if !self.uploads.is_empty() => self.stored(durable?).await?,
                _ = report.tick() => self.pulse().await?,
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.send_tail(),
                message = self.stream.next(), if self.uploads.has_room() => {
                    self.heard = Instant::now();
                    match message? {
                        None => return Ok(Over::Server),
                        Some(WalMessage::Data { start, server_end, data }) => {
                            self.data(start, server_end, &data)?;
                        }
                        Some(WalMessage::KeepAlive { server_end, reply }) => {
                            self.receiver.progress.send_modify(|p| p.server_end = server_end);
                            if reply {
                                self.report(false).await?;
                            }
                        }
                    }
                }
            }
        }
    }

    /// The regular report. Of a server that hangs, the system goes on to acknowledge what is sent: it has to answer itself.
    async fn pulse(&mut self) -> Result<(), ReceiveError> {
        if !self.uploads.has_room() {
            self.heard = Instant::now();
        }
        if self.heard.elapsed() >= SILENCE_MAX {
            let silent = std::io::Error::new(std::io::ErrorKind::TimedOut, "the server is silent");
            return Err(PgError::Broken(silent).into());
        }
        self.report(true).await
    }

    fn data(&mut self, start: Lsn, server_end: Lsn, data: &[u8]) -> Result<(), ReceiveError> {
        if start != self.block.end() {
            let fact = format!("it sends WAL from {start} on where {} comes next", self.block.end());
            return Err(PgError::Protocol(fact).into());
        }
        let timeline = self.receiver.progress.borrow().timeline.unwrap_or(crate::lsn::Timeline::FIRST);
        let mut left = data;
        while !left.is_empty() {
            let taken = self.block.take(left, |bytes| self.archive.hash(bytes));
            let taken = taken.map_err(|Different(at)| ReceiveError::Different { timeline, at })?;
            left = &left[taken..];
            if self.block.is_full() {
                self.send_block();
            }
        }
        self.receiver.progress.send_modify(|p| {
            p.received = self.block.end();
            p.server_end = p.server_end.max(server_end);
        });
        if self.block.unsent() == 0 {
            self.tail_due = None;
        } else if self.receiver.options.synchronous {
            if self.uploads.is_empty() {
                self.send_tail();
            }
        } else if self.tail_due.is_none() {
            self.tail_due = Some(Instant::now() + self.receiver.options.tail_every);
        }
        Ok(())
    }

    fn send_block(&mut self) {
        let piece = self.block.whole();
        self.block = self.block.next(self.archive.hash(&piece.bytes));
        self.uploads.send(piece);
        self.tail_due = None;
    }

    fn send_tail(&mut self) {
        self.tail_due = None;
        if let Some(piece) = self.block.tail(|bytes| self.archive.hash(bytes)) {
            self.uploads.send(piece);
        }
    }

    /// The log is durable up to here.
    async fn stored(&mut self, durable: Lsn) -> Result<(), ReceiveError> {
        self.receiver.progress.send_modify(|p| {
            p.durable = p.durable.max(durable);
            p.pieces += 1;
        });
        if self.receiver.options.synchronous && self.uploads.is_empty() {
            self.send_tail();
        }
        self.report(false).await
    }

    async fn report(&mut self, ask: bool) -> Result<(), ReceiveError> {
        let progress = *self.receiver.progress.borrow();
        let micros = self.receiver.clock.now() / 1000 - POSTGRES_EPOCH_S * 1_000_000;
        // What was archived before this connection need not have been received again in it yet.
        let written = self.block.end().max(progress.durable);
        Ok(self.stream.report(written, progress.durable, micros, ask).await?)
    }

    /// Archives what there is, and tells the server, before the stream ends.
    async fn last_words(&mut self, over: &Over) -> Result<(), ReceiveError> {
        match over {
            Over::Server => self.archive_rest().await,
            Over::Us => {
                tokio::time::timeout(LAST_WAIT, self.archive_rest()).await.unwrap_or(Ok(()))?;
                self.report(false).await
            }
        }
    }

    /// Archives what there is. A store that is away is waited for, but not for long when we are told to stop.
    async fn archive_rest(&mut self) -> Result<(), ReceiveError> {
        self.send_tail();
        let mut stop = self.receiver.stop.clone();
        let waited_enough = async {
            told(&mut stop).await;
            tokio::time::sleep(LAST_WAIT).await;
        };
        let rest = async {
            while !self.uploads.is_empty() {
                let durable = self.uploads.next().await?;
                self.receiver.progress.send_modify(|p| {
                    p.durable = p.durable.max(durable);
                    p.pieces += 1;
                });
            }
            Ok(())
        };
        tokio::select! {
            biased;
            archived = rest => archived,
            () = waited_enough => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
