//! Messages on the wire: cutting them out of the stream, with a limit for each kind.
//!
//! A message is a type byte, a big-endian length that counts itself, and a body. Limits are far above what servers send
//! and low enough that a hostile one cannot make us allocate.

use bytes::{Buf, Bytes, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{self, Message as Parsed};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::error::{PgError, ServerError};

/// Bytes asked for from the socket at once: several of a walsender's largest messages.
const READ_BYTES: usize = 256 << 10;
/// A server sends WAL in messages of at most 128 KiB and base backups in such of 32 KiB.
const COPY_DATA_MAX: usize = 1 << 20;
/// A row of a table is at most 1 GiB long; it is handed on in parts as it comes.
const LONG_ROW_MAX: usize = (1 << 30) + 64;
/// The longest honest row is the content of a timeline history file.
const ROW_MAX: usize = 16 << 20;
const ERROR_MAX: usize = 256 << 10;
const OTHER_MAX: usize = 64 << 10;
/// Before we know who it is; libpq has about the same limit.
const STRANGER_MAX: usize = 30_000;

/// What a connection runs on.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A message of the server.
pub(super) enum Message {
    CopyData(Bytes),
    CopyDone,
    CopyBoth,
    CopyOut,
    CopyIn,
    Error(Box<ServerError>),
    Notice,
    /// Any other, as the library reads it.
    Other(Parsed),
}

impl Message {
    /// What it is, for errors.
    pub fn name(&self) -> &'static str {
        match self {
            Self::CopyData(_) => "data of a copy",
            Self::CopyDone => "the end of a copy",
            Self::CopyBoth | Self::CopyOut | Self::CopyIn => "the begin of a copy",
            Self::Error(_) => "an error",
            Self::Notice => "a notice",
            Self::Other(Parsed::ReadyForQuery(_)) => "a prompt",
            Self::Other(Parsed::CommandComplete(_)) => "the end of a command",
            Self::Other(Parsed::RowDescription(_) | Parsed::DataRow(_)) => "a table",
            Self::Other(_) => "a message",
        }
    }
}

/// A connection cut into messages.
pub(super) struct Wire {
    io: Box<dyn Io>,
    input: BytesMut,
    /// What is to be sent with the next flush.
    pub output: BytesMut,
    /// Whether the server has shown that it knows us.
    pub trusted: bool,
    /// Whether a message of COPY may be longer than what a walsender sends. Such a one comes in several parts.
    pub long_rows: bool,
    /// Bytes of such a message that are still to come.
    part_left: usize,
}

impl Wire {
    pub fn new(io: Box<dyn Io>) -> Self {
        Self {
            io,
            input: BytesMut::new(),
            output: BytesMut::new(),
            trusted: false,
            long_rows: false,
            part_left: 0,
        }
    }

    /// Sends what is in `output`.
    pub async fn flush(&mut self) -> Result<(), PgError> {
        let sent = self.io.write_all_buf(&mut self.output).await;
        sent.map_err(PgError::Broken)?;
        self.io.flush().await.map_err(PgError::Broken)
    }

    /// The next message. Nothing is lost when the future is dropped before it is ready.
    pub async fn next(&mut self) -> Result<Message, PgError> {
        loop {
            if let Some(part) = self.part() {
                return Ok(Message::CopyData(part));
            }
            if self.part_left == 0
                && let Some(message) = cut(&mut self.input, self.trusted)?
            {
                return Ok(message);
            }
            if self.input.capacity() - self.input.len() < READ_BYTES / 4 {
                self.input.reserve(READ_BYTES);
            }
            if self.io.read_buf(&mut self.input).await.map_err(PgError::Broken)? == 0 {
                let reason = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the server closed it");
                return Err(PgError::Broken(reason));
            }
        }
    }

    /// What is there of a message of COPY that is too long to be kept as a whole.
    fn part(&mut self) -> Option<Bytes> {
        if self.part_left == 0 && self.long_rows && self.trusted {
            let header = self.input.get(..5).filter(|header| header[0] == b'd')?;
            let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
            if !(COPY_DATA_MAX + 1..=LONG_ROW_MAX).contains(&length) {
                return None;
            }
            self.input.advance(5);
            self.part_left = length - 4;
        }
        let bytes = self.part_left.min(self.input.len());
        self.part_left -= bytes;
        (bytes > 0).then(|| self.input.split_to(bytes).freeze())
    }

    /// Tells the server goodbye; whether it hears does not matter.
    pub async fn shutdown(&mut self) {
        let _ = self.flush().await;
        let _ = self.io.shutdown().await;
    }
}

fn limit(tag: u8, trusted: bool) -> usize {
    match (tag, trusted) {
        (_, false) => STRANGER_MAX,
        (b'd', true) => COPY_DATA_MAX,
        (b'D', true) => ROW_MAX,
        (b'E' | b'N', true) => ERROR_MAX,
        (_, true) => OTHER_MAX,
    }
}

/// Cuts one message off the front; `None` until it is there as a whole.
pub(super) fn cut(input: &mut BytesMut, trusted: bool) -> Result<Option<Message>, PgError> {
    let Some(header) = input.get(..5) else { return Ok(None) };
    let tag = header[0];
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if length < 4 || length > limit(tag, trusted) {
        let name = char::from(tag).escape_default();
        return Err(PgError::Protocol(format!("a message of type `{name}` says it is {length} bytes long")));
    }
    if input.len() < 1 + length {
        return Ok(None);
    }
    let mut whole = input.split_to(1 + length);
    decode(tag, &mut whole).map(Some)
}

fn decode(tag: u8, whole: &mut BytesMut) -> Result<Message, PgError> {
    Ok(match tag {
        b'd' => {
            whole.advance(5);
            Message::CopyData(whole.split().freeze())
        }
        b'c' => Message::CopyDone,
        // The library does not know this one.
        b'W' => Message::CopyBoth,
        b'H' => Message::CopyOut,
        b'G' => Message::CopyIn,
        b'E' => Message::Error(Box::new(fields(&whole[5..])?)),
        b'N' => Message::Notice,
        _ => {
            let kind = char::from(tag).escape_default();
            match backend::Message::parse(whole) {
                Ok(Some(message)) => Message::Other(message),
                _ => return Err(PgError::Protocol(format!("a message of type `{kind}` cannot be read"))),
            }
        }
    })
}

/// Fields of an error or notice: a type byte and a text ended by zero, each; a zero byte after the last.
fn fields(mut body: &[u8]) -> Result<ServerError, PgError> {
    let mut error = ServerError::default();
    let malformed = || PgError::Protocol("an error message cannot be read".to_owned());
    loop {
        let (&kind, rest) = body.split_first().ok_or_else(malformed)?;
        if kind == 0 {
            return Ok(error);
        }
        let end = rest.iter().position(|byte| *byte == 0).ok_or_else(malformed)?;
        let text = String::from_utf8_lossy(&rest[..end]).into_owned();
        body = &rest[end + 1..];
        match kind {
            b'C' => error.code = text,
            b'M' => error.message = text,
            b'D' => error.detail = Some(text),
            b'H' => error.hint = Some(text),
            _ => {}
        }
    }
}

/// Reads everything that can be read, and counts the columns of every row.
pub(super) fn fuzz(bytes: &[u8]) {
    for trusted in [false, true] {
        let mut input = BytesMut::from(bytes);
        while let Ok(Some(message)) = cut(&mut input, trusted) {
            if let Message::Other(Parsed::DataRow(row)) = message {
                let _ = row.ranges().count();
            }
        }
    }
}
