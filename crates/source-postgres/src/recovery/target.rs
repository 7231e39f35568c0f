//! The moment that is wanted.

use std::fmt;

use crate::lsn::Lsn;

/// Whether what happened exactly at the target is wanted too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Bound {
    /// It is.
    #[default]
    Inclusive,
    /// It is not.
    Exclusive,
}

impl Bound {
    /// Whether recovery to a time ends before a transaction that ended then.
    pub(crate) fn ends(self, time: TargetTime, end: i64) -> bool {
        match self {
            Self::Inclusive => end > time.get(),
            Self::Exclusive => end >= time.get(),
        }
    }
}

/// A moment to recover to, with the microseconds that PostgreSQL knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TargetTime(i64);

impl TargetTime {
    /// From nanoseconds since 1970; `None` for what is finer than a microsecond.
    pub fn new(nanoseconds: i64) -> Option<Self> {
        (nanoseconds % 1000 == 0).then_some(Self(nanoseconds))
    }

    /// Nanoseconds since 1970.
    pub fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for TargetTime {
    /// As PostgreSQL reads it, in UTC and with the zone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&sql_time(self.0))
    }
}

/// A moment as PostgreSQL writes it, in UTC: `2026-11-21 12:04:10.550000+00`.
pub(crate) fn sql_time(nanoseconds: i64) -> String {
    let moment = jiff::Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or_default();
    moment.strftime("%Y-%m-%d %H:%M:%S%.6f+00").to_string()
}

/// Up to where a cluster is recovered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The end of the log.
    Latest,
    /// As soon as the cluster is consistent: the end of the base backup.
    Immediate,
    /// The last transaction that ended at this time or before.
    Time(TargetTime, Bound),
    /// A position.
    Lsn(Lsn, Bound),
    /// The end of a transaction.
    Xid(u32, Bound),
    /// A restore point that was given this name.
    Name(String),
}

impl Target {
    /// Name and value of PostgreSQL's setting for it; none for the end of the log.
    pub(crate) fn setting(&self) -> Option<(&'static str, String)> {
        match self {
            Self::Latest => None,
            Self::Immediate => Some(("recovery_target", "immediate".to_owned())),
            Self::Time(time, _) => Some(("recovery_target_time", time.to_string())),
            Self::Lsn(at, _) => Some(("recovery_target_lsn", at.to_string())),
            Self::Xid(xid, _) => Some(("recovery_target_xid", xid.to_string())),
            Self::Name(name) => Some(("recovery_target_name", name.clone())),
        }
    }

    /// Whether what is exactly at the target is included; `None` where that makes no difference.
    pub(crate) fn bound(&self) -> Option<Bound> {
        match self {
            Self::Time(_, bound) | Self::Lsn(_, bound) | Self::Xid(_, bound) => Some(*bound),
            Self::Latest | Self::Immediate | Self::Name(_) => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("the end of the log")?,
            Self::Immediate => f.write_str("the end of the base backup")?,
            Self::Time(time, _) => write!(f, "{time}")?,
            Self::Lsn(at, _) => write!(f, "{at}")?,
            Self::Xid(xid, _) => write!(f, "transaction {xid}")?,
            Self::Name(name) => write!(f, "the restore point `{name}`")?,
        }
        match self.bound() {
            Some(Bound::Exclusive) => f.write_str(", exclusive"),
            _ => Ok(()),
        }
    }
}
