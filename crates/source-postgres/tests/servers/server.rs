//! A throw-away server for one test.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use keepwell_source_postgres::options::{ConnectOptions, Surroundings};
use keepwell_source_postgres::wire::{Client, Rows};

/// The majors to test against.
#[expect(clippy::disallowed_methods, reason = "a test may read the environment")]
pub fn majors() -> Vec<u32> {
    let named = std::env::var("KEEPWELL_TEST_POSTGRES").unwrap_or_else(|_| "15 17".to_owned());
    let majors: Vec<u32> = named.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert!(!majors.is_empty(), "no major is named");
    majors
}

/// A running server; it is stopped, and its files removed, when this is dropped.
pub struct Server {
    dir: tempfile::TempDir,
    values: BTreeMap<String, String>,
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/servers/postgres.sh")
}

impl Server {
    /// Starts a server of this major; `options` are those of the script.
    pub fn start(major: u32, options: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("keepwell-pg-").tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut command = Command::new(script());
        command.arg("start").arg(major.to_string()).arg(dir.path().join("server")).args(options);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let values =
            text.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned()));
        Self { values: values.collect(), dir }
    }

    pub fn value(&self, name: &str) -> &str {
        &self.values[name]
    }

    /// A directory of the test's own beside the server's.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    pub fn data(&self) -> &Path {
        Path::new(self.value("DATA"))
    }

    /// Connection string over the Unix socket, as superuser.
    pub fn socket(&self) -> String {
        format!("host={} port={} user=postgres dbname=postgres", self.value("SOCKET"), self.value("PORT"))
    }

    /// Connection string over TCP.
    pub fn tcp(&self, more: &str) -> String {
        format!("host=localhost hostaddr=127.0.0.1 port={} dbname=postgres {more}", self.value("PORT"))
    }

    pub async fn client(&self) -> Client {
        connect(&self.socket()).await
    }

    /// Runs SQL on a connection of its own.
    pub async fn sql(&self, sql: &str) -> Rows {
        let mut client = self.client().await;
        let rows = client.query(sql, "run a test's SQL").await.unwrap();
        client.close().await;
        rows
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let stopped = Command::new(script()).arg("stop").arg(self.dir.path().join("server")).output();
        if !std::thread::panicking() {
            let stopped = stopped.unwrap();
            assert!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
        }
    }
}

pub fn options(text: &str) -> ConnectOptions {
    ConnectOptions::resolve(text, &Surroundings::default(), "keepwell-test").unwrap()
}

pub async fn connect(text: &str) -> Client {
    Client::connect(&options(text)).await.unwrap()
}
