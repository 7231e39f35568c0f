//! How a world ends: the faults stop, everybody goes on, and what is left is looked at with care.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use backup_core::{Cache, CheckOptions, PruneOptions, ReadData, Repository};
use bytes::Bytes;
use keepwell_catalog::{Commit, names};
use keepwell_crypto::{MemberId, Signed, SigningKey};
use keepwell_storage::{Key, Memory, ObjectStore};

use crate::actor::{Role, STORES};
use crate::check::{Case, compare, line};
use crate::clock::HostClock;
use crate::oracle::Wrong;
use crate::work::{open, restore};
use crate::world::World;

/// Rounds of one world's quiet end; far more than any job takes.
const ROUNDS_MAX: u64 = 60_000;
/// Prunes until nothing is left to do.
const PRUNES_MAX: usize = 6;

impl World {
    /// The quiet end.
    pub fn close(&mut self) -> Result<(), Wrong> {
        self.trace.line("the weather clears up");
        self.weather.clear();
        for vault in &mut self.vaults {
            (vault.full, vault.away_until) = (false, 0);
        }
        for number in 0..self.actors.len() {
            self.actors[number].cut_until = [0; STORES];
            if self.actors[number].frozen_until.is_some() {
                self.thaw(number)?;
            }
        }
        while !self.floating.is_empty() {
            self.land(0)?;
        }
        self.calm_down()?;
        self.everybody_goes_on()?;
        for store in 0..self.vaults.len() {
            self.inspect(store)?;
        }
        Ok(())
    }

    /// Serves everything until nobody is at work.
    fn calm_down(&mut self) -> Result<(), Wrong> {
        for round in 0..ROUNDS_MAX {
            if !self.waiting.is_empty() {
                self.serve(0)?;
            } else if !self.actors.iter().any(|actor| actor.is_busy()) {
                return Ok(());
            } else {
                let busy = self.actors.iter().filter(|actor| actor.is_busy()).map(|actor| actor.number);
                for number in busy.collect::<Vec<_>>() {
                    self.advance(number, Duration::from_secs(if round % 2 == 0 { 5 } else { 56 }))?;
                }
            }
        }
        let busy: Vec<_> = self.actors.iter().filter(|a| a.is_busy()).map(|a| a.name()).collect();
        Err(format!("{busy:?} do not come to an end although nothing goes wrong"))
    }

    /// Every writer can back up, and every keeper can prune.
    fn everybody_goes_on(&mut self) -> Result<(), Wrong> {
        for number in 0..self.actors.len() {
            let actor = &self.actors[number];
            if actor.revoked || actor.role == Role::Owner {
                continue;
            }
            if !actor.is_alive() {
                self.start(number);
            }
            let (dice, weather) = (&mut self.dice, &self.weather);
            let actor = &mut self.actors[number];
            let attempts_before = self.attempts;
            let job = actor.next_job(dice, &mut self.attempts, weather);
            self.begin(number, job)?;
            self.calm_down()?;
            let is_promised = |attempt| self.oracles[0].promised().values().any(|p| p.attempt == attempt);
            if self.attempts > attempts_before && !is_promised(self.attempts) {
                return Err(format!("{} cannot back up any more", self.actors[number].name()));
            }
        }
        Ok(())
    }

    /// Looks at a copy of a store with the whole engine: everything restores, nothing half-done shows, prune leaves no
    /// garbage.
    fn inspect(&mut self, store: usize) -> Result<(), Wrong> {
        keepwell_sim_entropy::enter("inspection");
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build().expect("a plain runtime");
        let ended = runtime.block_on(self.inspect_copy(store));
        let summary = ended.map_err(|wrong| format!("at the end, store {store}: {wrong}"))?;
        self.trace.line(&summary);
        Ok(())
    }

    async fn inspect_copy(&self, store: usize) -> Result<String, Wrong> {
        self.refuse_forgeries(store).await?;
        self.notice_damage(store).await?;
        let memory = self.copy_of(store, |_, body| body.clone()).await?;
        let repository = self.open_copy(&memory).await?;
        self.restore_all(store, &repository).await?;
        prune_to_the_end(&repository).await?;
        self.restore_all(store, &self.open_copy(&memory).await?).await?;
        Ok(format!(
            "store {store}: {} snapshots, {} objects",
            self.oracles[store].promised().len(),
            memory.len()
        ))
    }

    /// A commit that somebody without a key put there is not believed.
    async fn refuse_forgeries(&self, store: usize) -> Result<(), Wrong> {
        let Some((writer, n)) = self.oracles[store].promised().keys().next() else { return Ok(()) };
        let memory = self.copy_of(store, |_, body| body.clone()).await?;
        let genuine = &self.vaults[store].objects[&names::commit_key(*writer, *n)];
        let genuine = Signed::from_bytes(genuine).map_err(|e| line(&e))?;
        let mut commit = Commit::decode(&genuine.payload).map_err(|e| line(&e))?;
        commit.n = 9_999_999;
        let stranger = SigningKey::generate();
        let repository = self.actors[0].key.repository;
        let forged = Signed::sign(&stranger, repository, Commit::KIND, commit.encode());
        let forged = Signed { signer: *writer, ..forged }.to_bytes();
        let key = names::commit_key(*writer, commit.n);
        memory.put_new(&key, forged.into()).await.map_err(|e| line(&e))?;
        let repository = self.open_copy(&memory).await?;
        let snapshots = repository.snapshots().await.map_err(|e| line(&e))?;
        match snapshots.iter().find(|snapshot| snapshot.commit.n == commit.n) {
            Some(_) => Err("a forged commit is believed".to_owned()),
            None => Ok(()),
        }
    }

    /// When packs have changed places, no wrong byte is restored.
    async fn notice_damage(&self, store: usize) -> Result<(), Wrong> {
        let packs = self.vaults[store].objects.iter().filter(|(key, _)| key.first_component() == "data");
        let mut bodies: Vec<_> = packs.map(|(_, body)| body.clone()).collect();
        if bodies.len() < 2 {
            return Ok(());
        }
        bodies.rotate_left(1);
        let mut bodies = bodies.into_iter();
        let swap = |key: &Key, body: &Bytes| match key.first_component() {
            "data" => bodies.next().unwrap_or_default(),
            _ => body.clone(),
        };
        let memory = self.copy_of(store, swap).await?;
        let repository = self.open_copy(&memory).await?;
        for snapshot in &repository.snapshots().await.map_err(|e| line(&e))? {
            let restored = restore(&repository, store, snapshot).await.map_err(|e| line(&e))?;
            compare(&self.case(snapshot.commit.writer), &restored, true)?;
        }
        Ok(())
    }

    async fn copy_of(
        &self,
        store: usize,
        mut body_of: impl FnMut(&Key, &Bytes) -> Bytes,
    ) -> Result<Memory, Wrong> {
        let memory = Memory::new();
        for (key, body) in &self.vaults[store].objects {
            memory.put_new(key, body_of(key, body)).await.map_err(|e| line(&e))?;
        }
        Ok(memory)
    }

    async fn open_copy(&self, memory: &Memory) -> Result<Repository, Wrong> {
        let key = &self.actors[self.actors.len() - 1].key;
        let opened = open(Arc::new(memory.clone()), key, Cache::memory(), HostClock::default());
        opened.await.map_err(|e| line(&e))
    }

    fn case(&self, member: MemberId) -> Case<'_> {
        Case { oracles: &self.oracles, given: &self.given, member, revoked: false, retirements: 0 }
    }

    async fn restore_all(&self, store: usize, repository: &Repository) -> Result<(), Wrong> {
        let snapshots = repository.snapshots().await.map_err(|e| line(&e))?;
        let listed: BTreeSet<_> = snapshots.iter().map(|s| (s.commit.writer, s.commit.n)).collect();
        let promised: BTreeSet<_> = self.oracles[store].promised().keys().copied().collect();
        if listed != promised {
            return Err(format!("it lists {listed:?}, and promised are {promised:?}"));
        }
        for snapshot in &snapshots {
            let restored = restore(repository, store, snapshot).await.map_err(|e| line(&e))?;
            compare(&self.case(snapshot.commit.writer), &restored, false)?;
        }
        Ok(())
    }
}

/// Prunes until there is nothing left to do; then everything must be sound, and nothing superfluous there.
async fn prune_to_the_end(repository: &Repository) -> Result<(), Wrong> {
    let options = PruneOptions { max_unused: 0.0, fence_after: Duration::ZERO, ..PruneOptions::default() };
    for _ in 0..PRUNES_MAX {
        let report = repository.prune(options.clone()).await.map_err(|e| format!("prune: {}", line(&e)))?;
        if report.objects_deleted == 0 && report.packs_unused == 0 && report.packs_repacked == 0 {
            let check = CheckOptions { read: ReadData::Everything };
            let check = repository.check(check).await.map_err(|e| format!("check: {}", line(&e)))?;
            if !check.is_sound() || check.orphans > 0 {
                return Err(format!("after the last prune: {check:?}"));
            }
            return Ok(());
        }
    }
    Err("every prune finds something more to do".to_owned())
}
