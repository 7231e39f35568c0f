//! The archived log as recovery sees it: which files there are, which way it goes through the timelines, what is in it.

mod map;
mod records;
mod search;
mod whole;

pub use map::{Gap, LogMap, Reach};
pub use records::{Ending, Record, RecordKind, Records};
pub use search::LogReader;
pub(crate) use whole::unfinished;
