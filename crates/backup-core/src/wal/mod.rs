//! Archived write-ahead logs (format §15): pieces of a database's log, each sealed and signed by itself.
//!
//! Pieces need no session and no commit: each is whole and durable the moment it is stored, and says by its name what
//! it is. Nothing here knows any database; positions are files and offsets.

mod copy;
mod reader;
mod trim;
mod writer;

pub use copy::WalCopyReport;
pub use reader::{WalPiece, WalReader};
pub use trim::{WalFloor, WalTrimReport};
pub use writer::{Archived, WalWriter};

#[cfg(test)]
mod tests;
