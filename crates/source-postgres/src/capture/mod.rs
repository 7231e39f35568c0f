//! Base backups: a cluster as a source of snapshots (format.md §16).
//!
//! One connection streams the backup, another holds a temporary slot so that no WAL is removed meanwhile; the WAL comes
//! along in the stream. Relation files are checked page by page as they pass, and go to the engine's workers. Or the workers
//! read the files themselves, on the server's own host or through its SQL functions ([`files`]).

mod basis;
mod config;
mod content;
mod cutoff;
mod error;
mod facts;
mod files;
mod intake;
mod manifest;
mod options;
mod page;
mod pagemap;
mod patch;
mod place;
mod report;
mod tape;

use std::sync::{Arc, Mutex, PoisonError};

use backup_core::env::Clock;
use backup_core::source::{Found, Item, Opened, Order, Preflight, Previous, Source, SourceError};
use tokio::runtime::Handle;

use self::basis::{BAD_FILES_MAX, Basis, Origin};
use self::cutoff::CutOff;
pub use self::error::CaptureError;
use self::facts::Facts;
pub use self::files::LocalError;
use self::intake::{Intake, OrStop, Taken, Visit};
pub use self::options::{Asked, CaptureOptions, Reading};
use self::pagemap::PageMap;
pub use self::pagemap::PageMaps;
pub use self::tape::TapeError;
use crate::cluster::{Answer, Cluster, Database, Increment, Space};
use crate::history::History;
use crate::lsn::{Lsn, SegmentSize, Timeline};
use crate::options::ConnectOptions;
use crate::recovery::SOURCE_KIND;
use crate::replication::{BackupCommand, BackupEvent, Identity, SlotName, Started};
use crate::wire::{Client, PgError};

/// First version that says which blocks changed.
const SUMMARIES_MAJOR: u32 = 17;

/// A cluster as a source. One capture each.
#[derive(Debug)]
pub struct PgSource {
    connect: ConnectOptions,
    options: CaptureOptions,
    clock: Arc<dyn Clock>,
    handle: Handle,
    client: Mutex<Option<Client>>,
    identity: Identity,
    facts: Facts,
    segment: SegmentSize,
    databases: Vec<Database>,
    spaces: Vec<Space>,
    answers: Vec<Answer>,
    notes: Vec<String>,
    previous: Mutex<Option<Basis>>,
    done: Mutex<Option<Cluster>>,
}

/// What was read, apart from the items.
struct Streamed {
    started: Started,
    taken: Taken,
    end: (Lsn, Timeline),
    increment: Option<Increment>,
    map: Option<PageMap>,
}

impl PgSource {
    /// Connects and asks what there is to know. Must be called within a tokio runtime, which must outlive the source.
    pub async fn connect(
        connect: &ConnectOptions,
        options: CaptureOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CaptureError> {
        let mut client = Client::connect(connect).await?;
        // Further connections are to the same server.
        let mut connect = connect.clone();
        connect.hosts.retain(|host| host.describe() == client.host());
        let identity = client.identify().await?;
        let facts = facts::ask(&mut client).await?;
        let segment_bytes = u64::from(facts.segment_pages) * page::PAGE as u64;
        let supported_segment = u64::from(page::SEGMENT_PAGES) * page::PAGE as u64;
        for (what, size, supported) in [
            ("pages", u64::from(facts.block_size), page::PAGE as u64),
            ("segments of relations", segment_bytes, supported_segment),
        ] {
            if size != supported {
                return Err(CaptureError::Build { what, size, supported });
            }
        }
        let segment = client.segment_size().await?;
        let mut notes = Vec::new();
        let databases = facts::databases(&mut client, &connect, &mut notes).await?;
        let spaces = facts::tablespaces(&mut client).await?;
        let answers = facts::answers(&connect, &options.questions, &mut notes).await;
        Ok(Self {
            connect,
            options,
            clock,
            handle: Handle::current(),
            client: Mutex::new(Some(client)),
            identity,
            facts,
            segment,
            databases,
            spaces,
            answers,
            notes,
            previous: Mutex::new(None),
            done: Mutex::new(None),
        })
    }

    /// What was captured; `None` before the walk has ended well.
    pub fn cluster(&self) -> Option<Cluster> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn capture(&self, mut client: Client, visit: Visit<'_>) -> Result<(), CaptureError> {
        let begun = self.clock.now();
        let keeper = self.hold_wal(visit).await?;
        let basis = self.previous.lock().unwrap_or_else(PoisonError::into_inner).take();
        let history = known_history(&mut client, self.identity.timeline).await?;
        let basis = self.usable(basis, history.as_ref(), visit)?.map(Arc::new);
        let streamed = match &self.options.reading {
            Reading::Sent => self.stream(&mut client, basis.as_ref(), visit).await?,
            Reading::Local { .. } | Reading::Sql => {
                let slot = keeper.as_ref().map(|(_, slot)| slot);
                files::capture(self, &mut client, slot, basis.as_ref(), visit).await?
            }
        };
        let Streamed { started, mut taken, end, increment, map } = streamed;
        report::check_wal(&taken, started.start, end.0, self.segment)?;
        let configuration = config::capture(&mut client, &self.facts, taken.owner, visit).await?;
        let (bad_pages, bad_page_examples) = report::bad_pages(self, &taken.bad, visit).await?;
        let ended = self.clock.now();
        if !taken.patched.is_empty() {
            let whole = manifest::of_result(&taken.manifest, &taken.patched);
            taken.manifest = whole.ok_or_else(|| {
                CaptureError::Odd("the manifest of the base backup cannot be read".to_owned())
            })?;
        }
        let (key, entry) = (intake::data_key("backup_manifest")?, report::own_entry(ended, taken.owner));
        visit(intake::own_file(key, entry, taken.manifest)).or_stop()?;
        let cluster = Cluster {
            configuration,
            increment,
            bad_pages,
            bad_page_examples,
            ..report::cluster(self, &started, end, (begun, ended))
        };
        let history = match cluster.timeline == self.identity.timeline {
            true => history,
            false => known_history(&mut client, cluster.timeline).await?,
        };
        let origin =
            Origin { bad: report::bad_paths(&taken.bad), ..self.origin(&cluster, history.as_ref(), ended) };
        if let Some(Err(error)) = map.map(|map| map.finish(&origin)) {
            visit(Found::Note(format!("{} ({error})", intake::MAP_LOST))).or_stop()?;
        }
        visit(report::cluster_file(&cluster, &origin, ended, taken.owner)?).or_stop()?;
        *self.done.lock().unwrap_or_else(PoisonError::into_inner) = Some(cluster);
        if let Some((keeper, _)) = keeper {
            keeper.close().await;
        }
        client.close().await;
        Ok(())
    }

    fn origin(&self, cluster: &Cluster, history: Option<&History>, time: i64) -> Origin {
        Origin {
            system: cluster.system_identifier.to_string(),
            major: self.facts.server_version_num / 10_000,
            timeline: cluster.timeline.get(),
            begun: history.map(|history| history.begin().to_string()),
            counted: self.facts.counted.clone(),
            checksums: Some(self.facts.data_checksums),
            bad: Vec::new(),
            start: cluster.start_lsn.to_string(),
            stop: cluster.stop_lsn.to_string(),
            time,
        }
    }

    /// The last capture, if it is of this cluster; says so if it is not.
    fn usable(
        &self,
        basis: Option<Basis>,
        history: Option<&History>,
        visit: Visit<'_>,
    ) -> Result<Option<Basis>, CaptureError> {
        let Some(basis) = basis else { return Ok(None) };
        let (origin, major) = (&basis.origin, self.facts.server_version_num / 10_000);
        let reason = if origin.system != self.identity.system_id.to_string() {
            format!("the last snapshot is of cluster {}", origin.system)
        } else if origin.major != major {
            format!("the last snapshot is of PostgreSQL {}", origin.major)
        } else if self.has_summaries() && !origin.is_in(history, self.facts.counted.as_deref()) {
            // What changed is told along the server's own timelines. Page maps compare the pages themselves.
            format!("the last snapshot may be of another timeline {} than this server's", origin.timeline)
        } else if let Some(reason) =
            origin.outdated_pages(self.facts.data_checksums).filter(|_| self.has_summaries())
        {
            reason.to_owned()
        } else if origin.bad.len() > BAD_FILES_MAX {
            format!("the last snapshot has damaged pages in more than {BAD_FILES_MAX} files")
        } else {
            return Ok(Some(basis));
        };
        visit(Found::Note(format!("everything is read: {reason}"))).or_stop()?;
        Ok(None)
    }

    /// Whether the server knows what changed.
    fn has_summaries(&self) -> bool {
        self.facts.server_version_num / 10_000 >= SUMMARIES_MAJOR && self.facts.summarize_wal
    }

    /// Hands the server the manifest of the last capture. `false`, with a note, if that is no use.
    async fn offer(
        &self,
        client: &mut Client,
        basis: &Basis,
        visit: Visit<'_>,
    ) -> Result<bool, CaptureError> {
        match client.upload_manifest(&manifest::of_basis(basis)).await {
            Ok(()) => Ok(true),
            Err(PgError::Server { error, .. }) => {
                visit(Found::Note(format!("everything is read: {error}"))).or_stop()?;
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What of the last capture a server can be trusted to tell the changes of; `None`, with a note, if that is not known.
    async fn not_cut_off(&self, basis: &Basis, visit: Visit<'_>) -> Result<Option<Basis>, CaptureError> {
        match self.cut_off(basis, None).await {
            Ok(cut) => Ok(Some(cut.without(basis))),
            Err(error) => {
                visit(Found::Note(format!("everything is read: {}", crate::one_line(&error)))).or_stop()?;
                Ok(None)
            }
        }
    }

    /// Asks on a connection of its own: the other one may be sending.
    async fn cut_off(&self, basis: &Basis, to: Option<Lsn>) -> Result<CutOff, PgError> {
        let odd = |_| PgError::Protocol("the last snapshot does not say where it begins".to_owned());
        let from = basis.origin.start.parse::<Lsn>().map_err(odd)?;
        let mut client = Client::connect(&self.connect).await?;
        let cut = CutOff::ask(&mut client, from, to).await?;
        client.close().await;
        Ok(cut)
    }

    /// Opens the page map, where one is of use.
    fn page_map(
        &self,
        basis: Option<&Arc<Basis>>,
        visit: Visit<'_>,
    ) -> Result<Option<PageMap>, CaptureError> {
        let Some(maps) = self.options.page_maps.as_ref().filter(|_| !self.has_summaries()) else {
            return Ok(None);
        };
        let (map, note) = match PageMap::open(maps, basis) {
            Ok(map) => {
                let lost = basis.is_some() && !map.compares();
                (
                    Some(map),
                    lost.then(|| {
                        "which pages the last backup had is not known on this host; more is stored".to_owned()
                    }),
                )
            }
            Err(error) => (None, Some(format!("{} ({error})", intake::MAP_LOST))),
        };
        if let Some(note) = note {
            visit(Found::Note(note)).or_stop()?;
        }
        Ok(map)
    }

    /// Makes the server keep all WAL from now on, for as long as the connection lasts.
    async fn hold_wal(&self, visit: Visit<'_>) -> Result<Option<(Client, SlotName)>, CaptureError> {
        let mut keeper = Client::connect(&self.connect).await?;
        // It says nothing until all is over.
        keeper.query("SET idle_session_timeout = 0", "keep the session").await?;
        let rows =
            keeper.query("SELECT pg_backend_pid() AS pid", "ask for the number of the session").await?;
        let name = rows.first("pid").and_then(|pid| SlotName::new(&format!("keepwell_backup_{pid}")));
        let name = name.ok_or_else(|| CaptureError::Odd("the session has no number".to_owned()))?;
        match keeper.create_slot(&name, true).await {
            Ok(()) => Ok(Some((keeper, name))),
            Err(PgError::Server { error, .. }) => {
                let text = format!(
                    "no slot holds WAL for the backup ({error}); if the server removes some too early, it fails"
                );
                visit(Found::Note(text)).or_stop()?;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn command(&self, incremental: bool) -> BackupCommand {
        BackupCommand {
            label: self.options.label.clone(),
            checkpoint: self.options.checkpoint,
            max_rate_kb: self.options.max_rate_kb,
            // It reads a page again that it caught half written, which we cannot.
            server_checks_pages: self.facts.data_checksums,
            wal: true,
            incremental,
        }
    }

    async fn stream(
        &self,
        client: &mut Client,
        basis: Option<&Arc<Basis>>,
        visit: Visit<'_>,
    ) -> Result<Streamed, CaptureError> {
        let mut patched = match basis.filter(|_| self.has_summaries()) {
            Some(basis) => self.not_cut_off(basis, visit).await?,
            None => None,
        };
        if let Some(last) = &patched
            && !self.offer(client, last, visit).await?
        {
            patched = None;
        }
        let mut begun = client.base_backup(&self.command(patched.is_some())).await;
        if let (Err(PgError::Server { error, .. }), Some(_)) = (&begun, &patched) {
            // Summaries are missing, the timeline is another one, or the standby has seen no checkpoint since.
            visit(Found::Note(format!("everything is read: {error}"))).or_stop()?;
            patched = None;
            begun = client.base_backup(&self.command(false)).await;
        }
        let (started, mut stream) = begun?;
        visit(Found::Expected(started.estimate)).or_stop()?;
        let map = self.page_map(basis, visit)?;
        let method = match (&patched, &map) {
            (Some(_), _) => Some("wal-summaries"),
            (None, Some(map)) if map.compares() => Some("page-map"),
            _ => None,
        };
        let judge = self.facts.data_checksums.then_some(started.start);
        let cut = match &patched {
            Some(last) => self.cut_off(last, Some(started.start)).await?,
            None => CutOff::default(),
        };
        if let Some(key) = patched.as_ref().and_then(|last| cut.forgotten(last)) {
            return Err(CaptureError::CutOff { path: key.display_path() });
        }
        let mut intake = Intake::new(visit, judge, patched.as_ref(), map).knowing(cut);
        while let Some(event) = stream.next().await? {
            match event {
                BackupEvent::Archive(space) => intake.archive(space.as_ref())?,
                BackupEvent::Data(data) => intake.data(data)?,
                BackupEvent::Manifest(data) => intake.manifest(&data)?,
            }
        }
        let end = stream.end().ok_or_else(|| CaptureError::Odd("the base backup has no end".to_owned()))?;
        let (taken, map) = intake.finish()?;
        let increment = basis.zip(method).map(|(basis, method)| increment(basis, method));
        Ok(Streamed { started, taken, end, increment, map })
    }
}

/// The history of a timeline; `None` where the server does not have it.
async fn known_history(client: &mut Client, timeline: Timeline) -> Result<Option<History>, PgError> {
    match client.history(timeline).await {
        Ok(history) => Ok(Some(history)),
        Err(PgError::Server { .. } | PgError::Protocol(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn increment(basis: &Basis, method: &str) -> Increment {
    Increment {
        start_lsn: basis.origin.start.clone(),
        timeline: basis.origin.timeline,
        method: method.to_owned(),
    }
}

impl Source for PgSource {
    fn kind(&self) -> &str {
        SOURCE_KIND
    }

    fn paths(&self) -> Vec<Vec<u8>> {
        // The layout is our own; where the server has its files, `cluster.json` says.
        vec![b"/".to_vec()]
    }

    fn preflight(&self) -> Result<Preflight, SourceError> {
        Ok(Preflight { notes: self.notes.clone() })
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn previous(&self, entries: Vec<Previous>) {
        *self.previous.lock().unwrap_or_else(PoisonError::into_inner) = Basis::of(entries);
    }

    fn walk(&self, visit: Visit<'_>) -> Result<(), SourceError> {
        let client = self.client.lock().unwrap_or_else(PoisonError::into_inner).take();
        let client =
            client.ok_or_else(|| SourceError::Other("this source was captured already".to_owned()))?;
        match self.handle.block_on(self.capture(client, visit)) {
            // The engine, which said so, knows why.
            Ok(()) | Err(CaptureError::Stopped) => Ok(()),
            Err(error) => Err(SourceError::Failed(Box::new(error))),
        }
    }

    fn open(&self, item: &Item) -> Result<Option<Opened>, SourceError> {
        Err(SourceError::Other(format!("`{}` came without its content", item.key.display_path())))
    }
}

/// Feeds what a server may send of a base backup to its decoders; for the fuzzer.
#[doc(hidden)]
pub fn fuzz_base_backup(bytes: &[u8]) {
    tape::fuzz(bytes);
    patch::fuzz(bytes);
}
