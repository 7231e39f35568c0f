//! The contract of [`ObjectStore`] as a test suite, for our stores and for others'.
//!
//! Call [`run`] from a test of your own; it panics where the store breaks the contract. Every case gets a store of
//! its own, which must be empty. About 1200 objects are made, 8 MiB the largest; a multi-threaded tokio runtime
//! makes the races real.
//!
//! ```
//! use std::sync::Arc;
//! use keepwell_storage::{Memory, ObjectStore, conformance};
//! # tokio::runtime::Builder::new_multi_thread().build().unwrap().block_on(async {
//! conformance::run(|| async { Arc::new(Memory::new()) as Arc<dyn ObjectStore> }).await;
//! # });
//! ```

mod listing;
mod objects;
mod races;

use std::sync::Arc;

use bytes::Bytes;

use crate::{Key, ObjectStore, StorageErrorKind, list_all};

/// Size of the large object: more than any buffer on the way, and not a multiple of a page.
const LARGE_BYTES: usize = 8 * 1024 * 1024 + 123;

/// Runs every case against a fresh, empty store each.
///
/// # Panics
///
/// Where the store breaks the contract; the message says how.
pub async fn run<F: Future<Output = Arc<dyn ObjectStore>>>(new_store: impl Fn() -> F) {
    objects::an_absent_object_is_not_found(new_store().await).await;
    objects::an_object_is_read_back_exactly(new_store().await).await;
    objects::ranges_are_exact(new_store().await).await;
    objects::what_is_too_large_is_refused(new_store().await).await;
    objects::every_key_is_a_name(new_store().await).await;
    objects::a_taken_name_stays_as_it_is(new_store().await).await;
    objects::deleting_is_idempotent(new_store().await).await;
    objects::a_key_beneath_an_object_harms_nothing(new_store().await).await;

    listing::a_listing_is_in_byte_order(new_store().await).await;
    listing::pages_join_without_gap_or_repetition(new_store().await).await;
    listing::a_page_starts_after_any_key(new_store().await).await;
    listing::a_listing_sees_every_finished_write(new_store().await).await;
    listing::half_a_component_is_no_prefix(new_store().await).await;

    races::one_of_many_creators_wins(new_store().await).await;
    races::readers_see_whole_objects(new_store().await).await;
    races::a_dropped_put_leaves_all_or_nothing(new_store().await).await;
}

fn key(text: &str) -> Key {
    text.parse().expect("the suite uses valid keys")
}

/// Bytes that differ everywhere between seeds and do not repeat within a page.
fn body(seed: u8, length: usize) -> Bytes {
    (0..length).map(|index| (index as u8) ^ ((index >> 8) as u8).wrapping_mul(31) ^ seed).collect()
}

async fn put(store: &dyn ObjectStore, name: &str, bytes: impl Into<Bytes>) {
    store.put_new(&key(name), bytes.into()).await.unwrap_or_else(|error| panic!("putting `{name}`: {error}"));
}

async fn get(store: &dyn ObjectStore, name: &str) -> Bytes {
    store.get(&key(name)).await.unwrap_or_else(|error| panic!("getting `{name}`: {error}"))
}

async fn keys(store: &dyn ObjectStore, prefix: &str) -> Vec<String> {
    let listed = list_all(store, prefix).await.unwrap_or_else(|error| panic!("listing `{prefix}`: {error}"));
    listed.into_iter().map(|info| info.key.to_string()).collect()
}

fn kind_of<T>(result: Result<T, crate::StorageError>) -> Option<StorageErrorKind> {
    result.err().map(|error| error.kind)
}
