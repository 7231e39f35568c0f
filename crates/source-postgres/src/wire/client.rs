//! A session: simple queries, and the three kinds of COPY.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{DataRowBody, Message as Parsed, ParameterStatusBody};
use postgres_protocol::message::frontend;

use super::error::{PgError, ServerError};
use super::frame::{Message, Wire};
use crate::options::TargetSession;

/// What one command may answer in rows, in bytes.
const ANSWER_MAX: usize = 64 << 20;
/// Sent to the server in one piece of COPY.
const COPY_PIECE: usize = 32 << 10;

/// A session with a server, in `replication=database` mode. Dropping it closes the connection.
pub struct Client {
    pub(super) wire: Wire,
    host: String,
    parameters: BTreeMap<String, String>,
    /// The error that ended a copy, until the server is ready again.
    failed: Option<Box<ServerError>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("host", &self.host).finish_non_exhaustive()
    }
}

/// A table that a command answered with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Values as the server prints them; `None` is NULL.
    pub rows: Vec<Vec<Option<Bytes>>>,
}

impl Rows {
    /// The value of a column in the first row, as text. `None` for no row, no such column, NULL, or what is not UTF-8.
    pub fn first(&self, column: &str) -> Option<&str> {
        let at = self.columns.iter().position(|name| name == column)?;
        self.text(0, at)
    }

    /// The value at a place, as text.
    pub fn text(&self, row: usize, column: usize) -> Option<&str> {
        std::str::from_utf8(self.rows.get(row)?.get(column)?.as_ref()?).ok()
    }
}

/// Rows until a command ended or a COPY began.
pub(crate) enum Answer {
    /// All of the command's tables.
    Done(Vec<Rows>),
    /// The server sends data.
    CopyOut(Vec<Rows>),
    /// The server sends data and listens.
    CopyBoth,
    /// The server waits for data.
    CopyIn,
}

fn protocol(fact: &str) -> PgError {
    PgError::Protocol(fact.to_owned())
}

impl Client {
    pub(super) fn new(wire: Wire, host: String) -> Self {
        Self { wire, host, parameters: BTreeMap::new(), failed: None }
    }

    pub(super) fn remember(&mut self, body: &ParameterStatusBody, most: usize) -> Result<(), PgError> {
        let (Ok(name), Ok(value)) = (body.name(), body.value()) else {
            return Err(protocol("a parameter is not UTF-8"));
        };
        if self.parameters.len() >= most {
            return Err(protocol("it reports parameters without end"));
        }
        self.parameters.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    /// The server, as people name it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// A parameter that the server reported at the start: `server_version`, `in_hot_standby`, …
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// The server's major version; 0 if it did not say.
    pub fn major(&self) -> u32 {
        let version = self.parameter("server_version").unwrap_or_default();
        let digits = version.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        digits.parse().unwrap_or(0)
    }

    /// Whether the server is in recovery.
    pub fn is_standby(&self) -> bool {
        self.parameter("in_hot_standby") == Some("on")
    }

    pub(super) fn is_of_kind(&self, target: TargetSession) -> Result<(), PgError> {
        let standby = self.is_standby();
        let read_only = standby || self.parameter("default_transaction_read_only") == Some("on");
        let (fits, is, wanted) = match target {
            TargetSession::Any | TargetSession::PreferStandby => return Ok(()),
            TargetSession::ReadWrite => (!read_only, "read-only", "read-write"),
            TargetSession::ReadOnly => (read_only, "read-write", "read-only"),
            TargetSession::Primary => (!standby, "a standby", "a primary"),
            TargetSession::Standby => (standby, "a primary", "a standby"),
        };
        if fits { Ok(()) } else { Err(PgError::WrongKind { host: self.host.clone(), is, wanted }) }
    }

    /// Runs one command and gives its last table. `action` says what it is for, in errors.
    pub async fn query(&mut self, command: &str, action: &str) -> Result<Rows, PgError> {
        match self.run(command, action).await? {
            Answer::Done(mut tables) => Ok(tables.pop().unwrap_or_default()),
            _ => Err(protocol("it began to copy where it was not asked to")),
        }
    }

    /// Runs one command up to its end, or up to where a COPY begins.
    pub(crate) async fn run(&mut self, command: &str, action: &str) -> Result<Answer, PgError> {
        self.send(command).await?;
        self.answer(action).await
    }

    /// Sends one command; others may be under way. [`Client::answer`] has the answers, in their order.
    pub(crate) async fn send(&mut self, command: &str) -> Result<(), PgError> {
        frontend::query(command, &mut self.wire.output)
            .map_err(|_| protocol("a command holds a zero byte"))?;
        self.wire.flush().await
    }

    /// Collects tables until the server is ready for the next command, or a COPY begins.
    pub(crate) async fn answer(&mut self, action: &str) -> Result<Answer, PgError> {
        match self.answer_and_error().await? {
            (_, Some(error)) => Err(PgError::Server { action: action.to_owned(), error }),
            (answer, None) => Ok(answer),
        }
    }

    /// The same, with the error that ended the command: some commands complain after they have answered.
    pub(crate) async fn answer_and_error(&mut self) -> Result<(Answer, Option<Box<ServerError>>), PgError> {
        let mut tables: Vec<Rows> = Vec::new();
        let mut bytes = 0;
        let mut failed: Option<Box<ServerError>> = None;
        loop {
            match self.wire.next().await? {
                Message::Other(Parsed::RowDescription(body)) => {
                    // A table without columns costs something as well.
                    bytes += 64;
                    let columns = body.fields().map(|field| Ok(field.name().to_owned())).collect();
                    let columns: Vec<String> =
                        columns.map_err(|_| protocol("the head of a table cannot be read"))?;
                    bytes += columns.iter().map(|name| name.len() + 64).sum::<usize>();
                    within(bytes)?;
                    tables.push(Rows { columns, rows: Vec::new() });
                }
                Message::Other(Parsed::DataRow(body)) => {
                    bytes += body.buffer().len() + 64;
                    within(bytes)?;
                    let table = tables.last_mut().ok_or_else(|| protocol("a row without a table"))?;
                    table.rows.push(row(&body)?);
                }
                Message::Error(error) => failed = Some(error),
                Message::Other(Parsed::ReadyForQuery(_)) => return Ok((Answer::Done(tables), failed)),
                Message::CopyOut => return Ok((Answer::CopyOut(tables), None)),
                Message::CopyBoth => return Ok((Answer::CopyBoth, None)),
                Message::CopyIn => return Ok((Answer::CopyIn, None)),
                other => self.aside(other)?,
            }
        }
    }

    /// What a server may say at any time.
    fn aside(&mut self, message: Message) -> Result<(), PgError> {
        match message {
            Message::Notice => Ok(()),
            Message::Other(Parsed::ParameterStatus(body)) => self.remember(&body, 1000),
            Message::Other(
                Parsed::CommandComplete(_) | Parsed::EmptyQueryResponse | Parsed::NotificationResponse(_),
            ) => Ok(()),
            other => Err(PgError::Protocol(format!("{} where none belongs", other.name()))),
        }
    }

    /// Sends the whole of `data` after [`Answer::CopyIn`] and waits for the command's end.
    pub(crate) async fn copy_in(&mut self, data: &[u8], action: &str) -> Result<(), PgError> {
        let mut copy = self.copy_into(action);
        for piece in data.chunks(COPY_PIECE) {
            copy.send(piece).await?;
        }
        copy.finish().await
    }

    /// What the server copies out; to be called after [`Answer::CopyOut`].
    pub(crate) fn copy_out<'a>(&'a mut self, action: &'a str) -> CopyOut<'a> {
        CopyOut { client: self, action }
    }

    /// What the server is to copy in; to be called after [`Answer::CopyIn`].
    pub(crate) fn copy_into<'a>(&'a mut self, action: &'a str) -> CopyIn<'a> {
        CopyIn { client: self, action }
    }

    /// Both directions; to be called after [`Answer::CopyBoth`].
    pub(crate) fn copy_both(&mut self) -> CopyBoth<'_> {
        CopyBoth { client: self }
    }

    /// Ends the session in an orderly way.
    pub async fn close(mut self) {
        frontend::terminate(&mut self.wire.output);
        self.wire.shutdown().await;
    }

    async fn copy_message(&mut self, action: &str) -> Result<Option<Bytes>, PgError> {
        loop {
            let message = match (self.wire.next().await, self.failed.take()) {
                (Err(_), Some(error)) => return Err(PgError::Server { action: action.to_owned(), error }),
                (message, failed) => {
                    self.failed = failed;
                    message?
                }
            };
            match message {
                // An empty one is no end: PostgreSQL 13 and older send such.
                Message::CopyData(data) => return Ok(Some(data)),
                Message::CopyDone => return Ok(None),
                // The error counts when the server is ready for the next command. Until then it is kept here: whoever
                // waits for us may stop waiting in between.
                Message::Error(error) => self.failed = Some(error),
                Message::Other(Parsed::ReadyForQuery(_)) => {
                    let error =
                        self.failed.take().ok_or_else(|| protocol("it ended a copy without saying so"))?;
                    return Err(PgError::Server { action: action.to_owned(), error });
                }
                other => self.aside(other)?,
            }
        }
    }
}

fn within(bytes: usize) -> Result<(), PgError> {
    if bytes > ANSWER_MAX { Err(protocol("its answer is longer than 64 MiB")) } else { Ok(()) }
}

fn row(body: &DataRowBody) -> Result<Vec<Option<Bytes>>, PgError> {
    let bytes = body.buffer_bytes();
    let values = body.ranges().map(|range| Ok(range.map(|range| bytes.slice(range)))).collect();
    values.map_err(|_| protocol("a row cannot be read"))
}

/// Data that the server sends until it is done.
pub struct CopyOut<'a> {
    client: &'a mut Client,
    action: &'a str,
}

impl CopyOut<'_> {
    /// The next message, or `None` at the end. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<Bytes>, PgError> {
        self.client.copy_message(self.action).await
    }
}

/// Data that the server takes. Dropping it leaves the session of no further use.
pub(crate) struct CopyIn<'a> {
    client: &'a mut Client,
    action: &'a str,
}

impl CopyIn<'_> {
    /// Sends a piece, of any length below 1 GiB. What the server does not like it says at the end.
    pub async fn send(&mut self, piece: &[u8]) -> Result<(), PgError> {
        let message = frontend::CopyData::new(piece).map_err(|_| protocol("a piece is too long"))?;
        message.write(&mut self.client.wire.output);
        self.client.wire.flush().await
    }

    /// Says that this was all, and waits for the command's end.
    pub async fn finish(self) -> Result<(), PgError> {
        frontend::copy_done(&mut self.client.wire.output);
        self.client.wire.flush().await?;
        match self.client.answer(self.action).await? {
            Answer::Done(_) => Ok(()),
            _ => Err(protocol("it began to copy where it was not asked to")),
        }
    }

    /// Says that it must not count, and waits for the command's end.
    pub async fn give_up(self, reason: &str) -> Result<(), PgError> {
        frontend::copy_fail(reason, &mut self.client.wire.output)
            .map_err(|_| protocol("a reason holds a zero byte"))?;
        self.client.wire.flush().await?;
        match self.client.answer_and_error().await? {
            (Answer::Done(_), _) => Ok(()),
            _ => Err(protocol("it began to copy where it was not asked to")),
        }
    }
}

/// Data in both directions.
pub struct CopyBoth<'a> {
    client: &'a mut Client,
}

impl CopyBoth<'_> {
    /// The server's next message, or `None` when it is done. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<Bytes>, PgError> {
        self.client.copy_message("stream the WAL").await
    }

    /// Sends one message.
    pub async fn send(&mut self, data: &[u8]) -> Result<(), PgError> {
        let message = frontend::CopyData::new(data).map_err(|_| protocol("a message is too long"))?;
        message.write(&mut self.client.wire.output);
        self.client.wire.flush().await
    }

    /// Says that we are done, and waits for what the server has to say at the end. WAL that still arrives is dropped.
    pub(crate) async fn finish(self, server_is_done: bool) -> Result<Vec<Rows>, PgError> {
        frontend::copy_done(&mut self.client.wire.output);
        self.client.wire.flush().await?;
        if !server_is_done {
            while self.client.copy_message("end the stream of WAL").await?.is_some() {}
        }
        match self.client.answer("end the stream of WAL").await? {
            Answer::Done(tables) => Ok(tables),
            _ => Err(protocol("it began to copy where it was not asked to")),
        }
    }
}
