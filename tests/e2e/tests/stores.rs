//! The contract of a store against real servers.
//!
//! `KEEPWELL_TEST_SERVERS` names them, separated by spaces or commas; without it nothing is run, and the test says so.
//! `scripts/test.sh stores` runs them. Each server is started by `scripts/servers/NAME.sh` and stopped at the end.

use std::sync::atomic::{AtomicU32, Ordering};

use keepwell_e2e::server::{Server, open};
use keepwell_storage::{ConnectOptions, Credentials, RetryPolicy, Settings, conformance};

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
}

#[tokio::test(flavor = "multi_thread")]
async fn moto() {
    let Some(server) = Server::start("moto") else { return };
    run_suite(&format!("s3://{}", server.value("BUCKET")), "", &server.s3_options(None)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn azurite() {
    let Some(server) = Server::start("azurite") else { return };
    let credentials = Credentials { account_key: Some(server.value("KEY").into()), ..Credentials::default() };
    let settings = Settings {
        endpoint: Some(server.value("ENDPOINT").into()),
        account: Some(server.value("ACCOUNT").into()),
        ..Settings::default()
    };
    let options = ConnectOptions { settings, credentials, ..ConnectOptions::default() };
    let base = format!("azblob://{}", server.value("BUCKET"));
    run_suite(&base, "", &options).await;
    run_suite(&base, "/parts?part-size-mib=5", &options).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gcs() {
    let Some(server) = Server::start("gcs") else { return };
    let credentials = Credentials { token: Some("any".into()), ..Credentials::default() };
    let settings = Settings { endpoint: Some(server.value("ENDPOINT").into()), ..Settings::default() };
    let options = ConnectOptions { settings, credentials, ..ConnectOptions::default() };
    run_suite(&format!("gs://{}", server.value("BUCKET")), "", &options).await;
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
}
