//! Who takes part: a credential, a host with its clocks and its cache, and one process at a time.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backup_core::Cache;
use keepwell_crypto::MemberId;
use keepwell_crypto::keyfile::KeyFile;

use crate::clock::HostClock;
use crate::dice::Dice;
use crate::log::{Log, USED_BYTES};
use crate::net::{Life, Net};
use crate::process::Process;
use crate::quiet::Quiet;
use crate::tree::Tree;
use crate::weather::Weather;
use crate::work::{Ended, Job, NEVER, Tools};

/// What an actor does all day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    Writer { dataset: &'static str },
    Keeper,
    Reader,
    Copier,
    Archiver,
    Owner,
}

/// Stores in a world.
pub(crate) const STORES: usize = 2;

/// Somebody who takes part.
pub(crate) struct Actor {
    pub number: usize,
    pub role: Role,
    pub key: KeyFile,
    pub clock: HostClock,
    pub cache: Cache,
    /// The directory of the cache, if nobody else uses it.
    pub own_directory: Option<PathBuf>,
    /// How fast it is at the moment, compared with others.
    pub speed: u64,
    /// Until which step it is stopped.
    pub frozen_until: Option<u64>,
    /// Until which step it cannot see a store.
    pub cut_until: [u64; STORES],
    /// Whether its credential was revoked.
    pub revoked: bool,
    /// Jobs that it may still begin.
    pub jobs_left: u32,
    pub tree: Tree,
    lives: u32,
    running: Option<Running>,
}

/// A process at work or waiting for work.
struct Running {
    process: Process,
    tools: Tools,
    job: Option<Working>,
}

struct Working {
    ended: Arc<Mutex<Option<Ended>>>,
    failures_before: u64,
    retirements_before: usize,
}

/// A job that has ended.
pub(crate) struct Finished {
    pub ended: Ended,
    /// Whether a failure of a store reached the engine meanwhile.
    pub disturbed: bool,
    /// Retirements in all stores when it began.
    pub retirements_before: usize,
}

impl Actor {
    pub fn new(
        number: usize,
        role: Role,
        key: KeyFile,
        clock: HostClock,
        cache: Cache,
        jobs_left: u32,
    ) -> Self {
        Self {
            number,
            role,
            key,
            clock,
            cache,
            own_directory: None,
            speed: 10,
            frozen_until: None,
            cut_until: [0; STORES],
            revoked: false,
            jobs_left,
            tree: Tree::default(),
            lives: 0,
            running: None,
        }
    }

    /// The member that it acts as.
    pub fn member(&self) -> MemberId {
        self.key.member.as_ref().expect("every actor is a member").signing.member_id()
    }

    /// Its name, without the number of its life.
    pub fn name(&self) -> String {
        let letter = match self.role {
            Role::Writer { .. } => 'w',
            Role::Keeper => 'k',
            Role::Reader => 'r',
            Role::Copier => 'c',
            Role::Archiver => 'a',
            Role::Owner => 'o',
        };
        format!("{letter}{}", self.number)
    }

    pub fn is_writer(&self) -> bool {
        matches!(self.role, Role::Writer { .. })
    }

    pub fn is_alive(&self) -> bool {
        self.running.is_some()
    }

    pub fn is_busy(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.job.is_some())
    }

    /// Whether this life is the one that is running.
    pub fn is_life(&self, life: Life) -> bool {
        self.is_alive() && life == self.life()
    }

    /// The life that is running, or was the last.
    pub fn life(&self) -> Life {
        (self.number, self.lives)
    }

    /// Starts a process.
    pub fn start(&mut self, net: &Net, log: &Log, weather: &Weather, quiet: &mut Quiet) {
        self.lives += 1;
        let process = Process::start(format!("{}.{}", self.name(), self.lives), self.clock.clone(), quiet);
        let tools = Tools {
            net: net.clone(),
            log: log.clone(),
            life: self.life(),
            key: self.key.clone(),
            cache: self.cache.clone(),
            clock: self.clock.clone(),
            retry: weather.retry,
            failures: Arc::default(),
            open: Arc::default(),
        };
        self.running = Some(Running { process, tools, job: None });
        self.settle(quiet);
    }

    /// Begins a job. With `fresh`, as a new command would: with nothing but the cache.
    pub fn begin(&mut self, job: Job, fresh: bool, retirements_before: usize, quiet: &mut Quiet) {
        let running = self.running.as_mut().expect("it is alive");
        if fresh {
            running.tools.close();
        }
        let ended = Arc::new(Mutex::new(None));
        let failures_before = running.tools.failures.load(Ordering::SeqCst);
        running.job = Some(Working { ended: Arc::clone(&ended), failures_before, retirements_before });
        let tools = running.tools.clone();
        running.process.run(async move {
            let how = tools.perform(job).await;
            *ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(how);
        });
        self.settle(quiet);
    }

    /// Lets time pass on its host.
    pub fn advance(&self, by: Duration, quiet: &mut Quiet) {
        match &self.running {
            Some(running) => {
                running.process.advance(by);
                self.settle(quiet);
            }
            None => self.clock.advance(by),
        }
    }

    /// Waits until its process has come to rest.
    pub fn settle(&self, quiet: &mut Quiet) {
        if let Some(running) = &self.running {
            running.process.settle(quiet);
        }
    }

    /// Lets random bytes come from its streams.
    pub fn enter(&self) {
        keepwell_sim_entropy::enter(&format!("{}.{}", self.name(), self.lives));
    }

    /// The job that has ended, if one has.
    pub fn finished(&mut self) -> Option<Finished> {
        let running = self.running.as_mut()?;
        let job = running.job.as_ref()?;
        let ended = job.ended.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let failures: &AtomicU64 = &running.tools.failures;
        let disturbed = failures.load(Ordering::SeqCst) != job.failures_before;
        let retirements_before = job.retirements_before;
        running.job = None;
        Some(Finished { ended, disturbed, retirements_before })
    }

    /// Ends the process, which must have nothing to do any more.
    pub fn end(&mut self) {
        if let Some(running) = self.running.take() {
            running.tools.close();
            running.process.end();
        }
    }

    /// Chooses a job.
    pub fn next_job(&mut self, dice: &mut Dice, attempts: &mut u64, weather: &Weather) -> Job {
        match self.role {
            Role::Writer { dataset } => self.next_backup(dataset, dice, attempts, weather),
            Role::Keeper => {
                let store = usize::from(dice.chance(2500));
                if dice.chance(4000) {
                    let chance = *dice.pick(&[3000, 6000, 10_000]);
                    return Job::Forget { store, chance, keep: dice.roll(3) as usize, dice: dice.fork() };
                }
                let trims = dice.chance(2500);
                let minutes = *dice.pick(&[0, 5, 5, 60]);
                if trims {
                    return Job::Trim { fence_after: Duration::from_secs(60 * minutes) };
                }
                Job::Prune {
                    store,
                    max_unused: *dice.pick(&[0.0, 0.0, 0.05, 0.5]),
                    fence_after: Duration::from_secs(60 * minutes),
                }
            }
            Role::Reader => Job::Restore { store: usize::from(dice.chance(2500)), dice: dice.fork() },
            Role::Copier => Job::Copy { dice: dice.fork() },
            Role::Archiver => {
                let cut = 1 + dice.roll(u64::from(USED_BYTES) - 1) as u32;
                let tails = [(0, cut), (cut, USED_BYTES)];
                let mut parts: Vec<_> = tails.into_iter().filter(|_| dice.chance(6000)).collect();
                parts.push((0, USED_BYTES));
                Job::Archive { parts }
            }
            Role::Owner => unreachable!("owners act when the weather says so"),
        }
    }

    fn next_backup(&mut self, dataset: &str, dice: &mut Dice, attempts: &mut u64, weather: &Weather) -> Job {
        self.tree.change(dice);
        *attempts += 1;
        let waits = (0..self.tree.0.len()).filter(|_| dice.chance(weather.slow_source)).collect();
        Job::Backup {
            attempt: *attempts,
            tree: self.tree.clone(),
            dataset: dataset.to_owned(),
            checkpoint_every: Duration::from_secs(*dice.pick(&[
                600,
                3600,
                3600,
                NEVER.as_secs(),
                NEVER.as_secs(),
            ])),
            verify: self.number.is_multiple_of(2) && dice.chance(1000),
            waits,
        }
    }
}
