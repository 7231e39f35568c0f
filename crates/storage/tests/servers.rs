//! The contract of a store against real servers.
//!
//! `KEEPWELL_TEST_SERVERS` names them, separated by spaces or commas; without it nothing is run, and the test says so.
//! `scripts/test.sh stores` runs all of them. Each server is started by `scripts/servers/NAME.sh` on a free port of its
//! own and stopped at the end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use keepwell_storage::{
    ConnectOptions, Credentials, Location, ObjectStore, Purpose, RetryPolicy, Retrying, Settings,
    conformance, connect,
};

type Store = Arc<dyn ObjectStore>;

/// A running server and what its script says about it.
struct Server {
    script: PathBuf,
    directory: tempfile::TempDir,
    values: BTreeMap<String, String>,
}

impl Server {
    /// Starts a server if it is wanted.
    fn start(name: &str) -> Option<Self> {
        #[expect(clippy::disallowed_methods, reason = "how the stage tells the tests what to run")]
        let wanted = std::env::var("KEEPWELL_TEST_SERVERS").unwrap_or_default();
        if !wanted.split([' ', ',']).any(|word| word == name) {
            println!("skipped: `{name}` is not in KEEPWELL_TEST_SERVERS");
            return None;
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../scripts/servers/{name}.sh"));
        let directory = tempfile::tempdir().expect("a temporary directory");
        let output = Command::new(&script)
            .arg("start")
            .arg(directory.path())
            .stderr(Stdio::inherit())
            .output()
            .unwrap_or_else(|error| panic!("`{}` cannot be run: {error}", script.display()));
        let text = String::from_utf8(output.stdout).expect("settings as text");
        assert!(output.status.success(), "the server `{name}` did not start: {text}");
        let values = text.lines().filter_map(|line| line.split_once('='));
        let values = values.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        Some(Self { script, directory, values })
    }

    fn value(&self, key: &str) -> &str {
        self.values.get(key).unwrap_or_else(|| panic!("the script says no {key}: {:?}", self.values))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let stopped = Command::new(&self.script).arg("stop").arg(self.directory.path()).status();
        assert!(stopped.is_ok_and(|status| status.success()) || std::thread::panicking(), "the server stops");
    }
}

/// Connects, as the binaries do: with another attempt after failures that may pass.
async fn open(location: &str, options: &ConnectOptions) -> Store {
    let location: Location = location.parse().unwrap_or_else(|error| panic!("{error:?}"));
    let store = connect(&location, options, Purpose::Create).await;
    let store = store.unwrap_or_else(|error| panic!("opening `{location}`: {error}: {:?}", error.hint));
    Arc::new(Retrying::new(store, RetryPolicy::default()))
}

/// Runs the suite, with a prefix of its own for every case.
async fn run_suite(base: &str, parameters: &str, options: &ConnectOptions) {
    let counter = AtomicU32::new(0);
    conformance::run(|| async {
        let case = counter.fetch_add(1, Ordering::Relaxed);
        open(&format!("{base}/suite/{case}{parameters}"), options).await
    })
    .await;
}

fn s3_options(server: &Server) -> ConnectOptions {
    let credentials = Credentials {
        access_key: Some(server.value("ACCESS_KEY").into()),
        secret_key: Some(server.value("SECRET_KEY").into()),
        ..Credentials::default()
    };
    let settings = Settings {
        endpoint: Some(server.value("ENDPOINT").into()),
        region: Some(server.value("REGION").into()),
        ..Settings::default()
    };
    ConnectOptions { settings, credentials, ..ConnectOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn ceph() {
    let Some(server) = Server::start("ceph") else { return };
    let options = s3_options(&server);
    run_suite(&format!("s3://{}", server.value("BUCKET")), "", &options).await;
    run_suite(&format!("s3://{}", server.value("BUCKET")), "/parts?part-size-mib=5", &options).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn moto() {
    let Some(server) = Server::start("moto") else { return };
    let options = s3_options(&server);
    run_suite(&format!("s3://{}", server.value("BUCKET")), "", &options).await;
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
