//! Retention rules as options of `forget` and as a table of a profile.

use std::str::FromStr;

use clap::Args;
use jiff::Span;
use keepwell_catalog::retention::{RetentionPolicy, Slots};
use serde::Deserialize;

use crate::text;

/// Rules add up: a snapshot stays if any of them keeps it.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[command(next_help_heading = "What to keep (counts may be `all`)")]
pub struct RetentionArgs {
    /// The newest N snapshots of each dataset
    #[arg(long = "keep-last", value_name = "N")]
    pub last: Option<Slots>,
    /// One snapshot of each of the newest N hours that have any
    #[arg(long = "keep-hourly", value_name = "N")]
    pub hourly: Option<Slots>,
    /// One of each of the newest N days
    #[arg(long = "keep-daily", value_name = "N")]
    pub daily: Option<Slots>,
    /// One of each of the newest N weeks
    #[arg(long = "keep-weekly", value_name = "N")]
    pub weekly: Option<Slots>,
    /// One of each of the newest N months
    #[arg(long = "keep-monthly", value_name = "N")]
    pub monthly: Option<Slots>,
    /// One of each of the newest N years
    #[arg(long = "keep-yearly", value_name = "N")]
    pub yearly: Option<Slots>,
    /// Everything up to this age, such as 2w or 6mo, counted back from the newest snapshot
    #[arg(long = "keep-within", value_name = "AGE")]
    pub within: Option<Age>,
    /// One snapshot per hour up to this age
    #[arg(long = "keep-within-hourly", value_name = "AGE")]
    pub within_hourly: Option<Age>,
    /// One per day up to this age
    #[arg(long = "keep-within-daily", value_name = "AGE")]
    pub within_daily: Option<Age>,
    /// One per week up to this age
    #[arg(long = "keep-within-weekly", value_name = "AGE")]
    pub within_weekly: Option<Age>,
    /// One per month up to this age
    #[arg(long = "keep-within-monthly", value_name = "AGE")]
    pub within_monthly: Option<Age>,
    /// One per year up to this age
    #[arg(long = "keep-within-yearly", value_name = "AGE")]
    pub within_yearly: Option<Age>,
    /// Every snapshot with this tag; may be repeated
    #[arg(long = "keep-tag", value_name = "TAG")]
    pub tags: Vec<String>,
}

impl RetentionArgs {
    /// As the library takes it.
    pub fn policy(&self) -> RetentionPolicy {
        let span = |age: Option<Age>| age.map(|a| a.0);
        RetentionPolicy {
            last: self.last,
            hourly: self.hourly,
            daily: self.daily,
            weekly: self.weekly,
            monthly: self.monthly,
            yearly: self.yearly,
            within: span(self.within),
            within_hourly: span(self.within_hourly),
            within_daily: span(self.within_daily),
            within_weekly: span(self.within_weekly),
            within_monthly: span(self.within_monthly),
            within_yearly: span(self.within_yearly),
            tags: self.tags.clone(),
        }
    }
}

/// A length of calendar time.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
pub struct Age(Span);

impl Age {
    /// The length.
    pub fn span(self) -> Span {
        self.0
    }
}

impl TryFrom<String> for Age {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Age {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text::parse_span(text).map(Self)
    }
}
