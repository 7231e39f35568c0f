//! Recipes: what a writer keeps of its last snapshot so that the next one need not read what did not change.
//!
//! A recipe is a stream of the records of a map with the source's fingerprint beside each entry, sorted by key and made
//! to be read once, in step with a walk of the source. `docs/format.md` §12 has the bytes.

mod read;
mod write;

pub use read::{RecipeReader, RecipeRef, SubRecord};
pub use write::RecipeWriter;

const MAGIC: [u8; 8] = *b"KWRCPE\0\x01";
/// Plain bytes at which a frame ends, always between records.
const FRAME_PLAIN_BYTES: usize = 256 << 10;
/// Little is gained by more: records are short-lived, and most are like their neighbours.
const LEVEL: i32 = 1;
/// The fingerprint of a sub-key record, and of an entry whose source has none.
const NO_FINGERPRINT: [u8; 16] = [0; 16];
