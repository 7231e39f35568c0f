//! Calendar slots: hours, days, ISO weeks, months and years of a time zone.

use jiff::{Span, Zoned};

use super::{RetentionPolicy, Slots};

/// A rule that keeps one snapshot per slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tier {
    Hourly,
    Daily,
    Weekly,
    Monthly,
    Yearly,
}

/// One slot of a tier, in calendar order. Only slots of the same tier are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot {
    year: i16,
    /// Month, or ISO week.
    part: i8,
    day: i8,
    hour: i8,
    /// Seconds west of UTC: where the clock is set back an hour happens twice, first in the eastern offset.
    west: i32,
}

impl Tier {
    pub(super) const ALL: [Tier; 5] = [Tier::Hourly, Tier::Daily, Tier::Weekly, Tier::Monthly, Tier::Yearly];

    pub(super) fn name(self) -> &'static str {
        match self {
            Tier::Hourly => "hourly",
            Tier::Daily => "daily",
            Tier::Weekly => "weekly",
            Tier::Monthly => "monthly",
            Tier::Yearly => "yearly",
        }
    }

    pub(super) fn slots(self, policy: &RetentionPolicy) -> Option<Slots> {
        match self {
            Tier::Hourly => policy.hourly,
            Tier::Daily => policy.daily,
            Tier::Weekly => policy.weekly,
            Tier::Monthly => policy.monthly,
            Tier::Yearly => policy.yearly,
        }
    }

    pub(super) fn within(self, policy: &RetentionPolicy) -> Option<Span> {
        match self {
            Tier::Hourly => policy.within_hourly,
            Tier::Daily => policy.within_daily,
            Tier::Weekly => policy.within_weekly,
            Tier::Monthly => policy.within_monthly,
            Tier::Yearly => policy.within_yearly,
        }
    }

    /// The slot that a time falls in.
    pub(super) fn slot(self, time: &Zoned) -> Slot {
        let year = Slot { year: time.year(), part: 0, day: 0, hour: 0, west: 0 };
        match self {
            Tier::Yearly => year,
            Tier::Monthly => Slot { part: time.month(), ..year },
            Tier::Weekly => {
                let week = time.date().iso_week_date();
                Slot { year: week.year(), part: week.week(), ..year }
            }
            Tier::Daily => Slot { part: time.month(), day: time.day(), ..year },
            Tier::Hourly => Slot {
                part: time.month(),
                day: time.day(),
                hour: time.hour(),
                west: -time.offset().seconds(),
                ..year
            },
        }
    }

    /// The slot in words.
    pub(super) fn label(self, slot: Slot) -> String {
        let Slot { year, part, day, hour, west } = slot;
        match self {
            Tier::Yearly => format!("{year:04}"),
            Tier::Monthly => format!("{year:04}-{part:02}"),
            Tier::Weekly => format!("{year:04}-W{part:02}"),
            Tier::Daily => format!("{year:04}-{part:02}-{day:02}"),
            Tier::Hourly => format!("{year:04}-{part:02}-{day:02}T{hour:02}{}", offset(-west)),
        }
    }
}

/// `+02:00`; the seconds that some historic offsets have are left out.
fn offset(seconds: i32) -> String {
    let sign = if seconds < 0 { '-' } else { '+' };
    let minutes = seconds.unsigned_abs() / 60;
    format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60)
}
