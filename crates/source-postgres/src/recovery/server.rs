//! Running a server on a restored cluster.

use std::fs::{File, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::OFlags;

use super::extensions;
use crate::lsn::Lsn;

/// So much of the end of a log is looked at.
const LOG_BYTES_MAX: u64 = 1 << 20;
const POLL_EVERY: Duration = Duration::from_millis(100);

/// Why a server could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// There are no programs of this major.
    #[error("there is no server of PostgreSQL {major} on this host; looked in {looked}")]
    NoBinaries {
        /// The major.
        major: u32,
        /// Where they were looked for.
        looked: String,
    },
    /// The server ended.
    #[error("the server ended ({status}): {reason}")]
    Ended {
        /// Its exit status.
        status: String,
        /// The last thing it complained about.
        reason: String,
    },
    /// It opened before the end of the log that is archived.
    #[error("recovery ended at {at}, and the archived log goes on to {last}")]
    FellShort {
        /// Where the last record begins that it replayed.
        at: Lsn,
        /// Where the last one begins that is archived.
        last: Lsn,
    },
    /// It is still at work.
    #[error("the server did not get there within {seconds} s; it still runs")]
    TooSlow {
        /// How long it was waited for.
        seconds: u64,
    },
    /// A program could not be run.
    #[error("run `{program}`")]
    Run {
        /// The program.
        program: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A program needs an extension, or its library, that is not on this host.
    #[error("`{program}` needs the extension `{name}`, which is not installed on this host")]
    NoExtension {
        /// The program.
        program: String,
        /// The extension, or the library as the server names it.
        name: String,
    },
    /// A program failed.
    #[error("`{program}` failed: {reason}")]
    Failed {
        /// The program.
        program: String,
        /// What it said last.
        reason: String,
    },
}

impl ServerError {
    /// What the operator may do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoBinaries { .. } => {
                Some("Install that major, or name the directory of its programs: `--bin-dir DIR`.".into())
            }
            Self::NoExtension { name, .. } => Some(format!(
                "Install the package of this major that has `{name}`; the server's own extensions are in `postgresql-contrib`."
            )),
            Self::FellShort { at, .. } => Some(format!(
                "What lies behind is damaged, or of another server that wrote the same timeline; the server's log says why it \
                 ended there. `--to-lsn {at}` gives what came before."
            )),
            Self::Ended { reason, .. } => extensions::missing_in(reason).map(|name| {
                format!(
                    "The server loads `{name}` at its start, which is not installed on this host: install it, or leave it out \
                     by `--set shared_preload_libraries=`."
                )
            }),
            _ => None,
        }
    }
}

/// The programs of one major version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    directory: PathBuf,
}

impl Binaries {
    /// Finds the programs of a major: in `more` first, then where packages put them. Where the server is a link, the others
    /// are beside what it leads to.
    pub fn find(major: u32, more: &[PathBuf]) -> Result<Self, ServerError> {
        let usual = [format!("/usr/lib/postgresql/{major}/bin"), format!("/usr/pgsql-{major}/bin")];
        let places: Vec<PathBuf> = more.iter().cloned().chain(usual.map(PathBuf::from)).collect();
        let mut servers = places.iter().map(|place| place.join("postgres"));
        let found = servers.find(|server| version(server) == Some(major));
        let found = found.map(|server| server.canonicalize().unwrap_or(server));
        let directory = found.and_then(|server| server.parent().map(Path::to_path_buf));
        directory.map(|directory| Self { directory }).ok_or_else(|| {
            let looked: Vec<_> = places.iter().map(|place| format!("`{}`", place.display())).collect();
            ServerError::NoBinaries { major, looked: looked.join(", ") }
        })
    }

    /// One of the programs, if it is there: packages may leave out some.
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        Some(self.directory.join(name)).filter(|path| path.is_file())
    }

    /// Where they are.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }
}

/// `postgres (PostgreSQL) 15.18 (Debian …)` gives 15.
fn version(program: &Path) -> Option<u32> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let word = text.split_whitespace().nth(2)?;
    word.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// A command that runs as somebody else, if one is named, away from our terminal and working directory.
pub(crate) fn command(program: &Path, owner: Option<(u32, u32)>, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).current_dir(directory).process_group(0);
    // What belongs to the environment of root, say, is not the other user's.
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", "/");
    if let Some((user, group)) = owner.filter(|_| rustix::process::geteuid().is_root()) {
        command.uid(user).gid(group);
    }
    command
}

/// Opens a log for appending, which becomes its owner's alone. The directory that it is in may be another user's: what
/// stands there already must be such a log, and no link is followed.
fn open_log(path: &Path, owner: Option<(u32, u32)>) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let open =
        |is_new| File::options().append(true).create_new(is_new).mode(0o600).custom_flags(flags).open(path);
    let log = match open(true) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let (log, own) = (open(false)?, rustix::process::geteuid().as_raw());
            let found = log.metadata()?;
            let is_ours = found.uid() == own || owner.is_some_and(|(user, _)| user == found.uid());
            if !found.is_file() || found.nlink() != 1 || !is_ours {
                return Err(io::Error::other("it is no log of ours"));
            }
            log
        }
        opened => opened?,
    };
    log.set_permissions(Permissions::from_mode(0o600))?;
    if let Some((user, group)) = owner.filter(|_| rustix::process::geteuid().is_root()) {
        fchown(&log, Some(user), Some(group))?;
    }
    Ok(log)
}

/// How a server is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Its programs.
    pub binaries: Binaries,
    /// Its data directory.
    pub directory: PathBuf,
    /// User and group that it runs as; `None` for those of this process.
    pub owner: Option<(u32, u32)>,
    /// Settings that count more than those in its files.
    pub options: Vec<(String, String)>,
    /// Where what it says goes, until it is started anew by somebody else. Appended to, and the owner's alone; what stands
    /// there must be a file of the owner's or ours, and no link.
    pub log: PathBuf,
}

/// How far a server is to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// It has recovered and is open for writing.
    Open,
    /// It answers queries, maybe still recovering.
    Readable,
    /// It has stopped at its target and ended.
    ShutDown,
}

impl Until {
    /// The files of the data directory do not say it: `recovery.signal` goes before the server has fetched the last file
    /// that it needs, and the state in `postmaster.pid` is the same while a standby answers.
    fn is_said_by(self, text: &str) -> bool {
        match self {
            Self::Open => text == "database system is ready to accept connections",
            Self::Readable => text.starts_with("database system is ready to accept"),
            Self::ShutDown => false,
        }
    }
}

/// What a server said about its recovery.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// Where and why it stopped: `recovery stopping before commit of transaction 745, time …`.
    pub stopped: Option<String>,
    /// Where the last record begins that it replayed.
    pub redone: Option<Lsn>,
    /// When the last transaction ended that it took in, as it writes times.
    pub last_transaction: Option<String>,
    /// The timeline that it began.
    pub timeline: Option<u32>,
}

/// A server that was started. It goes on when this is dropped.
#[derive(Debug)]
pub struct RunningServer {
    child: Child,
    directory: PathBuf,
    log: PathBuf,
    log_began: u64,
}

impl Start {
    /// Starts it and does not wait.
    pub fn run(&self) -> Result<RunningServer, ServerError> {
        let program = self.binaries.directory.join("postgres");
        let failed = |source| ServerError::Run { program: program.display().to_string(), source };
        let log = open_log(&self.log, self.owner).map_err(|source| ServerError::Run {
            program: format!("open the log {}", self.log.display()),
            source,
        })?;
        let log_began = log.metadata().map_err(failed)?.len();
        let mut command = command(&program, self.owner, &self.directory);
        command.arg("-D").arg(&self.directory);
        for (name, value) in &self.options {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        // What it says is how we learn what it does.
        for setting in
            ["lc_messages=C", "log_min_messages=warning", "logging_collector=off", "log_destination=stderr"]
        {
            command.args(["-c", setting]);
        }
        let errors = log.try_clone().map_err(failed)?;
        let child = command.stdout(log).stderr(errors).spawn().map_err(failed)?;
        Ok(RunningServer { child, directory: self.directory.clone(), log: self.log.clone(), log_began })
    }
}

impl RunningServer {
    /// Waits until it has come so far. Fails when it ends before, with what it complained about last.
    pub async fn wait(&mut self, until: Until, at_most: Duration) -> Result<Said, ServerError> {
        let mut waited = Duration::ZERO;
        loop {
            if let Some(status) = self.child.try_wait().map_err(|source| self.failed(source))? {
                let said = said(&self.lines());
                if until == Until::ShutDown && status.success() && said.stopped.is_some() {
                    return Ok(said);
                }
                return Err(ServerError::Ended { status: status.to_string(), reason: self.complaint() });
            }
            let lines = self.lines();
            if lines.iter().any(|line| until.is_said_by(message(line))) {
                return Ok(said(&lines));
            }
            if waited >= at_most {
                return Err(ServerError::TooSlow { seconds: at_most.as_secs() });
            }
            tokio::time::sleep(POLL_EVERY).await;
            waited += POLL_EVERY;
        }
    }

    /// Ends it, as `pg_ctl stop -m` with `fast` or `immediate` would, and waits for that.
    pub async fn stop(mut self, signal: StopSignal) -> Result<(), ServerError> {
        let pid = rustix::process::Pid::from_child(&self.child);
        let signal = match signal {
            StopSignal::Fast => rustix::process::Signal::INT,
            StopSignal::Immediate => rustix::process::Signal::QUIT,
        };
        rustix::process::kill_process(pid, signal).map_err(|error| self.failed(error.into()))?;
        while self.child.try_wait().map_err(|source| self.failed(source))?.is_none() {
            tokio::time::sleep(POLL_EVERY).await;
        }
        Ok(())
    }

    /// Waits until it has ended by itself. Fails unless that was in order.
    pub(super) async fn ended(&mut self) -> Result<(), ServerError> {
        loop {
            match self.child.try_wait().map_err(|source| self.failed(source))? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    return Err(ServerError::Ended { status: status.to_string(), reason: self.complaint() });
                }
                None => tokio::time::sleep(POLL_EVERY).await,
            }
        }
    }

    /// Ends it at once from where nobody can wait; gives up after ten seconds.
    pub(crate) fn stop_now(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
        for _ in 0..100 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(POLL_EVERY);
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn failed(&self, source: io::Error) -> ServerError {
        ServerError::Run { program: format!("postgres -D {}", self.directory.display()), source }
    }

    fn lines(&self) -> Vec<String> {
        let read = || -> io::Result<String> {
            let mut file = File::open(&self.log)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(self.log_began.max(length.saturating_sub(LOG_BYTES_MAX))))?;
            let mut bytes = Vec::new();
            file.take(LOG_BYTES_MAX).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().unwrap_or_default().lines().map(str::to_owned).collect()
    }

    fn complaint(&self) -> String {
        let lines = self.lines();
        let bad = |line: &&String| ["FATAL:", "PANIC:", "ERROR:"].iter().any(|word| line.contains(word));
        let line = lines.iter().rfind(bad).or(lines.last());
        line.map_or_else(|| "it said nothing".to_owned(), |line| message(line).to_owned())
    }
}

fn said(lines: &[String]) -> Said {
    let mut said = Said::default();
    for line in lines {
        let text = message(line);
        if text.starts_with("recovery stopping") {
            said.stopped = Some(text.to_owned());
        } else if let Some(rest) = text.strip_prefix("redo done at ") {
            said.redone = rest.split_whitespace().next().and_then(|at| at.parse().ok());
        } else if let Some(time) = text.strip_prefix("last completed transaction was at log time ") {
            said.last_transaction = Some(time.to_owned());
        } else if let Some(number) = text.strip_prefix("selected new timeline ID: ") {
            said.timeline = number.trim().parse().ok();
        }
    }
    said
}

/// How a server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopSignal {
    /// It ends connections and shuts down in order.
    Fast,
    /// At once; for a copy that is thrown away.
    Immediate,
}

/// `2026-11-21 12:00:00 UTC [77] LOG:  text` gives the text.
fn message(line: &str) -> &str {
    ["LOG:", "FATAL:", "PANIC:", "ERROR:", "WARNING:"]
        .iter()
        .find_map(|word| line.find(word).map(|at| line[at + word.len()..].trim_start()))
        .unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn messages_are_found_in_lines_of_a_log() {
        assert_eq!(message("2026-11-21 12:00:00 UTC [77] LOG:  redo done at 0/1"), "redo done at 0/1");
        assert_eq!(message("no level"), "no level");
    }

    #[test]
    fn where_a_recovery_ended_is_in_the_log() {
        for (end, redone) in [("", Some(Lsn::new(0xB0_0090))), ("x", None)] {
            let usage = "system usage: CPU: user: 0.00 s, system: 0.00 s, elapsed: 0.10 s";
            let line =
                format!("2026-11-22 18:57:48.477 UTC [30945] LOG:  redo done at 0/B00090{end} {usage}");
            assert_eq!(said(&[line]), Said { redone, ..Said::default() });
        }
    }

    #[test]
    fn a_server_that_answers_while_it_recovers_is_not_open() {
        let read_only = "database system is ready to accept read-only connections";
        assert!(Until::Readable.is_said_by(read_only) && !Until::Open.is_said_by(read_only));
        assert!(Until::Open.is_said_by("database system is ready to accept connections"));
    }

    #[tokio::test]
    async fn a_server_that_ends_at_its_target_has_done_what_it_should_and_one_that_ends_before_has_not() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("postgres");
        let stopping = "LOG:  recovery stopping before commit of transaction 745";
        for (said, code, fine) in
            [(stopping, 0, true), (stopping, 1, false), ("LOG:  shutting down", 0, false)]
        {
            fs::write(&program, format!("#!/bin/sh\necho '{said}'\nexit {code}\n")).unwrap();
            fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            let start = Start {
                binaries: Binaries { directory: dir.path().to_owned() },
                directory: dir.path().to_owned(),
                owner: None,
                options: Vec::new(),
                log: dir.path().join("log"),
            };
            let ended = start.run().unwrap().wait(Until::ShutDown, Duration::from_secs(60)).await;
            assert_eq!(ended.is_ok(), fine, "{said} {code}: {ended:?}");
            let ended = start.run().unwrap().wait(Until::Open, Duration::from_secs(60)).await;
            assert!(matches!(ended, Err(ServerError::Ended { .. })));
            // Statements that fail stand in it.
            let log = fs::metadata(dir.path().join("log")).unwrap();
            assert_eq!(std::os::unix::fs::PermissionsExt::mode(&log.permissions()) & 0o777, 0o600);
        }
    }

    #[test]
    fn a_log_is_its_owners_alone_and_nothing_else_is_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let mode = |name: &str| fs::metadata(path(name)).unwrap().permissions().mode() & 0o777;
        let own = Some((rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()));
        fs::write(path("old"), "of an earlier run\n").unwrap();
        fs::set_permissions(path("old"), Permissions::from_mode(0o644)).unwrap();
        for name in ["new", "old"] {
            io::Write::write_all(&mut open_log(&path(name), own).unwrap(), b"more").unwrap();
            assert_eq!(mode(name), 0o600, "{name}");
        }
        assert_eq!(fs::read_to_string(path("old")).unwrap(), "of an earlier run\nmore");
        fs::write(path("theirs"), "").unwrap();
        std::os::unix::fs::symlink(path("theirs"), path("link")).unwrap();
        std::os::unix::fs::symlink(path("nowhere"), path("dangling")).unwrap();
        fs::hard_link(path("theirs"), path("second")).unwrap();
        fs::create_dir(path("directory")).unwrap();
        for name in ["link", "dangling", "second", "directory"] {
            assert!(open_log(&path(name), own).is_err(), "{name}");
        }
        assert!(!path("nowhere").exists());
    }

    #[test]
    fn programs_are_told_apart_by_what_they_say() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("postgres");
        fs::write(&program, "#!/bin/sh\necho 'postgres (PostgreSQL) 16beta1'\n").unwrap();
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let here = [dir.path().to_path_buf()];
        let program = program.canonicalize().unwrap();
        assert_eq!(Binaries::find(16, &here).unwrap().program("postgres"), Some(program.clone()));
        // One in the path of everybody, say, without the others beside it.
        let (path, dump) = (dir.path().join("path"), program.with_file_name("pg_dump"));
        fs::create_dir(&path).unwrap();
        fs::write(&dump, "").unwrap();
        std::os::unix::fs::symlink(&program, path.join("postgres")).unwrap();
        assert_eq!(Binaries::find(16, &[path]).unwrap().program("pg_dump"), Some(dump));
        let error = Binaries::find(99, &here).unwrap_err();
        assert!(error.to_string().starts_with("there is no server of PostgreSQL 99 on this host"), "{error}");
    }
}
