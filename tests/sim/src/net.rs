//! The network: where processes ask and the simulation answers.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use keepwell_storage::{Capabilities, Key, ObjectInfo, ObjectStore, Page, StorageError, StorageErrorKind};
use tokio::sync::oneshot;

/// One life of one process: the number of its actor, and how often that was started before.
pub(crate) type Life = (usize, u32);

/// What a process may ask for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    /// Nothing from a store: the source that it reads is slow.
    Wait,
    Put(Key, Bytes),
    Get(Key),
    GetRange(Key, u64, u64),
    Head(Key),
    List(String, Option<Key>),
    Delete(Key),
}

impl Call {
    /// Whether it can change a store.
    pub fn changes(&self) -> bool {
        matches!(self, Self::Put(..) | Self::Delete(_))
    }

    /// The operation and its subject, for errors.
    pub fn subject(&self) -> (&'static str, String) {
        match self {
            Self::Wait => ("read", "the source".to_owned()),
            Self::Put(key, _) => ("put", key.to_string()),
            Self::Get(key) => ("get", key.to_string()),
            Self::GetRange(key, ..) => ("get range", key.to_string()),
            Self::Head(key) => ("head", key.to_string()),
            Self::List(prefix, _) => ("list", prefix.clone()),
            Self::Delete(key) => ("delete", key.to_string()),
        }
    }

    /// The same as one failure with this kind.
    pub fn fails(&self, kind: StorageErrorKind, why: &str) -> StorageError {
        let (operation, subject) = self.subject();
        StorageError::new(kind, operation, subject, why)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (operation, subject) = self.subject();
        write!(f, "{operation} {subject}")?;
        match self {
            Self::Put(_, body) => write!(f, " ({} bytes, {})", body.len(), &blake3::hash(body).to_hex()[..8]),
            Self::GetRange(_, from, to) => write!(f, " {from}..{to}"),
            Self::List(_, Some(after)) => write!(f, " after {after}"),
            _ => Ok(()),
        }
    }
}

/// What it gets.
#[derive(Debug)]
pub(crate) enum Answer {
    Done,
    Body(Bytes),
    Info(ObjectInfo),
    Page(Page),
}

pub(crate) type Outcome = Result<Answer, StorageError>;

/// A question on its way.
#[derive(Debug)]
pub(crate) struct Asked {
    pub life: Life,
    /// Which store.
    pub store: usize,
    pub call: Call,
    /// Whoever waits; a process may have stopped waiting.
    pub reply: oneshot::Sender<Outcome>,
}

/// Holds the questions until the simulation takes them. Clones are the same network.
#[derive(Debug, Clone, Default)]
pub(crate) struct Net(Arc<Mutex<Lines>>);

#[derive(Debug, Default)]
struct Lines {
    asked: Vec<Asked>,
    dead: BTreeSet<Life>,
}

impl Net {
    /// Takes the questions that were asked since the last time, in an order that no race decides.
    pub fn take(&self) -> Vec<Asked> {
        let mut asked = std::mem::take(&mut self.lines().asked);
        asked.sort_by(|a, b| (a.life, a.store, &a.call).cmp(&(b.life, b.store, &b.call)));
        asked
    }

    /// From now on nothing that this process asks is heard.
    pub fn kill(&self, life: Life) {
        self.lines().dead.insert(life);
    }

    /// Asks, and gives where the answer arrives.
    fn ask(&self, life: Life, store: usize, call: Call) -> oneshot::Receiver<Outcome> {
        let (reply, answer) = oneshot::channel();
        let mut lines = self.lines();
        if lines.dead.contains(&life) {
            let _ = reply.send(Err(dead(&call)));
        } else {
            lines.asked.push(Asked { life, store, call, reply });
        }
        answer
    }

    /// Waits until the simulation lets the source of a process go on; `false` when the process is dead.
    pub fn wait(&self, life: Life) -> bool {
        matches!(self.ask(life, 0, Call::Wait).blocking_recv(), Ok(Ok(_)))
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a dead process hears, so that its threads come to an end.
pub(crate) fn dead(call: &Call) -> StorageError {
    call.fails(StorageErrorKind::Other, "the process has crashed")
}

/// A store as one life of a process sees it.
#[derive(Debug)]
pub(crate) struct Door {
    pub net: Net,
    pub life: Life,
    pub store: usize,
}

impl Door {
    async fn ask(&self, call: Call) -> Outcome {
        let lost = dead(&call);
        self.net.ask(self.life, self.store, call).await.unwrap_or(Err(lost))
    }
}

#[async_trait]
impl ObjectStore for Door {
    async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), StorageError> {
        self.ask(Call::Put(key.clone(), body)).await.map(|_| ())
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StorageError> {
        self.ask(Call::Get(key.clone())).await.map(body)
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.ask(Call::GetRange(key.clone(), range.start, range.end)).await.map(body)
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo, StorageError> {
        match self.ask(Call::Head(key.clone())).await? {
            Answer::Info(info) => Ok(info),
            other => panic!("{other:?} answers a head"),
        }
    }

    async fn list_page(&self, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError> {
        match self.ask(Call::List(prefix.to_owned(), after.cloned())).await? {
            Answer::Page(page) => Ok(page),
            other => panic!("{other:?} answers a list"),
        }
    }

    async fn delete(&self, key: &Key) -> Result<(), StorageError> {
        self.ask(Call::Delete(key.clone())).await.map(|_| ())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { conditional_create: true }
    }

    fn describe(&self) -> String {
        format!("simulated store {}", self.store)
    }
}

fn body(answer: Answer) -> Bytes {
    match answer {
        Answer::Body(bytes) => bytes,
        other => panic!("{other:?} answers a get"),
    }
}
