//! Real servers, started by `scripts/servers`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use keepwell_storage::{
    ConnectOptions, Credentials, Location, ObjectStore, Purpose, RetryPolicy, Retrying, Settings, connect,
};

/// A running server and what its script says about it; it is stopped when this is dropped.
#[derive(Debug)]
pub struct Server {
    script: PathBuf,
    directory: tempfile::TempDir,
    values: BTreeMap<String, String>,
}

impl Server {
    /// Starts the server `scripts/servers/NAME.sh`, on a free port of its own, if `KEEPWELL_TEST_SERVERS` names it.
    ///
    /// # Panics
    ///
    /// If it is wanted and does not start.
    pub fn start(name: &str) -> Option<Self> {
        #[expect(clippy::disallowed_methods, reason = "how the stage tells the tests what to run")]
        let wanted = std::env::var("KEEPWELL_TEST_SERVERS").unwrap_or_default();
        if !wanted.split([' ', ',']).any(|word| word == name) {
            println!("skipped: `{name}` is not in KEEPWELL_TEST_SERVERS");
            return None;
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../scripts/servers/{name}.sh"));
        let directory = tempfile::tempdir().unwrap();
        let output =
            Command::new(&script).arg("start").arg(directory.path()).stderr(Stdio::inherit()).output();
        let output = output.unwrap_or_else(|error| panic!("`{}` cannot be run: {error}", script.display()));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "the server `{name}` did not start: {text}");
        let values = text.lines().filter_map(|line| line.split_once('='));
        let values = values.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        Some(Self { script, directory, values })
    }

    /// What the script says about it.
    pub fn value(&self, key: &str) -> &str {
        self.values.get(key).unwrap_or_else(|| panic!("the script says no {key}: {:?}", self.values))
    }

    /// How to connect to it as to an S3 service, directly or through what listens at `endpoint`.
    pub fn s3_options(&self, endpoint: Option<&str>) -> ConnectOptions {
        let credentials = Credentials {
            access_key: Some(self.value("ACCESS_KEY").into()),
            secret_key: Some(self.value("SECRET_KEY").into()),
            ..Credentials::default()
        };
        let settings = Settings {
            endpoint: Some(endpoint.unwrap_or(self.value("ENDPOINT")).into()),
            region: Some(self.value("REGION").into()),
            ..Settings::default()
        };
        ConnectOptions { settings, credentials, ..ConnectOptions::default() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let stopped = Command::new(&self.script).arg("stop").arg(self.directory.path()).status();
        assert!(stopped.is_ok_and(|status| status.success()) || std::thread::panicking(), "the server stops");
    }
}

/// Connects, as the binaries do: with another attempt after failures that may pass.
pub async fn open(location: &str, options: &ConnectOptions, policy: RetryPolicy) -> Arc<dyn ObjectStore> {
    let location: Location = location.parse().unwrap_or_else(|error| panic!("{error:?}"));
    let store = connect(&location, options, Purpose::Create).await;
    let store = store.unwrap_or_else(|error| panic!("opening `{location}`: {error}: {:?}", error.hint));
    Arc::new(Retrying::new(store, policy))
}
