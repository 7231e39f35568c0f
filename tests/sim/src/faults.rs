//! What goes wrong with processes, hosts and stores.

use std::fs;
use std::path::Path;
use std::time::Duration;

use backup_core::Cache;

use crate::actor::Role;
use crate::oracle::Wrong;
use crate::work::Job;
use crate::world::World;

/// Ten years.
const DECADE_SECONDS: u64 = 315_576_000;
/// A month.
const MONTH: Duration = Duration::from_secs(30 * 86_400);

impl World {
    /// Now and then something goes wrong, and what went wrong before is put right.
    pub fn something_goes_wrong(&mut self) -> Result<(), Wrong> {
        self.recover()?;
        let number = self.dice.roll(self.actors.len() as u64 - 1) as usize; // the owner is last, and careful
        if self.dice.chance(150) {
            self.actors[number].speed = *self.dice.pick(&[1, 10, 10, 10, 100]);
        }
        if self.dice.chance(self.weather.crash) && self.actors[number].is_alive() {
            self.crash(number)?;
        }
        if self.dice.chance(self.weather.freeze) && self.actors[number].is_alive() {
            let steps = 20 + self.dice.roll(400);
            self.actors[number].frozen_until.get_or_insert(self.step + steps);
            self.trace.line(&format!("{} is stopped for {steps} steps", self.actors[number].name()));
        }
        if self.dice.chance(self.weather.jump) {
            self.disturb_clock(number);
        }
        if self.dice.chance(self.weather.cut) {
            let until = self.step + 5 + self.dice.roll(100);
            let which = *self.dice.pick(&["both stores", "store 0", "store 1"]);
            for (store, cut_until) in self.actors[number].cut_until.iter_mut().enumerate() {
                if which == "both stores" || which == format!("store {store}") {
                    *cut_until = until;
                }
            }
            self.trace.line(&format!("{} cannot see {which} until step {until}", self.actors[number].name()));
        }
        if self.dice.chance(self.weather.away) {
            let store = self.dice.roll(self.vaults.len() as u64) as usize;
            let until = self.step + 5 + self.dice.roll(60);
            self.vaults[store].away_until = until;
            self.trace.line(&format!("nobody can see store {store} until step {until}"));
        }
        if self.dice.chance(self.weather.full) {
            let store = self.dice.roll(self.vaults.len() as u64) as usize;
            self.vaults[store].full ^= true;
            self.trace.line(&format!("store {store} is full: {}", self.vaults[store].full));
        }
        if self.dice.chance(self.weather.revoke) {
            self.revoke(number)?;
        }
        if self.weather.stale > 0 && self.dice.chance(200) {
            self.remember_cache(number);
        }
        Ok(())
    }

    /// A wall clock jumps, or stands still.
    fn disturb_clock(&mut self, number: usize) {
        let clock = self.actors[number].clock.clone();
        if self.dice.chance(3000) {
            clock.stand_still();
            return self.trace.line(&format!("{} has a clock that stands still", self.actors[number].name()));
        }
        let seconds = self.dice.roll(2 * DECADE_SECONDS).cast_signed() - DECADE_SECONDS.cast_signed();
        clock.set_wrong(seconds);
        self.trace.line(&format!("{} has a clock that is {seconds} s off", self.actors[number].name()));
    }

    /// Processes come back, and frozen ones go on.
    fn recover(&mut self) -> Result<(), Wrong> {
        for number in 0..self.actors.len() {
            if !self.actors[number].is_alive() && !self.actors[number].revoked && self.dice.chance(300) {
                self.come_back(number);
            }
            if self.actors[number].frozen_until.is_some_and(|until| until <= self.step) {
                self.thaw(number)?;
            }
        }
        Ok(())
    }

    /// A process that was stopped goes on, a month later.
    pub fn thaw(&mut self, number: usize) -> Result<(), Wrong> {
        self.actors[number].frozen_until = None;
        self.advance(number, MONTH)
    }

    /// Starts a process again, with its cache, an older state of it, or none.
    pub fn come_back(&mut self, number: usize) {
        let (amnesia, stale) = (self.dice.chance(self.weather.amnesia), self.dice.chance(self.weather.stale));
        match self.actors[number].own_directory.clone() {
            None if amnesia && !self.weather.disk_caches => self.actors[number].cache = Cache::memory(),
            Some(directory) if amnesia => {
                let _ = fs::remove_dir_all(directory);
            }
            Some(directory) if stale && old(&directory).is_dir() => {
                let _ = fs::remove_dir_all(&directory);
                copy(&old(&directory), &directory);
                self.trace.line(&format!("{} has an old cache", self.actors[number].name()));
            }
            _ => {}
        }
        self.start(number);
    }

    /// Keeps a copy of a cache, to come back to.
    fn remember_cache(&self, number: usize) {
        if let Some(directory) = &self.actors[number].own_directory
            && directory.is_dir()
        {
            let _ = fs::remove_dir_all(old(directory));
            copy(directory, &old(directory));
        }
    }

    /// An owner revokes a writer, whose process is ended; what it had sent may still arrive.
    fn revoke(&mut self, number: usize) -> Result<(), Wrong> {
        let owner = self.actors.len() - 1;
        let writers = self.actors.iter().filter(|a| a.is_writer() && !a.revoked).count();
        let is_twin = |other: &crate::actor::Actor| {
            other.number != number && other.member() == self.actors[number].member()
        };
        let may = self.actors[number].is_writer() && !self.actors[number].revoked && writers > 2;
        if !may || self.actors[owner].is_busy() || self.actors.iter().any(is_twin) {
            return Ok(());
        }
        if self.actors[number].is_alive() && self.dice.chance(5000) {
            self.crash(number)?;
        }
        self.actors[number].revoked = true;
        debug_assert_eq!(self.actors[owner].role, Role::Owner);
        let member = self.actors[number].member();
        self.begin(owner, Job::Revoke { member })
    }
}

fn old(directory: &Path) -> std::path::PathBuf {
    directory.with_extension("old")
}

/// Copies a directory with what is below it.
fn copy(from: &Path, to: &Path) {
    let copied = fs::create_dir_all(to).and_then(|()| {
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let target = to.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                copy(&entry.path(), &target);
            } else {
                fs::copy(entry.path(), target)?;
            }
        }
        Ok(())
    });
    copied.expect("a scratch directory can be copied");
}
