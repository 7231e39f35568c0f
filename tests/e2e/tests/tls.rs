//! A store over https: whom we trust, and how old a TLS may be.
//!
//! The server and its certificates are made by `openssl`; without it nothing is run, and the tests say so.
#![allow(clippy::unwrap_used)]

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use keepwell_storage::{
    ConnectOptions, Credentials, Location, Purpose, Settings, StorageError, TlsVersion, connect,
};

const CURVE: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

/// What the server sends for the object, head and all.
const ANSWER: &str = "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello";

/// Starts `openssl` on a port that was free a moment ago; `None` where somebody else has taken it since.
async fn listen(directory: &Path, version: &str) -> Option<(Child, u16)> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let mut process = Command::new("openssl")
        .args(["s_server", "-accept", &address, "-cert", "leaf.pem", "-key", "leaf.key"])
        .args(["-HTTP", "-quiet", version])
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..300 {
        if process.try_wait().unwrap().is_some() {
            return None;
        }
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Some((process, port));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("openssl does not listen");
}

/// A server with one object, and the authority that vouches for it.
struct Server {
    process: Child,
    port: u16,
    directory: tempfile::TempDir,
}

impl Server {
    /// Speaks only what `version` says, as `openssl s_server` calls it.
    async fn start(version: &str) -> Option<Self> {
        if Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_err() {
            println!("skipped: there is no openssl here");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        certificates(directory.path());
        std::fs::create_dir(directory.path().join("bucket")).unwrap();
        std::fs::write(directory.path().join("bucket/x"), ANSWER).unwrap();
        for _ in 0..5 {
            if let Some((process, port)) = listen(directory.path(), version).await {
                return Some(Self { process, port, directory });
            }
        }
        panic!("openssl does not listen");
    }

    /// Reads an object from it.
    async fn get(&self, trusted: bool, oldest: TlsVersion) -> Result<(), StorageError> {
        let location: Location =
            format!("s3://bucket?endpoint=https://127.0.0.1:{}", self.port).parse().unwrap();
        let settings = Settings {
            ca_file: trusted.then(|| self.directory.path().join("ca.pem")),
            tls_min: Some(oldest),
            timeout_seconds: Some(60),
            ..Settings::default()
        };
        let credentials = Credentials {
            access_key: Some("AK".into()),
            secret_key: Some("secret".into()),
            ..Credentials::default()
        };
        let options = ConnectOptions { settings, credentials, ..ConnectOptions::default() };
        let store = connect(&location, &options, Purpose::Open).await.unwrap();
        let object = store.get(&"x".parse().unwrap()).await?;
        assert_eq!(&object[..], b"hello");
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().and_then(|()| self.process.wait()).unwrap();
    }
}

/// An authority, and a certificate of it for this machine.
fn certificates(directory: &Path) {
    let openssl = |arguments: &[&str]| {
        let done = Command::new("openssl").args(arguments).current_dir(directory).output().unwrap();
        assert!(done.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    };
    let authority = ["-keyout", "ca.key", "-out", "ca.pem", "-days", "1", "-subj", "/CN=ca"];
    openssl(&[&["req", "-x509"][..], &CURVE, &authority].concat());
    let asked = ["-keyout", "leaf.key", "-out", "leaf.csr", "-subj", "/CN=localhost"];
    openssl(&[&["req"][..], &CURVE, &asked].concat());
    std::fs::write(directory.join("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    openssl(&[
        "x509",
        "-req",
        "-in",
        "leaf.csr",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-days",
        "1",
        "-out",
        "leaf.pem",
        "-extfile",
        "names",
    ]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_of_ones_own_is_trusted_only_if_it_is_named() {
    let Some(server) = Server::start("-tls1_2").await else { return };
    let refused = server.get(false, TlsVersion::Tls12).await.unwrap_err();
    assert!(refused.to_string().contains("certificate"), "{refused}");
    assert!(refused.hint.as_deref().is_some_and(|hint| hint.contains("ca-file")), "{refused:?}");
    server.get(true, TlsVersion::Tls12).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_tls_than_asked_for_is_refused() {
    let Some(old) = Server::start("-tls1_2").await else { return };
    old.get(true, TlsVersion::Tls13).await.unwrap_err();
    old.get(true, TlsVersion::Tls12).await.unwrap();
    let Some(new) = Server::start("-tls1_3").await else { return };
    new.get(true, TlsVersion::Tls13).await.unwrap();
}
