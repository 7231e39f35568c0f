//! Every store, and every wrapper around one, keeps the contract.

use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use keepwell_storage::{
    Fault, Faulty, LocalFs, LocalOptions, Memory, ObjectStore, RateLimits, Recording, RetryPolicy, Retrying,
    Throttled, conformance,
};

type Store = Arc<dyn ObjectStore>;

async fn run_in_memory(wrap: impl Fn(Memory) -> Store) {
    conformance::run(|| async { wrap(Memory::new()) }).await;
}

async fn run_in_directories(base: &Path) {
    let (counter, options) = (AtomicU32::new(0), LocalOptions::default());
    conformance::run(|| async {
        let path = base.join(counter.fetch_add(1, Ordering::Relaxed).to_string());
        Arc::new(LocalFs::create(path, &options).await.expect("a new directory")) as Store
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory() {
    run_in_memory(|memory| Arc::new(memory)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn local_fs_on_the_disk_of_the_temporary_directory() {
    let directory = tempfile::tempdir().unwrap();
    run_in_directories(directory.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn local_fs_on_tmpfs() {
    let Ok(directory) = tempfile::tempdir_in("/dev/shm") else {
        println!("skipped: no /dev/shm here");
        return;
    };
    run_in_directories(directory.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recording() {
    run_in_memory(|memory| Arc::new(Recording::new(memory))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn throttled() {
    let rate = NonZeroU64::new(10 << 30);
    let limits = RateLimits { upload_bytes_per_second: rate, download_bytes_per_second: rate };
    run_in_memory(|memory| Arc::new(Throttled::new(memory, limits))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faulty_without_a_fault() {
    run_in_memory(|memory| Arc::new(Faulty::new(memory, Fault::None))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retrying_hides_single_faults_and_lost_answers() {
    let delay = Duration::from_millis(1);
    let policy = RetryPolicy { attempts: 3, first_delay: delay, max_delay: delay };
    for call in 1..8 {
        for fault in [Fault::Once(call), Fault::LostResponse(call)] {
            run_in_memory(|memory| Arc::new(Retrying::new(Faulty::new(memory, fault), policy))).await;
        }
    }
}
