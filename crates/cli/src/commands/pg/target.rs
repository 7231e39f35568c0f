//! The moment that is asked for on the command line.

use anyhow::Result;
use keepwell_source_postgres::lsn::{Lsn, Timeline};
use keepwell_source_postgres::recovery::{Bound, Target};

use super::moment;
use crate::exit::Complaint;

/// Up to where to recover.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Recover to")]
pub struct TargetArgs {
    /// A time, with its zone: `2026-11-21 12:04:10+00`
    #[arg(long, visible_alias = "at", value_name = "TIME", group = "target")]
    to_time: Option<String>,
    /// A position in the WAL, such as 16/B374D848
    #[arg(long, value_name = "LSN", group = "target")]
    to_lsn: Option<Lsn>,
    /// The end of this transaction
    #[arg(long, value_name = "XID", group = "target")]
    to_xid: Option<u64>,
    /// The restore point of this name, the last one
    #[arg(long, value_name = "NAME", group = "target")]
    to_name: Option<String>,
    /// The end of the base backup
    #[arg(long, group = "target")]
    to_immediate: bool,
    /// The last commit that was archived; the default
    #[arg(long, group = "target")]
    to_latest: bool,
    /// Stop before what is exactly at the target
    #[arg(long)]
    exclusive: bool,
    /// The zone of a time that has none, such as Europe/Berlin
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
    /// The timeline to follow [default: the newest]
    #[arg(long, value_name = "NUMBER")]
    pub timeline: Option<Timeline>,
}

impl TargetArgs {
    /// What is meant.
    pub fn target(&self) -> Result<Target> {
        let bound = if self.exclusive { Bound::Exclusive } else { Bound::Inclusive };
        let target = if let Some(text) = &self.to_time {
            Target::Time(moment::parse(text, self.time_zone.as_deref())?, bound)
        } else if let Some(at) = self.to_lsn {
            Target::Lsn(at, bound)
        } else if let Some(xid) = self.to_xid {
            // `pg_current_xact_id` counts on where the log has 32 bits.
            Target::Xid((xid & 0xffff_ffff) as u32, bound)
        } else if let Some(name) = &self.to_name {
            Target::Name(name.clone())
        } else if self.to_immediate {
            Target::Immediate
        } else {
            Target::Latest
        };
        let bounded = matches!(target, Target::Time(..) | Target::Lsn(..) | Target::Xid(..));
        if self.exclusive && !bounded {
            return Err(Complaint::usage("`--exclusive` needs a time, a position or a transaction").into());
        }
        if self.time_zone.is_some() && self.to_time.is_none() {
            return Err(Complaint::usage("`--time-zone` needs `--to-time`").into());
        }
        if matches!(&target, Target::Name(name) if name.is_empty() || name.len() > 63) {
            return Err(Complaint::usage("the name of a restore point has 1 to 63 bytes").into());
        }
        Ok(target)
    }
}
