//! What the directed worlds are made of: hosts with a gate before the store, and sources that wait.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use backup_core::chunker::ChunkSizes;
use backup_core::{
    BackupOptions, BackupReport, Cache, CreateOptions, Created, Error, PruneOptions, Repository,
};
use keepwell_crypto::MemberId;
use keepwell_crypto::keyfile::KeyFile;
use keepwell_storage::{Memory, Operation, list_all};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::gate::Gate;
use crate::check::line;
use crate::clock::HostClock;
use crate::log::Log;
use crate::oracle::{Given, Wrong};
use crate::tree::{Node, SlowTree, Tree, content, key};
use crate::work::{open, restore};

/// How often a look is taken at what should happen, a millisecond apart.
const LOOKS: u32 = 240_000;
/// Longer than a keeper sleeps between two looks at open sessions.
const POLL: Duration = Duration::from_secs(6);
/// Every file is one chunk.
const SIZES: ChunkSizes = ChunkSizes { min: 16 << 10, average: 32 << 10, max: 64 << 10 };

/// A store, and the key of its owner, who is a member with every role.
pub(super) struct Stage {
    pub memory: Memory,
    pub key: KeyFile,
    /// The log of the database of which every backup is a base backup.
    pub log: Log,
    given: Mutex<Given>,
}

/// A process with a cache and a clock of its own.
pub(super) struct Host {
    pub repository: Repository,
    pub gate: Arc<Gate>,
    clock: HostClock,
}

/// What a source does before an item of its number.
#[derive(Clone, Copy)]
pub(super) enum Stop {
    /// Lets a day pass.
    Day,
    /// Waits until the test lets it go on.
    Wait,
    /// Dies.
    Die,
}

/// A backup at work.
pub(super) struct Capture {
    task: JoinHandle<Result<BackupReport, Error>>,
    reached: oneshot::Receiver<()>,
    go_on: oneshot::Sender<()>,
}

/// A tree of files with these contents, of which worlds have fourteen.
pub(super) fn files(contents: &[u64]) -> Tree {
    let file = |(at, number): (usize, &u64)| (key(&format!("f{at}")), Node::File(content(*number)));
    Tree(contents.iter().enumerate().map(file).collect::<BTreeMap<_, _>>())
}

/// A prune that waits for everybody.
pub(super) fn patient() -> PruneOptions {
    PruneOptions { max_unused: 0.0, fence_after: Duration::from_secs(3600), ..PruneOptions::default() }
}

/// A prune that waits for nobody.
pub(super) fn impatient() -> PruneOptions {
    PruneOptions { fence_after: Duration::ZERO, ..patient() }
}

/// An error as a sentence.
pub(super) fn said(error: Error) -> Wrong {
    line(&error)
}

/// What must be so, or the world is not about what it should be.
pub(super) fn expect(holds: bool, what: &str) -> Result<(), Wrong> {
    if holds { Ok(()) } else { Err(format!("it did not come to this: {what}")) }
}

/// Waits until this happens, without letting time pass.
pub(super) async fn soon<T>(what: impl Future<Output = T>) -> Result<T, Wrong> {
    come_to_pass(what, Duration::ZERO).await
}

/// Waits until this happens, and lets time pass meanwhile.
pub(super) async fn later<T>(what: impl Future<Output = T>) -> Result<T, Wrong> {
    come_to_pass(what, POLL).await
}

async fn come_to_pass<T>(what: impl Future<Output = T>, each: Duration) -> Result<T, Wrong> {
    let mut what = std::pin::pin!(what);
    for _ in 0..LOOKS {
        if let Poll::Ready(it) = poll_fn(|context| Poll::Ready(what.as_mut().poll(context))).await {
            return Ok(it);
        }
        if !each.is_zero() {
            tokio::time::advance(each).await;
        }
        tokio::task::yield_now().await;
        std::thread::sleep(Duration::from_millis(1));
    }
    Err("it never comes to pass".to_owned())
}

/// The result of a task, with time passing until it has one.
pub(super) async fn ended<T>(task: JoinHandle<Result<T, Error>>) -> Result<Result<T, Error>, Wrong> {
    later(task).await?.map_err(|e| format!("a task panicked: {e}"))
}

impl Stage {
    pub async fn new() -> Result<Self, Wrong> {
        let memory = Memory::new();
        let options =
            CreateOptions { owner: "ann".into(), member: "ann".into(), store_hint: None, probe: None };
        let created = Created::generate(&options, 0).map_err(said)?;
        let key = created.store(&memory).await.map_err(said)?;
        Ok(Self { memory, key, log: Log::default(), given: Mutex::default() })
    }

    /// Whose key it is.
    pub fn member(&self) -> MemberId {
        self.key.member.as_ref().expect("the owner is a member").signing.member_id()
    }

    /// A new process of the owner.
    pub async fn host(&self) -> Result<Host, Wrong> {
        self.host_of(&self.key).await
    }

    /// A new process with this credential.
    pub async fn host_of(&self, key: &KeyFile) -> Result<Host, Wrong> {
        let (gate, clock) = (Arc::new(Gate::wide_open(self.memory.clone())), HostClock::default());
        let repository = open(gate.clone(), key, Cache::memory(), clock.clone()).await.map_err(said)?;
        Ok(Host { repository, gate, clock })
    }

    /// Backs up a tree on a new host, from the beginning to the end.
    pub async fn back_up(&self, tree: Tree) -> Result<BackupReport, Wrong> {
        ended(self.begin(&self.host().await?, tree, &[]).task).await?.map_err(said)
    }

    /// Begins a backup that stops before these items. The walk does nothing before the first item, so a stop there is one
    /// after the plans and the index were read.
    pub fn begin(&self, host: &Host, tree: Tree, stops: &[(usize, Stop)]) -> Capture {
        let (tell, reached) = oneshot::channel();
        let (go_on, wait) = oneshot::channel();
        let attempt = {
            let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
            let attempt = given.len() as u64;
            given.insert(attempt, tree.clone());
            attempt
        };
        let clock = host.clock.clone();
        let (waits, stops): (Vec<usize>, VecDeque<Stop>) = stops.iter().copied().unzip();
        let left = Mutex::new((stops, Some((tell, wait))));
        let wait = Box::new(move || {
            let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
            match left.0.pop_front() {
                Some(Stop::Day) => clock.advance(Duration::from_secs(24 * 3600)),
                Some(Stop::Wait) => {
                    let (tell, wait) = left.1.take().expect("a source waits once");
                    let _ = tell.send(());
                    return wait.blocking_recv().is_ok();
                }
                Some(Stop::Die) => return false,
                None => {}
            }
            true
        });
        let options = BackupOptions {
            dataset: "main".to_owned(),
            description: attempt.to_string(),
            chunk_sizes: SIZES,
            checkpoint_every: Duration::from_secs(3600),
            ..BackupOptions::default()
        };
        let repository = host.repository.clone();
        let log = self.log.clone();
        let begin = Box::new(move || log.begin(attempt));
        let source = Arc::new(SlowTree { tree, waits, wait, begin });
        let task = tokio::spawn(async move { repository.backup(source, options).await });
        Capture { task, reached, go_on }
    }

    /// Forgets every snapshot that there is.
    pub async fn forget_all(&self) -> Result<(), Wrong> {
        self.forget_all_but(0).await
    }

    /// Forgets every snapshot but so many of the newest.
    pub async fn forget_all_but(&self, newest: usize) -> Result<(), Wrong> {
        let repository = self.host().await?.repository;
        let mut snapshots = repository.snapshots().await.map_err(said)?;
        snapshots.truncate(snapshots.len().saturating_sub(newest));
        let list: Vec<_> = snapshots.iter().map(|snapshot| (snapshot, "test".to_owned())).collect();
        repository.forget(&list).await.map_err(said)
    }

    /// Names below a prefix.
    pub async fn names(&self, prefix: &str) -> Result<Vec<String>, Wrong> {
        let listed = list_all(&self.memory, prefix).await.map_err(|e| line(&e))?;
        Ok(listed.into_iter().map(|info| info.key.to_string()).collect())
    }

    /// There are so many snapshots, and each restores as it was given.
    pub async fn all_restore(&self, snapshots: usize) -> Result<(), Wrong> {
        let repository = self.host().await?.repository;
        let listed = repository.snapshots().await.map_err(said)?;
        if listed.len() != snapshots {
            return Err(format!("{} snapshots are listed instead of {snapshots}", listed.len()));
        }
        for snapshot in &listed {
            let restored = restore(&repository, 0, snapshot).await.map_err(said)?;
            if let Some(problem) = restored.problems.first() {
                return Err(format!("a snapshot does not restore: {problem:?}"));
            }
            let given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
            let given = restored.attempt.parse().ok().and_then(|attempt| given.get(&attempt));
            let given = given.ok_or("it restored what nobody took")?;
            if let Some(difference) = restored.tree.difference(given) {
                return Err(difference);
            }
        }
        Ok(())
    }
}

impl Host {
    /// Begins a prune, and stops it where it has stored its plan and listed the sessions that it must wait for. It goes on
    /// at once.
    pub async fn begin_prune(&self) -> Result<JoinHandle<Result<backup_core::PruneReport, Error>>, Wrong> {
        self.gate.shut(|operation, key| operation == Operation::Put && key.starts_with("gc/"));
        let repository = self.repository.clone();
        let task = tokio::spawn(async move { repository.prune(patient()).await });
        soon(self.gate.reached()).await?;
        self.gate.shut(|operation, key| operation == Operation::List && key == "commits/");
        self.gate.open();
        soon(self.gate.reached()).await?;
        self.gate.open();
        Ok(task)
    }
}

impl Capture {
    /// Waits until it waits.
    pub async fn waits(&mut self) -> Result<(), Wrong> {
        soon(&mut self.reached).await?.map_err(|_| "a backup ended before it waited".to_owned())
    }

    /// Lets it go on, to its end.
    pub async fn go_on(self) -> Result<Result<BackupReport, Error>, Wrong> {
        let Self { task, go_on, .. } = self;
        let _ = go_on.send(());
        ended(task).await
    }

    /// How it ends.
    pub async fn end(self) -> Result<Result<BackupReport, Error>, Wrong> {
        let Self { task, go_on: _held, .. } = self;
        ended(task).await
    }
}
