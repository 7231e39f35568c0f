//! Servers that cannot create an object only where there is none: a repository there is backed up to and restored from, and
//! pruned by whoever vouches that nothing else is at work.
//!
//! `KEEPWELL_TEST_SERVERS` names the servers.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use backup_core::{Cache, PruneOptions};
use keepwell_e2e::server::{Server, open};
use keepwell_e2e::{tree, within, world};
use keepwell_storage::{ConnectOptions, Credentials, RetryPolicy, Settings};
use world::{LIMITS, assert_sound, back_up, forget, restored, snapshot_of, thorough};

const LARGE: usize = 600 << 10;

async fn used_alone(place: &str, options: &ConnectOptions) {
    let store = open(place, options, RetryPolicy::default()).await;
    assert!(!store.capabilities().conditional_create, "{place}");
    let key = world::create(&*store).await;
    let repository = world::open(Arc::clone(&store), &key, Cache::memory(), LIMITS).await.unwrap();
    let source = tempfile::tempdir().unwrap();
    let dir = source.path();
    for n in 0..3 {
        tree::put(dir, &format!("{n}"), n, LARGE);
    }
    let report = back_up(&repository, dir).await.unwrap();
    let first = snapshot_of(&repository, &report).await;
    tree::put(dir, "1", 11, LARGE);
    let expected = tree::read(dir);
    let report = back_up(&repository, dir).await.unwrap();
    let second = snapshot_of(&repository, &report).await;
    forget(&repository, &[first]).await.unwrap();

    let refused = repository.prune(thorough()).await.unwrap_err().to_string();
    assert!(refused.contains("has no conditional create") && refused.contains("--exclusive"), "{refused}");
    let report = repository.prune(PruneOptions { exclusive: true, ..thorough() }).await.unwrap();
    assert!(report.bytes_freed > 0, "{report:?}");
    tree::assert_same(&expected, &restored(&repository, &second, dir).await, place);
    assert_sound(&repository, place).await;
    // Another host, which has seen nothing of it.
    let again = world::open(store, &key, Cache::memory(), LIMITS).await.unwrap();
    let report = back_up(&again, dir).await.unwrap();
    let third = snapshot_of(&again, &report).await;
    tree::assert_same(&expected, &restored(&again, &third, dir).await, place);
}

#[test]
fn a_webdav_server_is_pruned_by_one_alone() {
    within(Duration::from_secs(600), async {
        let Some(server) = Server::start("webdav") else { return };
        let credentials =
            Credentials { password: Some(server.value("PASSWORD").into()), ..Credentials::default() };
        let settings = Settings { user: Some(server.value("USER").into()), ..Settings::default() };
        let options = ConnectOptions { settings, credentials, ..ConnectOptions::default() };
        let base = server.value("ENDPOINT").replace("http://", "webdav://");
        used_alone(&format!("{}/alone", base.trim_end_matches('/')), &options).await;
    });
}

#[test]
fn an_sftp_server_without_hard_links_is_pruned_by_one_alone() {
    within(Duration::from_secs(600), async {
        let Some(server) = Server::start("sftp") else { return };
        let settings = Settings {
            identity_file: Some(server.value("KEY_FILE").into()),
            known_hosts_file: Some(server.value("KNOWN_HOSTS").into()),
            ..Settings::default()
        };
        let options = ConnectOptions { settings, ..ConnectOptions::default() };
        let [user, host, port, root] = ["USER", "HOST", "PLAIN_PORT", "ROOT"].map(|key| server.value(key));
        used_alone(&format!("sftp://{user}@{host}:{port}{root}/alone"), &options).await;
    });
}

#[test]
fn a_bucket_whose_condition_is_not_trusted_is_pruned_by_one_alone() {
    within(Duration::from_secs(600), async {
        let Some(server) = Server::start("moto") else { return };
        let mut options = server.s3_options(None);
        options.settings.conditional_create = Some(false);
        used_alone(&format!("s3://{}/alone", server.value("BUCKET")), &options).await;
    });
}
