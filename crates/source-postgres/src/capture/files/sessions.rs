//! Ordinary sessions with the server whose files are read by SQL functions, and what they are asked.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::runtime::Handle;

use super::values::Values;
use crate::options::ConnectOptions;
use crate::wire::{Answer, Client, PgError};

/// Asked for at once, in bytes: little enough for any server and any memory, and enough to be worth the way.
pub(super) const PIECE: u64 = 1 << 20;
const READ: &str = "read files";
/// Differs between any two servers, also when they are copies of each other.
const WHICH: &str = "SELECT extract(epoch FROM pg_postmaster_start_time()) AS start";

/// Sessions of one capture. Each is used by one reader at a time; there become as many as there are readers.
#[derive(Debug)]
pub(super) struct Sessions {
    handle: Handle,
    connect: ConnectOptions,
    /// When the server was started.
    which: Option<String>,
    idle: Mutex<Vec<Client>>,
    failure: Mutex<Option<PgError>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn which(client: &mut Client) -> Result<Option<String>, PgError> {
    Ok(client.query(WHICH, "ask when the server was started").await?.first("start").map(str::to_owned))
}

impl Sessions {
    /// Sessions with the server that `client` is connected to, in the same database.
    pub async fn new(handle: Handle, connect: &ConnectOptions, client: &mut Client) -> Result<Self, PgError> {
        Ok(Self {
            handle,
            connect: connect.ordinary(&connect.database),
            which: which(client).await?,
            idle: Mutex::default(),
            failure: Mutex::default(),
        })
    }

    /// A session that nobody else uses.
    pub async fn take(&self) -> Result<Client, PgError> {
        let idle = lock(&self.idle).pop();
        if let Some(client) = idle {
            return Ok(client);
        }
        let mut client = Client::connect(&self.connect).await?;
        super::keep(&mut client).await?;
        // Behind one address there may be several.
        if which(&mut client).await? != self.which {
            return Err(PgError::Protocol("a second connection leads to another server".to_owned()));
        }
        Ok(client)
    }

    /// Takes back a session that waits for a command.
    pub fn give(&self, client: Client) {
        lock(&self.idle).push(client);
    }

    /// For readers, which are no tasks.
    pub fn block_on<T>(&self, work: impl Future<Output = Result<T, PgError>>) -> io::Result<T> {
        if lock(&self.failure).is_some() {
            return Err(io::Error::other("another file could not be read"));
        }
        self.handle.block_on(work).map_err(|error| {
            let told = io::Error::other(crate::one_line(&error));
            // What the server says of one file is no reason to give up the others.
            if !matches!(error, PgError::Server { .. }) || error.is_passing() {
                lock(&self.failure).get_or_insert(error);
            }
            told
        })
    }

    /// The first failure that all is worthless for.
    pub fn check(&self) -> Result<(), PgError> {
        lock(&self.failure).take().map_or(Ok(()), Err)
    }

    /// What a query says as lines of text.
    pub async fn lines(
        &self,
        query: &str,
        action: &str,
        mut each: impl FnMut(&str) -> Option<()>,
    ) -> Result<(), PgError> {
        let mut client = self.take().await?;
        let odd = || PgError::Protocol(format!("its answer cannot be read when it is to {action}"));
        let Answer::CopyOut(_) = client.run(&format!("COPY ({query}) TO STDOUT"), action).await? else {
            return Err(odd());
        };
        let mut copy = client.copy_out(action);
        let mut fine = Some(());
        while let Some(lines) = copy.next().await? {
            let text = std::str::from_utf8(&lines).ok();
            fine = fine.and(text.and_then(|text| text.lines().try_for_each(&mut each)));
        }
        client.answer(action).await?;
        self.give(client);
        fine.ok_or_else(odd)
    }

    /// The values of a query with one column of bytes, none of them longer than a [`PIECE`].
    pub async fn values(&self, query: &str) -> Result<Vec<Option<Bytes>>, PgError> {
        let mut asking = Asking::new(self.take().await?);
        asking.ask(query).await?;
        let mut found = Vec::new();
        while let Some(value) = asking.next().await? {
            found.push(value);
        }
        self.give(asking.client);
        Ok(found)
    }
}

/// A session that is asked for values of one column, the next question before the last one is answered. It is of no further
/// use after an error.
#[derive(Debug)]
pub(super) struct Asking {
    pub client: Client,
    /// Of the answer that arrives; `None` between two of them.
    values: Option<Values>,
    data: Bytes,
}

impl Asking {
    pub fn new(client: Client) -> Self {
        Self { client, values: None, data: Bytes::new() }
    }

    /// Sends a question.
    pub async fn ask(&mut self, query: &str) -> Result<(), PgError> {
        self.client.send(&format!("COPY ({query}) TO STDOUT (FORMAT binary)")).await
    }

    /// The next value of the oldest question that is not answered; `None` at the end of its answer.
    pub async fn next(&mut self) -> Result<Option<Option<Bytes>>, PgError> {
        let odd = || PgError::Protocol("it does not send what was to be read".to_owned());
        if self.values.is_none() {
            let Answer::CopyOut(_) = self.client.answer(READ).await? else { return Err(odd()) };
            self.values = Some(Values::default());
        }
        let values = self.values.get_or_insert_default();
        loop {
            if let Some(value) = values.next(&mut self.data, PIECE as usize).map_err(|_| odd())? {
                return Ok(Some(value));
            }
            match self.client.copy_out(READ).next().await? {
                Some(data) => self.data = data,
                None if values.is_over() => break,
                None => return Err(odd()),
            }
        }
        self.client.answer(READ).await?;
        self.values = None;
        Ok(None)
    }
}
