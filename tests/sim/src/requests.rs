//! What becomes of requests: when they take effect, and what is heard of it.

use std::time::Duration;

use keepwell_storage::StorageErrorKind as Kind;

use crate::net::{Asked, Call, Outcome, dead};
use crate::oracle::Wrong;
use crate::vault::Change;
use crate::world::World;

/// A request that somebody waits for.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub asked: Asked,
    /// The answer, when it has taken effect already.
    pub outcome: Option<Outcome>,
}

/// A request that nobody waits for any more, and that may still take effect.
#[derive(Debug)]
pub(crate) struct Floating {
    pub from: String,
    pub store: usize,
    pub call: Call,
}

/// What befalls a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Served,
    Held,
    Lost,
    Failed,
    Late,
    Twice,
    Throttled,
}

impl World {
    /// Lets one of the waiting requests take effect, or be answered, or fail.
    pub fn serve(&mut self, number: usize) -> Result<(), Wrong> {
        if self.waiting[number].outcome.is_some() {
            return self.answer(number, "answer arrives");
        }
        let (from, fate) = (self.waiting[number].asked.life.0, self.fate(number));
        match fate {
            Fate::Served => {
                self.take_effect(number)?;
                self.answer(number, "served")
            }
            Fate::Held => {
                self.take_effect(number)?;
                self.trace.line(&format!(
                    "{} answer is held: {}",
                    self.actors[from].name(),
                    self.subject(number)
                ));
                Ok(())
            }
            Fate::Lost => {
                self.take_effect(number)?;
                self.fail(number, Kind::Unavailable, "the answer was lost")
            }
            Fate::Failed => self.fail(number, Kind::Unavailable, "the request was lost"),
            Fate::Throttled => self.fail(number, Kind::Throttled, "slow down"),
            Fate::Late => {
                self.float(number);
                self.fail(number, Kind::Unavailable, "no answer in time")
            }
            Fate::Twice => {
                self.float(number);
                self.take_effect(number)?;
                self.answer(number, "served, and sent twice")
            }
        }
    }

    fn fate(&mut self, number: usize) -> Fate {
        let Waiting { asked, .. } = &self.waiting[number];
        let (changes, weather) = (asked.call.changes(), &self.weather);
        if asked.call == Call::Wait {
            return Fate::Served;
        }
        let away_until = self.vaults[asked.store].away_until;
        if self.actors[asked.life.0].cut_until[asked.store].max(away_until) > self.step {
            return Fate::Failed;
        }
        let chances = [
            (weather.held, Fate::Held),
            (weather.lost, Fate::Lost),
            (weather.failed, Fate::Failed),
            (if changes { weather.late } else { 0 }, Fate::Late),
            (if changes { weather.twice } else { 0 }, Fate::Twice),
            (weather.throttled, Fate::Throttled),
        ];
        let befalls = chances.into_iter().find(|(chance, _)| self.dice.chance(*chance));
        befalls.map_or(Fate::Served, |(_, fate)| fate)
    }

    /// The store serves it; the answer stays here.
    fn take_effect(&mut self, number: usize) -> Result<(), Wrong> {
        let Asked { store, call, .. } = &self.waiting[number].asked;
        let (store, call) = (*store, call.clone());
        self.waiting[number].outcome = Some(self.perform(store, &call)?);
        Ok(())
    }

    fn perform(&mut self, store: usize, call: &Call) -> Result<Outcome, Wrong> {
        self.report.requests += 1;
        let (outcome, change) = self.vaults[store].serve(call);
        if let Some(change) = change {
            let before = self.oracles[store].promised().len();
            self.oracles[store].observe(&change, &self.vaults[store], &self.given)?;
            let after = self.oracles[store].promised().len();
            self.report.snapshots += u64::from(after > before);
            self.retirements += before.saturating_sub(after);
            if let Change::Deleted(key) = &change {
                self.report.deleted += u64::from(matches!(key.first_component(), "data" | "meta"));
                self.report.log_removed += u64::from(key.first_component() == "wal");
            }
        }
        Ok(outcome)
    }

    fn answer(&mut self, number: usize, what: &str) -> Result<(), Wrong> {
        let Waiting { asked, outcome } = self.waiting.remove(number);
        let outcome = outcome.unwrap_or_else(|| Err(dead(&asked.call)));
        let how = outcome.as_ref().err().map_or_else(|| "ok".to_owned(), |error| error.message.clone());
        self.reply(asked, outcome, &format!("{what}: {how}"))
    }

    fn fail(&mut self, number: usize, kind: Kind, why: &str) -> Result<(), Wrong> {
        let asked = self.waiting.remove(number).asked;
        let error = asked.call.fails(kind, why);
        self.reply(asked, Err(error), why)
    }

    fn reply(&mut self, asked: Asked, outcome: Outcome, how: &str) -> Result<(), Wrong> {
        let from = asked.life.0;
        self.trace.line(&format!("{} {} [{}] {how}", self.actors[from].name(), asked.call, asked.store));
        self.actors[from].enter();
        let _ = asked.reply.send(outcome); // whoever asked may have stopped waiting
        self.actors[from].settle(&mut self.quiet);
        self.gather(from)
    }

    /// A copy of it stays on its way.
    fn float(&mut self, number: usize) {
        let Asked { life, store, call, .. } = &self.waiting[number].asked;
        let floating = Floating { from: self.actors[life.0].name(), store: *store, call: call.clone() };
        self.floating.push(floating);
    }

    /// A request that nobody waits for takes effect.
    pub fn land(&mut self, number: usize) -> Result<(), Wrong> {
        let Floating { from, store, call } = self.floating.remove(number);
        let outcome = self.perform(store, &call)?;
        let how = outcome.err().map_or_else(|| "ok".to_owned(), |error| error.message);
        self.report.late += 1;
        self.trace.line(&format!("{from} {call} [{store}] lands late: {how}"));
        Ok(())
    }

    fn subject(&self, number: usize) -> String {
        self.waiting[number].asked.call.to_string()
    }

    /// The process is gone: of its requests some were lost, some are still on their way, and none is answered.
    pub fn crash(&mut self, number: usize) -> Result<(), Wrong> {
        self.trace.line(&format!("{} crashes", self.actors[number].name()));
        self.report.crashes += 1;
        for at in 0..self.waiting.len() {
            let waiting = &self.waiting[at];
            let theirs = waiting.asked.life.0 == number && waiting.outcome.is_none();
            if theirs && waiting.asked.call.changes() && self.dice.chance(5000) {
                self.float(at);
            }
        }
        self.silence(number);
        Ok(())
    }

    /// Ends a process whatever it does: from now on nothing that it asks is heard.
    pub fn silence(&mut self, number: usize) {
        if !self.actors[number].is_alive() {
            return;
        }
        self.actors[number].enter();
        self.net.kill(self.actors[number].life());
        let (theirs, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|waiting| waiting.asked.life.0 == number);
        self.waiting = others;
        for waiting in theirs {
            let lost = dead(&waiting.asked.call);
            let _ = waiting.asked.reply.send(Err(lost));
        }
        self.actors[number].settle(&mut self.quiet);
        // Whatever it still waits for is a matter of time: everything that it asks fails.
        for _ in 0..100 {
            if !self.actors[number].is_busy() || self.actors[number].finished().is_some() {
                break;
            }
            self.actors[number].advance(Duration::from_secs(3600), &mut self.quiet);
        }
        assert!(!self.actors[number].is_busy(), "{} does not end", self.actors[number].name());
        self.actors[number].end();
    }
}
