//! A cluster that is restored, opened, asked, and thrown away.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use backup_core::Repository;

use super::collations::{DATABASES, FIRST};
use super::extensions::{self, MissingExtension};
use super::restore::{
    ClusterReport, HollowPart, Layout, Places, RestoreError, complete, restore, restore_hollow,
};
use super::server::{Binaries, RunningServer, Said, ServerError, Start, StopSignal, Until, command};
use super::settings::{Archiving, Mode, RecoverySettings};
use super::watch::Watch;
use super::{BaseBackup, RecoveryPlan};
use crate::options::{ConnectOptions, Surroundings};
use crate::wire::{Client, PgError, Rows};

/// So much of what a program complained about is kept.
const COMPLAINT_BYTES_MAX: usize = 2000;

/// A server does not start without room for how far each subscription got. Before 18 it has as much as for slots.
const ORIGINS_MAX: &str = "1000";

/// What counts for whoever asks it, whatever is set for a database or a role: a library that is not on this host would keep
/// everybody out, and a limit would end a check.
const SESSION: &str = "-c session_preload_libraries= -c local_preload_libraries= -c default_transaction_read_only=off \
    -c statement_timeout=0 -c lock_timeout=0";
/// What there is from 17 on: triggers may refuse a login, or the extension that a check needs.
const SESSION_17: &str = " -c transaction_timeout=0 -c event_triggers=off";

/// Where a scratch cluster lives and how it is reached.
#[derive(Debug, Clone)]
pub struct ScratchOptions {
    /// A directory of its own, which the caller removes afterwards.
    pub directory: PathBuf,
    /// A directory for its socket, with a short name, that only the owner can enter.
    pub socket: PathBuf,
    /// User and group that it runs as.
    pub owner: Option<(u32, u32)>,
    /// How it gets its WAL.
    pub restore_command: String,
    /// Name of a superuser of the cluster.
    pub superuser: String,
}

/// A scratch cluster. Dropping it stops its server, if that runs, and may take some seconds; the server also ends when
/// this process dies. After [`Scratch::keep`] it does neither.
#[derive(Debug)]
pub struct Scratch {
    options: ScratchOptions,
    layout: Layout,
    major: u32,
    /// Databases that it may have, those first that a cluster has from the beginning.
    names: Vec<String>,
    binaries: Binaries,
    server: Option<RunningServer>,
    watch: Option<Watch>,
    more: Vec<(String, String)>,
    is_kept: bool,
}

impl Scratch {
    /// Restores the base backup of a plan below the directory; nothing is started.
    pub async fn restore(
        repository: &Repository,
        plan: &RecoveryPlan,
        binaries: Binaries,
        options: ScratchOptions,
        places: &dyn Places,
    ) -> Result<(Self, ClusterReport), RestoreError> {
        let scratch = Self::new(&plan.backup, binaries, options);
        let settings = scratch.recovery(plan);
        let report = restore(repository, &plan.backup, &scratch.layout, &settings, places).await?;
        Ok((scratch, report))
    }

    /// The same with the larger files left as holes, as [`restore_hollow`] does: before a server starts, somebody must
    /// stand over the directories who fills them as they are read.
    pub async fn restore_hollow(
        repository: &Repository,
        plan: &RecoveryPlan,
        binaries: Binaries,
        options: ScratchOptions,
        places: &dyn Places,
    ) -> Result<(Self, Vec<HollowPart>), RestoreError> {
        let scratch = Self::new(&plan.backup, binaries, options);
        let settings = scratch.recovery(plan);
        let parts = restore_hollow(repository, &plan.backup, &scratch.layout, &settings, places).await?;
        Ok((scratch, parts))
    }

    fn new(backup: &BaseBackup, binaries: Binaries, options: ScratchOptions) -> Self {
        let layout = layout(backup, &options);
        let own = backup.cluster.databases.iter().map(|database| database.name.as_str());
        Self {
            options,
            layout,
            major: backup.cluster.major(),
            names: FIRST.into_iter().chain(own).map(str::to_owned).collect(),
            binaries,
            server: None,
            watch: None,
            more: Vec::new(),
            is_kept: false,
        }
    }

    fn recovery(&self, plan: &RecoveryPlan) -> RecoverySettings {
        RecoverySettings {
            mode: Mode::Recover {
                target: plan.stop(),
                timeline: plan.history.timeline(),
                action: "promote".to_owned(),
            },
            restore_command: self.options.restore_command.clone(),
            archiving: Archiving::Off,
            more: Vec::new(),
        }
    }

    /// Gives its server settings that count more than ours, from its next start on.
    pub fn set(&mut self, more: Vec<(String, String)>) {
        self.more = more;
    }

    /// Makes it a cluster to keep, as [`complete`] does. Its server must have been stopped in order; from its next start on
    /// it waits for the disk, vacuums, and goes on when this is dropped.
    pub fn keep(&mut self, backup: &BaseBackup, places: &dyn Places) -> Result<(), RestoreError> {
        complete(backup, &self.layout, places)?;
        self.is_kept = true;
        Ok(())
    }

    /// Starts a server that nobody else can reach and that does nothing by itself, and waits until it has recovered.
    ///
    /// It runs without the libraries that the original loads at its start: they need not be on this host.
    pub async fn start(&mut self, backup: &BaseBackup, at_most: Duration) -> Result<Said, ServerError> {
        let start = Start {
            binaries: self.binaries.clone(),
            directory: self.layout.directory.clone(),
            owner: self.options.owner,
            options: self.settings(backup)?,
            log: self.options.directory.join("server.log"),
        };
        // From here on it is ours to stop, also when nobody waits for it any more.
        let server = self.server.insert(start.run()?);
        if !self.is_kept {
            let watch = Watch::over(server.pid(), &self.layout.directory, self.options.owner);
            self.watch =
                Some(watch.map_err(|source| ServerError::Run { program: "/bin/sh".to_owned(), source })?);
        }
        let said = server.wait(Until::Open, at_most).await;
        match &said {
            Ok(_) => {}
            Err(ServerError::TooSlow { .. }) => self.stop().await?,
            Err(_) => self.forget_server(),
        }
        said
    }

    fn forget_server(&mut self) {
        (self.server, self.watch) = (None, None);
    }

    /// Returns when its server has ended by itself, or was ended by somebody else.
    pub async fn ended(&mut self) -> Result<(), ServerError> {
        let ended = match &mut self.server {
            Some(server) => server.ended().await,
            None => Ok(()),
        };
        self.forget_server();
        ended
    }

    fn settings(&self, backup: &BaseBackup) -> Result<Vec<(String, String)>, ServerError> {
        let write = |name: &str, content: &str| {
            let path = self.options.directory.join(name);
            let failed = |source| ServerError::Run { program: format!("write {}", path.display()), source };
            fs::write(&path, content).map_err(failed)?;
            Ok::<_, ServerError>(path.display().to_string())
        };
        let shown = |path: &Path| path.display().to_string();
        let mut settings = vec![
            ("config_file".to_owned(), write("scratch.conf", "# everything is on the command line\n")?),
            ("hba_file".to_owned(), write("scratch_hba.conf", "local all all trust\n")?),
            ("ident_file".to_owned(), write("scratch_ident.conf", "")?),
            ("data_directory".to_owned(), shown(&self.layout.directory)),
            ("unix_socket_directories".to_owned(), shown(&self.options.socket)),
        ];
        if self.major >= 18 {
            settings.push(("max_active_replication_origins".to_owned(), ORIGINS_MAX.to_owned()));
            // `io_uring` is not built into every server, and closed to many containers.
            settings.push(("io_method".to_owned(), "worker".to_owned()));
        }
        for (name, value) in [
            ("listen_addresses", ""),
            ("port", "5432"),
            ("external_pid_file", ""),
            ("unix_socket_group", ""),
            ("shared_preload_libraries", ""),
            ("session_preload_libraries", ""),
            ("local_preload_libraries", ""),
            ("archive_mode", "off"),
            ("autovacuum", if self.is_kept { "on" } else { "off" }),
            ("hot_standby", "off"),
            ("wal_level", "replica"),
            ("max_wal_senders", "5"),
            // Its subscriptions are the original's: it would take from the publisher what that is to get.
            ("max_logical_replication_workers", "0"),
            ("max_replication_slots", ORIGINS_MAX),
            ("fsync", if self.is_kept { "on" } else { "off" }),
            ("ssl", "off"),
            ("synchronous_standby_names", ""),
            ("primary_conninfo", ""),
            ("shared_buffers", "128MB"),
            ("huge_pages", "off"),
        ] {
            settings.push((name.to_owned(), value.to_owned()));
        }
        // Recovery takes in what the original had at once.
        for name in ["max_connections", "max_prepared_transactions", "max_locks_per_transaction"] {
            if let Some(value) = backup.cluster.settings.get(name) {
                settings.push((name.to_owned(), value.clone()));
            }
        }
        settings.extend(self.more.iter().cloned());
        Ok(settings)
    }

    /// How programs of PostgreSQL connect to it.
    pub fn connection(&self, database: &str) -> String {
        let quoted = |text: &str| format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"));
        let port = self.more.iter().rfind(|(name, _)| name.eq_ignore_ascii_case("port"));
        format!(
            "host={} port={} user={} dbname={} options='{SESSION}{}'",
            quoted(&self.options.socket.display().to_string()),
            quoted(port.map_or("5432", |(_, port)| port)),
            quoted(&self.options.superuser),
            quoted(database),
            if self.major >= 17 { SESSION_17 } else { "" }
        )
    }

    /// Asks a question in one of its databases.
    pub async fn query(&self, database: &str, sql: &str) -> Result<Rows, PgError> {
        let options =
            ConnectOptions::resolve(&self.connection(database), &Surroundings::default(), "keepwell")?;
        let mut client = Client::connect(&options).await?;
        let rows = client.query(sql, "ask the restored cluster").await?;
        client.close().await;
        Ok(rows)
    }

    /// One of its databases that lets us in, to ask what is no database's own. The one called `postgres` may have been dropped
    /// or closed, and any other as well.
    pub async fn any_database(&self) -> Result<String, PgError> {
        let mut first = None;
        for name in &self.names {
            match self.query(name, "SELECT 1").await {
                Err(refused @ PgError::Refused { .. }) => {
                    first.get_or_insert(refused);
                }
                answer => return answer.map(|_| name.clone()),
            }
        }
        Err(first.expect("two names are always tried"))
    }

    /// Its databases that take connections.
    pub async fn databases(&self) -> Result<Vec<String>, PgError> {
        let rows = self.query(&self.any_database().await?, DATABASES).await?;
        Ok((0..rows.rows.len()).filter_map(|row| rows.text(row, 0).map(str::to_owned)).collect())
    }

    /// One of the programs of its major, ready to run as its owner. `None` if it is not on this host.
    pub fn program(&self, name: &str) -> Option<Command> {
        let program = self.binaries.program(name)?;
        Some(command(&program, self.options.owner, &self.options.directory))
    }

    /// Extensions of the cluster that are not installed beside its programs; `None` when nobody can say.
    pub fn missing_extensions(&self, backup: &BaseBackup) -> Option<Vec<MissingExtension>> {
        self.binaries.missing_extensions(&backup.cluster)
    }

    /// Where its data is.
    pub fn data(&self) -> &Path {
        &self.layout.directory
    }

    /// A file of this name beside its data, which goes with it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.options.directory.join(name)
    }

    /// The process of its server, if that runs.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(RunningServer::pid)
    }

    /// Stops the server at once, if it runs.
    pub async fn stop(&mut self) -> Result<(), ServerError> {
        self.stop_by(StopSignal::Immediate).await
    }

    /// Stops the server in order, if it runs: its files are whole then.
    pub async fn stop_in_order(&mut self) -> Result<(), ServerError> {
        self.stop_by(StopSignal::Fast).await
    }

    async fn stop_by(&mut self, signal: StopSignal) -> Result<(), ServerError> {
        let stopped = match self.server.take() {
            Some(server) => server.stop(signal).await,
            None => Ok(()),
        };
        self.watch = None;
        stopped
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take().filter(|_| !self.is_kept) {
            server.stop_now();
        }
    }
}

fn layout(backup: &BaseBackup, options: &ScratchOptions) -> Layout {
    let tablespaces: BTreeMap<u32, PathBuf> = backup
        .cluster
        .tablespaces
        .iter()
        .map(|tablespace| (tablespace.oid, options.directory.join(format!("tablespace-{}", tablespace.oid))))
        .collect();
    Layout {
        directory: options.directory.join("data"),
        tablespaces,
        owner: options.owner,
        saved_wal: options.directory.join("saved-wal"),
    }
}

/// Runs a program to its end; what it complained about is the error.
pub(crate) async fn run(mut program: Command) -> Result<(), ServerError> {
    program.stdout(Stdio::null());
    finished(program).await.map(drop)
}

/// The same, and gives what it said.
pub(super) async fn output(mut program: Command) -> Result<String, ServerError> {
    program.stdout(Stdio::piped());
    finished(program).await
}

async fn finished(mut program: Command) -> Result<String, ServerError> {
    let name = program.get_program().to_string_lossy().into_owned();
    program.stderr(Stdio::piped());
    let failed = {
        let name = name.clone();
        move |source| ServerError::Run { program: name, source }
    };
    let task = tokio::task::spawn_blocking(move || program.output());
    let output = task.await.map_err(std::io::Error::other).and_then(|output| output).map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    if let Some(missing) = extensions::missing_in(&text) {
        return Err(ServerError::NoExtension { program: name, name: missing.to_owned() });
    }
    let from = text.len().saturating_sub(COMPLAINT_BYTES_MAX);
    let from = (from..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    Err(ServerError::Failed { program: name, reason: text[from..].trim().replace('\n', "; ") })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::lsn::Lsn;
    use crate::testing::{Made, SYSTEM, World};

    /// The cluster of a base backup below a directory that has this server.
    async fn scratch(directory: &Path, server: &str, major: u32) -> (Scratch, BaseBackup) {
        let program = format!(
            "#!/bin/sh\ncase $1 in --version) echo 'postgres (PostgreSQL) {major}.1'; exit;; esac\n{server}\n"
        );
        fs::write(directory.join("postgres"), program).unwrap();
        fs::set_permissions(directory.join("postgres"), fs::Permissions::from_mode(0o755)).unwrap();
        let binaries = Binaries::find(major, &[directory.to_owned()]).unwrap();
        let options = ScratchOptions {
            directory: directory.to_owned(),
            socket: directory.to_owned(),
            owner: None,
            restore_command: String::new(),
            superuser: "postgres".into(),
        };
        let made = Made::new(SYSTEM, Lsn::new(0x28), Lsn::new(0x100), 0, "");
        let mut backup = made.back_up(&World::new().await, "db").await;
        backup.cluster.server_version_num = major * 10_000;
        (Scratch::new(&backup, binaries, options), backup)
    }

    #[tokio::test]
    async fn a_server_takes_nothing_from_a_publisher_and_starts_whatever_it_has_subscribed_to() {
        for (major, origins) in [(17, None), (18, Some(ORIGINS_MAX))] {
            let dir = tempfile::tempdir().unwrap();
            let (mut scratch, backup) = scratch(dir.path(), "exit", major).await;
            for is_kept in [false, true] {
                scratch.is_kept = is_kept;
                let settings: BTreeMap<String, String> =
                    scratch.settings(&backup).unwrap().into_iter().collect();
                let value = |name: &str| settings.get(name).map(String::as_str);
                assert_eq!(value("max_logical_replication_workers"), Some("0"), "{major}");
                assert_eq!(value("max_replication_slots"), Some(ORIGINS_MAX), "{major}");
                assert_eq!(value("max_active_replication_origins"), origins, "{major}");
                // Of what `ALTER SYSTEM` set, what another host may lack.
                assert_eq!(value("unix_socket_group"), Some(""), "{major}");
                assert_eq!(value("io_method"), origins.map(|_| "worker"), "{major}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_set_for_a_database_keeps_nobody_out_and_ends_nothing() {
        for (major, newer) in [(16, ""), (17, SESSION_17)] {
            let dir = tempfile::tempdir().unwrap();
            let (mut scratch, _) = scratch(dir.path(), "exit", major).await;
            let text = scratch.connection("it's");
            scratch.set(vec![("Port".to_owned(), "6000".to_owned())]);
            let other = scratch.connection("it's");
            assert_eq!(other, text.replace("port='5432'", "port='6000'"));
            let options = ConnectOptions::resolve(&text, &Surroundings::default(), "test").unwrap();
            assert_eq!((options.database.as_str(), options.user.as_str()), ("it's", "postgres"));
            assert_eq!(options.session_options, Some(format!("{SESSION}{newer}")));
        }
    }

    #[tokio::test]
    async fn a_cluster_is_asked_in_a_database_that_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let (mut scratch, mut backup) = scratch(dir.path(), "exit", 15).await;
        let name =
            |name: &str| serde_json::from_value(serde_json::json!({ "oid": 5, "name": name })).unwrap();
        backup.cluster.databases = vec![name("clinic"), name("shop")];
        let (socket, listener, _) = crate::testing::socket();
        let options = ScratchOptions { socket: socket.path().to_owned(), ..scratch.options.clone() };
        scratch = Scratch::new(&backup, scratch.binaries.clone(), options);
        let open = std::sync::Arc::new(std::sync::Mutex::new("shop"));
        tokio::spawn(crate::testing::with_one_database(listener, open.clone()));
        assert_eq!(scratch.any_database().await.unwrap(), "shop");
        assert_eq!(scratch.databases().await.unwrap(), ["shop"]);
        *open.lock().unwrap() = "template1";
        assert_eq!(scratch.any_database().await.unwrap(), "template1");
        *open.lock().unwrap() = "nowhere";
        let refused = scratch.any_database().await.unwrap_err();
        assert!(refused.to_string().ends_with("no database `postgres` (3D000)"), "{refused}");
    }

    #[tokio::test]
    async fn a_server_that_nobody_waits_for_any_more_is_stopped_with_its_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("data")).unwrap();
        let (mut scratch, backup) =
            scratch(dir.path(), "echo $$ > pid.new; mv pid.new pid; exec sleep 600", 15).await;
        let waited = async {
            while !path("data/pid").exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            said = scratch.start(&backup, Duration::from_secs(60)) => panic!("{said:?}"),
            () = waited => {}
        }
        let pid = fs::read_to_string(path("data/pid")).unwrap();
        let process = PathBuf::from(format!("/proc/{}", pid.trim()));
        assert!(process.exists());
        drop(scratch);
        assert!(!process.exists());
    }
}
