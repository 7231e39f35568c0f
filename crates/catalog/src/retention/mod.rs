//! Retention: which snapshots of a store stay, and why (design §4).
//!
//! [`decide`] looks at every dataset of every host by itself. A *credible* snapshot is complete and not flagged; only
//! credible ones count for the rules, so that neither a partial capture nor a wrong clock pushes a good one out.
//!
//! **Rules.** `last` keeps the newest by commit order. `hourly` to `yearly` divide time into calendar slots (ISO weeks)
//! by capture time in the dataset's zone, and keep one snapshot in each of the newest slots that have any. The
//! `within` rules do the same for all slots up to an age, counted back from the newest credible snapshot, so that
//! nothing fades away while no new backups arrive.
//!
//! **Which one of a slot.** The first one committed, until a later one of the slot is proven: then the last proven
//! one. Most tools keep the newest of a slot; whoever takes over a host could then replace the history of the running
//! day, month and year with one bad snapshot. Ours waits until someone has read the newcomer.
//!
//! **Flags.** A snapshot is flagged if its clock is contradicted: it was captured more than an hour after its commit or
//! after now, more than a day after the store received it, or more than an hour before one with a credible clock that
//! was committed earlier. A complete one is also flagged if it is at least 80 % smaller than the complete one before
//! it. A flagged snapshot stays, occupies no slot, and never makes another one go.
//!
//! **Damage.** A snapshot that is known to lack something stays as long as it would if it were whole, and counts for
//! nothing: the rules keep of the others what they would keep if it were not there.
//!
//! **Never removed**, whatever the policy: the last complete and the last proven snapshot, the newest credible one
//! before each flagged one, incomplete ones since the last complete one, what is to be kept until later or for ever,
//! and everything if the policy has no rule.
//!
//! **Invariant:** deciding again about what stayed removes nothing more.

mod decide;
mod slot;

use std::str::FromStr;

use jiff::Span;
use keepwell_crypto::SnapshotId;
use serde::Deserialize;

pub use decide::decide;

/// How many slots a rule keeps.
///
/// As a setting a number, or `all`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "SlotsText")]
pub enum Slots {
    /// The newest so many that have a snapshot.
    Newest(u32),
    /// All of them.
    Forever,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a number of snapshots, or `all`")]
enum SlotsText {
    Number(u32),
    Text(String),
}

impl TryFrom<SlotsText> for Slots {
    type Error = String;

    fn try_from(slots: SlotsText) -> Result<Self, String> {
        match slots {
            SlotsText::Number(n) => Ok(Self::Newest(n)),
            SlotsText::Text(text) => text.parse(),
        }
    }
}

impl FromStr for Slots {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::Forever),
            _ => text.parse().map(Self::Newest).map_err(|_| format!("`{text}` is no number, and not `all`")),
        }
    }
}

impl Slots {
    fn count(self) -> usize {
        match self {
            Slots::Newest(count) => count as usize,
            Slots::Forever => usize::MAX,
        }
    }
}

/// What to keep. Rules add up: a snapshot stays if any of them keeps it. Without any rule everything stays.
#[derive(Clone, Debug, Default)]
pub struct RetentionPolicy {
    /// The newest snapshots, by commit order.
    pub last: Option<Slots>,
    /// One snapshot per hour.
    pub hourly: Option<Slots>,
    /// One per day.
    pub daily: Option<Slots>,
    /// One per ISO week.
    pub weekly: Option<Slots>,
    /// One per month.
    pub monthly: Option<Slots>,
    /// One per year.
    pub yearly: Option<Slots>,
    /// Everything up to this age. Calendar units count in the dataset's zone.
    pub within: Option<Span>,
    /// One snapshot per hour up to this age.
    pub within_hourly: Option<Span>,
    /// One per day up to this age.
    pub within_daily: Option<Span>,
    /// One per ISO week up to this age.
    pub within_weekly: Option<Span>,
    /// One per month up to this age.
    pub within_monthly: Option<Span>,
    /// One per year up to this age.
    pub within_yearly: Option<Span>,
    /// Every snapshot that carries one of these tags.
    pub tags: Vec<String>,
}

/// What retention needs to know about a snapshot. Checkpoints are no candidates.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The snapshot.
    pub id: SnapshotId,
    /// Dataset; with the host it says which snapshots are counted together.
    pub dataset: String,
    /// Host that the data came from. Give all the same host to count a dataset over hosts.
    pub host: String,
    /// End of the capture by the writer's clock, in nanoseconds since 1970.
    pub capture: i64,
    /// Time of the commit by the clock of whoever signed it, in nanoseconds since 1970.
    pub commit_time: i64,
    /// When the store received it, by its own clock; `None` where it does not tell.
    pub stored: Option<i64>,
    /// Position among all commits of the store. What is newer follows this order, never a writer's clock.
    pub commit_order: u64,
    /// The writer says that the capture is whole, and every object has the size and hash that it should.
    pub complete: bool,
    /// Someone who holds the data key has read all of it.
    pub proven: bool,
    /// It is known to lack something. One that is proven is not.
    pub damaged: bool,
    /// Its tags.
    pub tags: Vec<String>,
    /// Not to be removed before this time, in nanoseconds since 1970.
    pub keep_until: Option<i64>,
    /// Never to be removed.
    pub keep_forever: bool,
    /// Bytes of its content; `None` where they cannot be compared with those of the one before it.
    pub logical_bytes: Option<u64>,
}

/// Whether a snapshot stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The snapshot.
    pub id: SnapshotId,
    /// It stays.
    pub keep: bool,
    /// It stays by a rule of the policy, and not only because of what always stays.
    pub by_rule: bool,
    /// Why it is not trusted to fill a slot: `captured in the future`. The first of the reasons says so too.
    pub anomaly: Option<String>,
    /// Why, for people: `daily 2026-11-20 (3 of 30)`. At least one.
    pub reasons: Vec<String>,
}

impl RetentionPolicy {
    /// Whether no rule can keep anything. Such a policy keeps everything.
    pub fn is_empty(&self) -> bool {
        let counts = [self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly];
        let spans = [
            &self.within,
            &self.within_hourly,
            &self.within_daily,
            &self.within_weekly,
            &self.within_monthly,
            &self.within_yearly,
        ];
        counts.iter().flatten().all(|slots| slots.count() == 0)
            && spans.iter().all(|span| span.is_none())
            && self.tags.is_empty()
    }
}

#[cfg(test)]
mod tests;
