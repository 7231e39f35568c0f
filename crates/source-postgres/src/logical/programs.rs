//! The client programs of PostgreSQL: `pg_dump`, `pg_dumpall`, `pg_restore`.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;

use super::DumpError;
use crate::options::{ChannelBinding, ConnectOptions, RootCerts, SslMode, SslNegotiation};

/// So much of what a program says is kept.
const SAID_BYTES_MAX: u64 = 256 << 10;

/// The client programs of one major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    directory: PathBuf,
    major: u32,
}

impl Programs {
    /// Finds the programs of a major or, if it has none, of the next newer one: in `named` alone if that is given, else
    /// where packages put them and then in `path`. Runs the `pg_dump` of each place once, to ask for its version.
    pub fn find(major: u32, named: Option<&Path>, path: &[PathBuf]) -> Result<Self, DumpError> {
        let places: Vec<PathBuf> = match named {
            Some(directory) => vec![directory.to_path_buf()],
            None => usual().into_iter().chain(path.iter().cloned()).collect(),
        };
        let mut found: Option<Self> = None;
        for directory in places {
            let there = ["pg_dump", "pg_dumpall", "pg_restore"].iter().all(|p| directory.join(p).is_file());
            let Some(its) = there.then(|| version(&directory.join("pg_dump"))).flatten() else { continue };
            if its >= major && found.as_ref().is_none_or(|best| its < best.major) {
                found = Some(Self { directory, major: its });
            }
        }
        found.ok_or(DumpError::NoPrograms { major })
    }

    /// Their major.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// One of them, ready to run: it connects, if it does, as `options` say.
    pub(crate) fn command(&self, name: &str, options: Option<&ConnectOptions>) -> Command {
        let mut command = Command::new(self.directory.join(name));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("LC_ALL", "C").env("HOME", "/");
        if let Some(options) = options {
            command.arg("-d").arg(conninfo(options));
            if let Some(password) = options.hosts.first().and_then(|host| host.password.as_ref()) {
                command.env("PGPASSWORD", password.expose());
            }
        }
        command
    }
}

fn usual() -> Vec<PathBuf> {
    let below = |parent: &str, fits: fn(&str) -> bool, tail: &str| {
        let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
        let mut found: Vec<PathBuf> = entries
            .filter(|entry| fits(&entry.file_name().to_string_lossy()))
            .map(|entry| entry.path().join(tail))
            .collect();
        found.sort();
        found
    };
    let debian = below("/usr/lib/postgresql", |_| true, "bin");
    debian.into_iter().chain(below("/usr", |name| name.starts_with("pgsql-"), "bin")).collect()
}

/// `pg_dump (PostgreSQL) 15.18 (Debian …)` gives 15.
fn version(program: &Path) -> Option<u32> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let word = text.split_whitespace().nth(2)?;
    word.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The first server of the options, as libpq is told. The password is not in it: arguments are seen by everybody.
fn conninfo(options: &ConnectOptions) -> String {
    let mut pairs: Vec<(&str, String)> = Vec::new();
    if let Some(host) = options.hosts.first() {
        pairs.push(("host", host.name.clone()));
        pairs.push(("port", host.port.to_string()));
        if let Some(address) = host.address {
            pairs.push(("hostaddr", address.to_string()));
        }
    }
    pairs.push(("user", options.user.clone()));
    pairs.push(("dbname", options.database.clone()));
    pairs.push(("application_name", options.application_name.clone()));
    let mode = match options.ssl_mode {
        SslMode::Disable => "disable",
        SslMode::Allow => "allow",
        SslMode::Prefer => "prefer",
        SslMode::Require => "require",
        SslMode::VerifyCa => "verify-ca",
        SslMode::VerifyFull => "verify-full",
    };
    pairs.push(("sslmode", mode.to_owned()));
    if options.ssl_negotiation == SslNegotiation::Direct {
        pairs.push(("sslnegotiation", "direct".to_owned()));
    }
    let shown = |path: &Path| path.display().to_string();
    match &options.root_certs {
        // One that is missing matters only where it is asked for; the programs then say so themselves.
        RootCerts::File(path) if path.is_file() || mode.starts_with("verify") => {
            pairs.push(("sslrootcert", shown(path)));
        }
        RootCerts::File(_) => {}
        RootCerts::System => pairs.push(("sslrootcert", "system".to_owned())),
    }
    if let Some((certificate, key)) = &options.client_cert {
        pairs.push(("sslcert", shown(certificate)));
        pairs.push(("sslkey", shown(key)));
    }
    if let Some(list) = &options.crl {
        pairs.push(("sslcrl", shown(list)));
    }
    let binding = match options.channel_binding {
        ChannelBinding::Disable => "disable",
        ChannelBinding::Prefer => "prefer",
        ChannelBinding::Require => "require",
    };
    pairs.push(("channel_binding", binding.to_owned()));
    if let Some(session) = &options.session_options {
        pairs.push(("options", session.clone()));
    }
    if let Some(limit) = options.connect_timeout {
        pairs.push(("connect_timeout", limit.as_secs().max(2).to_string()));
    }
    let quoted = |text: &str| format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"));
    pairs.iter().map(|(name, value)| format!("{name}={}", quoted(value))).collect::<Vec<_>>().join(" ")
}

/// A program that runs, and what it complains about. Dropping it ends the program.
#[derive(Debug)]
pub(crate) struct Running {
    name: String,
    child: Child,
    said: Option<JoinHandle<String>>,
    over: bool,
}

impl Running {
    /// Starts it. What it complains about is gathered meanwhile.
    pub fn start(command: &mut Command) -> Result<Self, DumpError> {
        let program = PathBuf::from(command.get_program());
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let failed = |source| DumpError::Run { program: program.display().to_string(), source };
        let mut child = command.spawn().map_err(failed)?;
        let said = child.stderr.take().map(|errors| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                // What cannot be read any more is not complained about.
                let mut errors = errors;
                let _ = (&mut errors).take(SAID_BYTES_MAX).read_to_end(&mut bytes);
                let _ = io::copy(&mut errors, &mut io::sink());
                String::from_utf8_lossy(&bytes).into_owned()
            })
        });
        Ok(Self { name, child, said, over: false })
    }

    /// What it writes; once.
    pub fn output(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Where it reads; once. It reads to the end when this is dropped.
    pub fn input(&mut self) -> Option<std::process::ChildStdin> {
        self.child.stdin.take()
    }

    /// Waits for its end: whether it succeeded, and what it said.
    pub fn wait(mut self) -> Result<(bool, String), DumpError> {
        let name = self.name.clone();
        let status = self.child.wait().map_err(|source| DumpError::Run { program: name, source })?;
        self.over = true;
        let said = self.said.take().and_then(|said| said.join().ok()).unwrap_or_default();
        Ok((status.success(), said))
    }

    /// The same; that it failed is an error. Gives what it warned about, line by line.
    pub fn finish(self) -> Result<Vec<String>, DumpError> {
        let program = self.name.clone();
        match self.wait()? {
            (true, said) => Ok(lines(&said)),
            (false, said) => Err(failure(program, &said)),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.over {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The lines that a program said, without its name.
pub(crate) fn lines(said: &str) -> Vec<String> {
    let bare = |line: &str| match line.split_once(": ") {
        Some((name, rest)) if name.starts_with("pg_") => rest.trim().to_owned(),
        _ => line.trim().to_owned(),
    };
    said.lines().map(bare).filter(|line| !line.is_empty()).collect()
}

/// That a program failed, with what it complained about first: the rest mostly follows from that.
pub(crate) fn failure(program: String, said: &str) -> DumpError {
    let lines = lines(said);
    let first = lines.iter().position(|line| line.starts_with("error:")).unwrap_or(0);
    let mut reason = lines[first.min(lines.len())..].iter().take(3).cloned().collect::<Vec<_>>().join("; ");
    if reason.is_empty() {
        "it said nothing".clone_into(&mut reason);
    }
    DumpError::Program { program, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Surroundings;

    #[test]
    fn a_program_is_told_the_connection_and_its_arguments_hold_no_password() {
        let text = r"host=db1 port=6000 user=ann dbname='o\'hara \\x' password=sesame sslmode=require";
        let options = ConnectOptions::resolve(text, &Surroundings::default(), "t").unwrap();
        let programs = Programs { directory: "/x".into(), major: 15 };
        let command = programs.command("pg_dump", Some(&options));
        let arguments: Vec<String> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
        assert_eq!(arguments[0], "-d");
        assert!(arguments[1].starts_with(r"host='db1' port='6000' user='ann' dbname='o\'hara \\x' "));
        assert!(!arguments[1].contains("sesame") && arguments[1].contains("sslmode='require'"));
        assert!(command.get_envs().any(|(name, value)| name == "PGPASSWORD" && value.is_some()));
    }

    #[test]
    fn the_first_complaint_of_a_program_is_its_reason() {
        let said = "pg_restore: connecting\npg_restore: error: no such thing\nDETAIL: x\nmore\nstill more\n";
        let text = failure("pg_restore".into(), said).to_string();
        assert_eq!(text, "`pg_restore` failed: error: no such thing; DETAIL: x; more");
        assert_eq!(failure("p".into(), "").to_string(), "`p` failed: it said nothing");
    }
}
