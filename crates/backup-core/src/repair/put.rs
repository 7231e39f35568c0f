//! Putting back an object under its own name.

use bytes::Bytes;
use keepwell_storage::{Key, ObjectStore};

use crate::Error;
use crate::repository::fetch_bounded;

/// Makes the object have these bytes, the very ones that it was made of, unless what is there `is_sound`. `true` if it
/// was put.
///
/// Beside fences for ends that nobody can read the one place where a name is used again. A store has no way to
/// replace an object, so a damaged one is deleted first: a crash in between leaves it missing, which the next repair
/// finds, and nothing lost, because nobody could use what was there and the copy has the bytes. (What a commit protects is
/// held by another one meanwhile: [`super::hold`].)
pub(super) async fn put_exactly(
    store: &dyn ObjectStore,
    key: &Key,
    bytes: Bytes,
    is_sound: impl Fn(&[u8]) -> bool,
) -> Result<bool, Error> {
    match fetch_bounded(store, key).await {
        Ok(found) if found == bytes || is_sound(&found) => return Ok(false),
        Ok(_) | Err(Error::Damaged { .. }) => store.delete(key).await?,
        Err(Error::Storage(error)) if error.is_not_found() => {}
        Err(error) => return Err(error),
    }
    match store.put_new(key, bytes.clone()).await {
        Ok(()) => Ok(true),
        // The answer to an earlier attempt was lost, or somebody else was at it.
        Err(error) if error.is_already_exists() && fetch_bounded(store, key).await? == bytes => Ok(true),
        Err(error) => Err(error.into()),
    }
}
