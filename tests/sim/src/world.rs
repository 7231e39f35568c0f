//! A world: processes, stores and a seed that decides what happens next.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::actor::Actor;
use crate::check::{Case, judge};
use crate::dice::Dice;
use crate::genesis;
use crate::log::Log;
use crate::net::Net;
use crate::oracle::{Given, Oracle, Wrong};
use crate::quiet::Quiet;
use crate::requests::{Floating, Waiting};
use crate::trace::Trace;
use crate::vault::Vault;
use crate::weather::Weather;
use crate::work::{Ended, Job};

/// Steps after which no job is begun any more.
const STEPS_MAX: u64 = 6000;

/// What a world came to.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Hash of everything that happened.
    pub hash: String,
    /// Requests served.
    pub requests: u64,
    /// Snapshots committed in both stores.
    pub snapshots: u64,
    /// Packs deleted.
    pub deleted: u64,
    /// Jobs that were fenced.
    pub fenced: u64,
    /// Checkpoints of captures that came to an end.
    pub checkpoints: u64,
    /// Packs emptied by prunes.
    pub repacked: u64,
    /// Index segments merged.
    pub merged: u64,
    /// Objects that a prune kept after all.
    pub kept: u64,
    /// Processes that crashed.
    pub crashes: u64,
    /// Pieces of the log removed.
    pub log_removed: u64,
    /// Requests that took effect after their process had given them up.
    pub late: u64,
}

impl Report {
    /// The counts with their names.
    pub fn counts(&self) -> [(&'static str, u64); 11] {
        [
            ("requests", self.requests),
            ("snapshots", self.snapshots),
            ("packs-deleted", self.deleted),
            ("jobs-fenced", self.fenced),
            ("checkpoints", self.checkpoints),
            ("packs-repacked", self.repacked),
            ("segments-merged", self.merged),
            ("objects-kept", self.kept),
            ("crashes", self.crashes),
            ("log-pieces-removed", self.log_removed),
            ("late-requests", self.late),
        ]
    }
}

/// A promise that was broken.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The world's seed.
    pub seed: u64,
    /// What is wrong.
    pub wrong: String,
    /// The step at which it showed.
    pub step: u64,
}

/// Everything there is.
pub(crate) struct World {
    pub dice: Dice,
    pub weather: Weather,
    pub quiet: Quiet,
    pub net: Net,
    pub trace: Trace,
    pub vaults: Vec<Vault>,
    pub oracles: Vec<Oracle>,
    pub actors: Vec<Actor>,
    pub waiting: Vec<Waiting>,
    pub floating: Vec<Floating>,
    pub given: Given,
    pub log: Log,
    pub attempts: u64,
    pub retirements: usize,
    pub step: u64,
    pub report: Report,
    disk: PathBuf,
}

/// Lives through the world of a seed. The trace has the same lines every time.
///
/// One world at a time in an operating system process: random bytes and threads belong to the world that is at hand.
pub fn run(seed: u64, trace: Trace) -> (Trace, Result<Report, Failure>) {
    // Streams of random bytes are told apart by the names of threads.
    let thread = std::thread::Builder::new().name("world".to_owned()).spawn(move || {
        let mut world = World::new(seed, trace);
        let ended = world.live();
        world.end();
        let failure = |wrong| Failure { seed, wrong, step: world.step };
        (world.trace, ended.map(|()| world.report.clone()).map_err(failure))
    });
    thread.expect("threads can be started").join().expect("the world does not panic")
}

#[allow(clippy::disallowed_methods)] // this is a harness: a planted fault is chosen in the environment
fn planted_same_randomness() -> bool {
    std::env::var("KEEPWELL_PLANTED").is_ok_and(|fault| fault == "same-randomness")
}

impl World {
    fn new(seed: u64, trace: Trace) -> Self {
        static WORLDS: AtomicU64 = AtomicU64::new(0);
        keepwell_sim_entropy::begin(seed);
        let mut dice = Dice::new(seed);
        let weather = Weather::draw(&mut dice);
        let number = WORLDS.fetch_add(1, Ordering::Relaxed);
        let disk = scratch().join(format!("keepwell-sim-{}-{number}", std::process::id()));
        let genesis = genesis::create(&mut dice, &weather, &disk).expect("the repository can be made");
        // A fault of ours, not of the engine: the operating system gives the same random bytes again and again.
        if planted_same_randomness() {
            keepwell_sim_entropy::repeat();
        }
        Self {
            dice,
            weather,
            quiet: Quiet::default(),
            net: Net::default(),
            trace,
            vaults: genesis.vaults,
            oracles: genesis.oracles,
            actors: genesis.actors,
            waiting: Vec::new(),
            floating: Vec::new(),
            given: Given::new(),
            log: genesis.log,
            attempts: 0,
            retirements: 0,
            step: 0,
            report: Report::default(),
            disk,
        }
    }

    fn live(&mut self) -> Result<(), Wrong> {
        self.trace.line(&format!("{:?}", self.weather));
        for number in 0..self.actors.len() {
            self.start(number);
        }
        while self.step < STEPS_MAX && self.anything_left() {
            self.step += 1;
            self.something_goes_wrong()?;
            self.something_happens()?;
        }
        self.close()?;
        self.report.hash = self.trace.hash();
        Ok(())
    }

    /// Whether somebody is at work, or a writer has jobs left.
    fn anything_left(&self) -> bool {
        self.actors
            .iter()
            .any(|actor| actor.is_busy() || (actor.is_writer() && !actor.revoked && actor.jobs_left > 0))
    }

    /// Serves a request, lets time pass, or begins a job.
    fn something_happens(&mut self) -> Result<(), Wrong> {
        let mut choices: Vec<(u64, Choice)> = Vec::new();
        for (number, waiting) in self.waiting.iter().enumerate() {
            let actor = &self.actors[waiting.asked.life.0];
            if actor.frozen_until.is_none() {
                choices.push((4 * actor.speed, Choice::Serve(number)));
            }
        }
        for number in 0..self.floating.len() {
            choices.push((2, Choice::Land(number)));
        }
        for actor in self.actors.iter().filter(|actor| actor.is_alive() && actor.frozen_until.is_none()) {
            if !actor.is_busy() {
                if actor.jobs_left > 0 {
                    choices.push((actor.speed, Choice::Begin(actor.number)));
                }
                continue;
            }
            let asks = self.waiting.iter().any(|waiting| actor.is_life(waiting.asked.life));
            choices
                .push((if asks { 1 + actor.speed / 8 } else { 4 * actor.speed }, Choice::Tick(actor.number)));
        }
        let weights: Vec<u64> = choices.iter().map(|(weight, _)| *weight).collect();
        if weights.is_empty() {
            return Ok(()); // everybody is frozen or dead: wait for better times
        }
        match choices[self.dice.weighted(&weights)].1 {
            Choice::Serve(number) => self.serve(number),
            Choice::Land(number) => self.land(number),
            Choice::Tick(number) => self.tick(number),
            Choice::Begin(number) => {
                self.actors[number].jobs_left -= 1;
                let (dice, weather) = (&mut self.dice, &self.weather);
                let job = self.actors[number].next_job(dice, &mut self.attempts, weather);
                self.begin(number, job)
            }
        }
    }

    /// Lets some time pass on a host.
    fn tick(&mut self, number: usize) -> Result<(), Wrong> {
        let seconds = [1, 5, 5, 20, 61, 61, 61, 300, 1800, 3700][self.dice.roll(10) as usize];
        self.advance(number, Duration::from_secs(seconds))
    }

    /// Lets time pass on a host.
    pub fn advance(&mut self, number: usize, by: Duration) -> Result<(), Wrong> {
        self.trace.line(&format!("{} {} s pass", self.actors[number].name(), by.as_secs()));
        self.actors[number].enter();
        self.actors[number].advance(by, &mut self.quiet);
        self.vaults.iter_mut().for_each(|vault| vault.advance(by / 4));
        self.gather(number)
    }

    /// Starts a process.
    pub fn start(&mut self, number: usize) {
        let (net, log, weather) = (self.net.clone(), self.log.clone(), self.weather.clone());
        self.actors[number].start(&net, &log, &weather, &mut self.quiet);
        self.trace.line(&format!("{} starts", self.actors[number].name()));
    }

    /// Begins a job.
    pub fn begin(&mut self, number: usize, job: Job) -> Result<(), Wrong> {
        if let Job::Backup { attempt, tree, .. } = &job {
            self.given.insert(*attempt, tree.clone());
        }
        self.trace.line(&format!("{} begins: {}", self.actors[number].name(), job.name()));
        let fresh = self.dice.chance(5000);
        self.actors[number].enter();
        self.actors[number].begin(job, fresh, self.retirements, &mut self.quiet);
        self.gather(number)
    }

    /// Takes up what a process asks, and judges the job that it has ended.
    pub fn gather(&mut self, number: usize) -> Result<(), Wrong> {
        for asked in self.net.take() {
            self.trace.line(&format!("{} asks {}", self.actors[number].name(), asked.call));
            self.waiting.push(Waiting { asked, outcome: None });
        }
        let Some(finished) = self.actors[number].finished() else { return Ok(()) };
        let actor = &self.actors[number];
        let case = Case {
            oracles: &self.oracles,
            given: &self.given,
            member: actor.member(),
            revoked: actor.revoked,
            retirements: self.retirements,
        };
        let judged = judge(&case, &finished).map_err(|wrong| format!("{}: {wrong}", actor.name()))?;
        self.trace.line(&format!("{} {judged}", actor.name()));
        self.count(&finished.ended);
        Ok(())
    }

    fn count(&mut self, ended: &Ended) {
        let report = &mut self.report;
        match ended {
            Ended::Backup(_, Ok(done)) => report.checkpoints += done.checkpoints,
            Ended::Backup(_, Err(backup_core::Error::Fenced { .. })) => report.fenced += 1,
            Ended::Prune(Ok(done)) => {
                report.repacked += done.packs_repacked;
                report.merged += done.segments_merged;
                report.kept += done.kept;
            }
            _ => {}
        }
    }

    fn end(&mut self) {
        for number in 0..self.actors.len() {
            self.silence(number);
        }
        let _ = std::fs::remove_dir_all(&self.disk);
    }
}

enum Choice {
    Serve(usize),
    Land(usize),
    Tick(usize),
    Begin(usize),
}

/// A directory in memory, where there is one.
#[allow(clippy::disallowed_methods)] // a harness may look where temporary files go
fn scratch() -> PathBuf {
    let shared = PathBuf::from("/dev/shm");
    if shared.is_dir() { shared } else { std::env::temp_dir() }
}
