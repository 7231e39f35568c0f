//! The contract of a store against real servers.
//!
//! `KEEPWELL_TEST_SERVERS` names them, separated by spaces or commas; without it nothing is run, and the test says so.
//! `scripts/test.sh stores` runs them. Each server is started by `scripts/servers/NAME.sh` and stopped at the end.
#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use keepwell_e2e::server::{Server, open};
use keepwell_storage::{
    ConnectOptions, Credentials, Key, ObjectStore, ProbeOptions, ProbeReport, RetryPolicy, Right, Role,
    Settings, StorageErrorKind, conformance, list_all, probe,
};

#[expect(clippy::disallowed_methods, reason = "compared with the clock of a real server")]
fn now() -> SystemTime {
    SystemTime::now()
}

async fn examine(store: &Arc<dyn ObjectStore>, role: Role) -> ProbeReport {
    probe(store, &ProbeOptions { role, prefix: "rights", now: &now }).await.unwrap()
}

/// Runs the suite, with a prefix of its own for every case.
async fn run_suite(base: &str, parameters: &str, options: &ConnectOptions) {
    let counter = AtomicU32::new(0);
    conformance::run(|| async {
        let case = counter.fetch_add(1, Ordering::Relaxed);
        open(&format!("{base}/suite/{case}{parameters}"), options, RetryPolicy::default()).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ceph() {
    let Some(server) = Server::start("ceph") else { return };
    let options = server.s3_options(None);
    run_suite(&format!("s3://{}", server.value("BUCKET")), "", &options).await;
    run_suite(&format!("s3://{}", server.value("BUCKET")), "/parts?part-size-mib=5", &options).await;
    // Where it keeps versions it ignores the condition.
    let versioned = format!("s3://{}", server.value("VERSIONED_BUCKET"));
    run_suite(&versioned, "?conditional-create=false", &options).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn moto() {
    let Some(server) = Server::start("moto") else { return };
    let options = server.s3_options(None);
    run_suite(&format!("s3://{}", server.value("BUCKET")), "", &options).await;
    run_suite(&format!("s3://{}", server.value("VERSIONED_BUCKET")), "", &options).await;
    // In parts without the condition, on which nothing here relies.
    let parts = "/parts?part-size-mib=5&conditional-create=false";
    run_suite(&format!("s3://{}", server.value("BUCKET")), parts, &options).await;
}

fn azure_options(server: &Server, credentials: Credentials) -> ConnectOptions {
    let settings = Settings {
        endpoint: Some(server.value("ENDPOINT").into()),
        account: Some(server.value("ACCOUNT").into()),
        ..Settings::default()
    };
    ConnectOptions { settings, credentials, ..ConnectOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn azurite() {
    let Some(server) = Server::start("azurite") else { return };
    let credentials = Credentials { account_key: Some(server.value("KEY").into()), ..Credentials::default() };
    let options = azure_options(&server, credentials);
    let base = format!("azblob://{}", server.value("BUCKET"));
    run_suite(&base, "", &options).await;
    run_suite(&base, "/parts?part-size-mib=5", &options).await;
    let store = open(&format!("{base}/rights"), &options, RetryPolicy::default()).await;
    let report = examine(&store, Role::Writer).await;
    assert_eq!((report.rights.delete, report.rights.overwrite), (Right::Yes, Right::Yes));
    assert_eq!(report.problems.len(), 2, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn azurite_with_rights_as_a_policy_for_writers_has_them() {
    let Some(server) = Server::start("azurite") else { return };
    let credentials =
        Credentials { sas_token: Some(server.value("CREATE_ONLY").into()), ..Credentials::default() };
    let options = azure_options(&server, credentials);
    let place = format!("azblob://{}/rights", server.value("BUCKET"));
    let store = open(&place, &options, RetryPolicy::default()).await;
    // Azure refuses a taken name for the right to replace that is missing: that must not look like one to create.
    let key: Key = "sessions/00c0ffee00c0ffee/0000000001/0000000000".parse().unwrap();
    store.put_new(&key, "first".into()).await.unwrap();
    let taken = store.put_new(&key, "second".into()).await.unwrap_err();
    assert!(taken.is_already_exists(), "{taken}");
    assert_eq!(store.get(&key).await.unwrap(), "first");
    // What would go in parts by the bounds of other services goes whole.
    let pack: Key = "data/00/pack".parse().unwrap();
    store.put_new(&pack, vec![7; 70 << 20].into()).await.unwrap();
    assert_eq!(store.head(&pack).await.unwrap().size, 70 << 20);

    let report = examine(&store, Role::Writer).await;
    assert_eq!(report.problems, [""; 0]);
    assert!(report.conditional_create(), "{report:?}");
    assert_eq!((report.rights.delete, report.rights.overwrite), (Right::No, Right::No));
    // A signature is for all of a container.
    assert_eq!((report.rights.read, report.rights.read_packs), (Right::Yes, Right::Yes));
    let says = |part| report.notes.iter().any(|note| note.contains(part));
    assert!(says("Not checked: lifecycle rules") && says("management-policy show"), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn gcs() {
    let Some(server) = Server::start("gcs") else { return };
    let credentials = Credentials { token: Some("any".into()), ..Credentials::default() };
    let settings = Settings { endpoint: Some(server.value("ENDPOINT").into()), ..Settings::default() };
    let options = ConnectOptions { settings, credentials, ..ConnectOptions::default() };
    run_suite(&format!("gs://{}", server.value("BUCKET")), "", &options).await;
    let place = format!("gs://{}/rights", server.value("BUCKET"));
    let store = open(&place, &options, RetryPolicy::default()).await;
    let report = examine(&store, Role::Keeper).await;
    assert_eq!(report.problems, [""; 0]);
    assert_eq!((report.rights.delete, report.rights.overwrite), (Right::Yes, Right::Yes));
    let bucket = report.bucket.unwrap();
    assert_eq!((bucket.lifecycle_rules, bucket.undelete_days), (Some(Vec::new()), Some(7)));

    let rules = r#"{"versioning": {"enabled": true}, "lifecycle": {"rule": [
        {"action": {"type": "Delete"}, "condition": {"age": 30, "matchesPrefix": ["rights/"]}}]}}"#;
    let url = format!("{}/storage/v1/b/{}", server.value("ENDPOINT"), server.value("BUCKET"));
    let set = ["-sSf", "-o", "/dev/null", "-X", "PATCH", "-H", "Content-Type: application/json", "-d", rules];
    assert!(Command::new("curl").args(set).arg(&url).status().unwrap().success());
    let report = examine(&store, Role::Keeper).await;
    let [problem] = &report.problems[..] else { panic!("{report:?}") };
    assert!(problem.contains("`1: Delete` deletes objects of this repository 30 days"), "{problem}");
    assert!(report.findings.iter().any(|text| text.contains("keeps old versions")), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn webdav() {
    let Some(server) = Server::start("webdav") else { return };
    let credentials =
        Credentials { password: Some(server.value("PASSWORD").into()), ..Credentials::default() };
    let settings = Settings { user: Some(server.value("USER").into()), ..Settings::default() };
    let options = ConnectOptions { settings, credentials, ..ConnectOptions::default() };
    let base = server.value("ENDPOINT").replace("http://", "webdav://");
    run_suite(base.trim_end_matches('/'), "", &options).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sftp() {
    let Some(server) = Server::start("sftp") else { return };
    let settings = Settings {
        identity_file: Some(server.value("KEY_FILE").into()),
        known_hosts_file: Some(server.value("KNOWN_HOSTS").into()),
        ..Settings::default()
    };
    let options = ConnectOptions { settings, ..ConnectOptions::default() };
    let [user, host, port, root] = ["USER", "HOST", "PORT", "ROOT"].map(|key| server.value(key));
    run_suite(&format!("sftp://{user}@{host}:{port}{root}"), "", &options).await;
    // Servers of others have no hard links.
    let plain_port = server.value("PLAIN_PORT");
    run_suite(&format!("sftp://{user}@{host}:{plain_port}{root}/plain"), "", &options).await;

    let small = tempfile::tempdir().unwrap();
    let mount =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(small.path()).output();
    if !mount.is_ok_and(|output| output.status.success()) {
        println!("skipped: a full disk, since mounting a tmpfs is not permitted here");
        return;
    }
    let place = format!("sftp://{user}@{host}:{port}{}/repository", small.path().display());
    let store = open(&place, &options, RetryPolicy::default()).await;
    let refused = store.put_new(&"data/large".parse().unwrap(), vec![7; 4 << 20].into()).await.unwrap_err();
    let left = list_all(&*store, "").await.unwrap();
    store.put_new(&"data/small".parse().unwrap(), vec![7; 1000].into()).await.unwrap();
    assert!(Command::new("umount").arg("-l").arg(small.path()).status().unwrap().success());
    assert_eq!(refused.kind, StorageErrorKind::NoSpace, "{refused}");
    assert!(left.is_empty(), "{left:?}");
}
