//! Contents that flow while they are read: rows of a table, the output of a program, bytes at hand.

use std::io::{self, Read};
use std::process::{ChildStdout, Command};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use backup_core::source::{Content, Piece};
use bytes::{Buf, Bytes};
use tokio::runtime::Handle;

use super::DumpError;
use super::programs::Running;
use super::session;
use super::tally::{Counted, Tally};
use crate::options::ConnectOptions;
use crate::wire::{Answer, Client};

/// What the contents of one database share: sessions that see one snapshot, what was counted, and what went wrong.
#[derive(Debug)]
pub(super) struct Shared {
    handle: Handle,
    connect: ConnectOptions,
    encoding: String,
    snapshot: String,
    idle: Mutex<Vec<Client>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Contents that were neither read to their end nor dropped.
    open: usize,
    failure: Option<DumpError>,
    /// What each table held, by its place in the list.
    counted: Vec<(usize, Counted)>,
    /// What programs warned about.
    warnings: Vec<String>,
}

/// What came of all contents.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub counted: Vec<(usize, Counted)>,
    pub warnings: Vec<String>,
}

impl Shared {
    pub fn new(handle: Handle, connect: ConnectOptions, encoding: String, snapshot: String) -> Arc<Self> {
        let (idle, state) = (Mutex::default(), Mutex::default());
        Arc::new(Self { handle, connect, encoding, snapshot, idle, state, changed: Condvar::new() })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, Vec<Client>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session that nobody else uses and that sees the snapshot.
    async fn session(&self) -> Result<Client, DumpError> {
        let idle = self.sessions().pop();
        if let Some(client) = idle {
            return Ok(client);
        }
        let mut client = session::connect(&self.connect, &self.connect.database).await?;
        session::raw(&mut client, &self.encoding).await?;
        client.query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", "begin").await?;
        let sql = format!("SET TRANSACTION SNAPSHOT {}", super::names::literal(&self.snapshot));
        client.query(&sql, "share the snapshot").await?;
        Ok(client)
    }

    fn fail(&self, error: DumpError) -> io::Error {
        let told = io::Error::other(crate::one_line(&error));
        // The first one counts; others follow from it.
        self.lock().failure.get_or_insert(error);
        told
    }

    fn check(&self) -> io::Result<()> {
        match self.lock().failure {
            Some(_) => Err(io::Error::other("another part of the dump failed")),
            None => Ok(()),
        }
    }

    /// Waits until all contents were read or dropped. The first failure is the result.
    pub fn wait(&self) -> Result<Outcome, DumpError> {
        let mut state = self.lock();
        while state.open > 0 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        match state.failure.take() {
            Some(error) => Err(error),
            None => Ok(Outcome {
                counted: std::mem::take(&mut state.counted),
                warnings: std::mem::take(&mut state.warnings),
            }),
        }
    }
}

/// Counts a content for as long as it is there.
#[derive(Debug)]
struct Open(Arc<Shared>);

impl Open {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.lock().open += 1;
        Self(Arc::clone(shared))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.lock().open -= 1;
        self.0.changed.notify_all();
    }
}

/// Rows of a table, or of a part of one.
#[derive(Debug)]
pub(super) struct RowsContent {
    open: Open,
    /// Place of the table in the list.
    table: usize,
    /// For errors.
    action: String,
    lock: String,
    copy: String,
    client: Option<Client>,
    rest: Bytes,
    tally: Tally,
    over: bool,
}

impl RowsContent {
    pub fn new(shared: &Arc<Shared>, table: usize, name: &str, copy: String) -> Self {
        Self {
            open: Open::new(shared),
            table,
            action: format!("read the table {name}"),
            lock: format!("LOCK TABLE ONLY {name} IN ACCESS SHARE MODE NOWAIT"),
            copy,
            client: None,
            rest: Bytes::new(),
            tally: Tally::default(),
            over: false,
        }
    }

    async fn begin(&mut self) -> Result<Client, DumpError> {
        let mut client = self.open.0.session().await?;
        // Whoever waits for a stronger lock stands before us, and waits for our first session: nobody would go on.
        client.query(&self.lock, &self.action).await?;
        match client.run(&self.copy, &self.action).await? {
            Answer::CopyOut(_) => Ok(client),
            _ => Err(DumpError::Odd("the server does not copy".to_owned())),
        }
    }

    async fn fill(&mut self, buf: &mut [u8]) -> Result<usize, DumpError> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => self.begin().await?,
        };
        let mut filled = 0;
        while filled < buf.len() {
            if self.rest.is_empty() {
                match client.copy_out(&self.action).next().await? {
                    Some(data) => {
                        self.tally.take(&data);
                        self.rest = data;
                        continue;
                    }
                    None => {
                        client.answer(&self.action).await?;
                        self.end(client)?;
                        return Ok(filled);
                    }
                }
            }
            let bytes = self.rest.len().min(buf.len() - filled);
            buf[filled..filled + bytes].copy_from_slice(&self.rest[..bytes]);
            self.rest.advance(bytes);
            filled += bytes;
        }
        self.client = Some(client);
        Ok(filled)
    }

    fn end(&mut self, client: Client) -> Result<(), DumpError> {
        self.over = true;
        let counted = std::mem::take(&mut self.tally).finish();
        let counted = counted.ok_or_else(|| DumpError::Odd("the last row has no end".to_owned()))?;
        self.open.0.lock().counted.push((self.table, counted));
        self.open.0.sessions().push(client);
        Ok(())
    }
}

impl Content for RowsContent {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<Piece> {
        if self.over {
            return Ok(Piece::End);
        }
        self.open.0.check()?;
        let shared = Arc::clone(&self.open.0);
        match shared.handle.block_on(self.fill(buf)) {
            Ok(0) => Ok(Piece::End),
            Ok(bytes) => Ok(Piece::Data(bytes)),
            Err(error) => Err(shared.fail(error)),
        }
    }

    fn changed_while_read(&mut self) -> io::Result<bool> {
        Ok(false)
    }
}

/// What a program writes. It is started by the first read.
#[derive(Debug)]
pub(super) struct ProgramContent {
    open: Open,
    command: Command,
    running: Option<(Running, ChildStdout)>,
}

impl ProgramContent {
    pub fn new(shared: &Arc<Shared>, command: Command) -> Self {
        Self { open: Open::new(shared), command, running: None }
    }

    fn step(&mut self, buf: &mut [u8]) -> Result<usize, DumpError> {
        let program = || "pg_dump".to_owned();
        let (running, mut output) = match self.running.take() {
            Some(running) => running,
            None => {
                let mut running = Running::start(self.command.stdout(std::process::Stdio::piped()))?;
                let output = running.output();
                let output = output.ok_or_else(|| DumpError::Odd("a program has no output".to_owned()))?;
                (running, output)
            }
        };
        match output.read(buf).map_err(|source| DumpError::Run { program: program(), source })? {
            0 => {
                let warnings = running.finish()?;
                self.open.0.lock().warnings.extend(warnings);
                Ok(0)
            }
            bytes => {
                self.running = Some((running, output));
                Ok(bytes)
            }
        }
    }
}

impl Content for ProgramContent {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<Piece> {
        self.open.0.check()?;
        match self.step(buf) {
            Ok(0) => Ok(Piece::End),
            Ok(bytes) => Ok(Piece::Data(bytes)),
            Err(error) => Err(self.open.0.fail(error)),
        }
    }

    fn changed_while_read(&mut self) -> io::Result<bool> {
        Ok(false)
    }
}

/// Bytes that are at hand.
#[derive(Debug)]
pub(super) struct BytesContent(pub Bytes);

impl Content for BytesContent {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<Piece> {
        let bytes = self.0.len().min(buf.len());
        buf[..bytes].copy_from_slice(&self.0[..bytes]);
        self.0.advance(bytes);
        Ok(if bytes == 0 { Piece::End } else { Piece::Data(bytes) })
    }

    fn changed_while_read(&mut self) -> io::Result<bool> {
        Ok(false)
    }
}
