//! Writing into a repository: dedup, packs, index segments, sessions. Shared by backup, prune and copy.

mod budget;
mod compressor;
mod known;
mod packer;
mod session;
mod uploads;

pub(crate) use budget::{Budget, PACK_BYTES_MIN, buffer_bytes};
pub(crate) use known::Known;
pub(crate) use packer::{OWN_FRAME_MIN, PackSettings, Packer};
pub(crate) use session::{BEAT_EVERY, Ending, Session, fence, put_claim};
pub(crate) use uploads::{SEGMENT_ENTRIES_MAX, Uploads, name_of};
