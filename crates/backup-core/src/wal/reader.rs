//! Reading an archived log.

use bytes::Bytes;
use keepwell_catalog::WalHeader;
use keepwell_catalog::wal::{self, WAL_PIECE_BYTES_MAX, WalHash, WalName, WalPlace};
use keepwell_crypto::trust::Roles;
use keepwell_crypto::{MemberId, Signed};
use keepwell_storage::Key;

use crate::Error;
use crate::repository::{Repository, fetch_at_most};

/// What a piece may have beyond its plaintext: header, signature, frames.
const OVERHEAD_MAX: u64 = 1 << 20;
/// Largest piece that is opened.
const OPENED_MAX: u64 = WAL_PIECE_BYTES_MAX as u64 + OVERHEAD_MAX;

/// A piece of the log, opened and verified.
#[derive(Debug, Clone)]
pub struct WalPiece {
    /// What the writer says about it.
    pub header: WalHeader,
    /// The bytes.
    pub plaintext: Vec<u8>,
}

/// Reads the log of one cluster, whoever archived it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct WalReader {
    repository: Repository,
    system: u64,
}

impl Repository {
    /// Clusters of which somebody archived something. Costs a request per member and one per cluster.
    pub async fn wal_systems(&self) -> Result<Vec<u64>, Error> {
        let mut found = Vec::new();
        for member in self.chain().members().map(keepwell_crypto::trust::Member::id) {
            let prefix = format!("wal/{member}/");
            let mut after: Option<Key> = None;
            while let Some(first) = self.store().list_page(&prefix, after.as_ref()).await?.objects.first() {
                let part =
                    first.key.as_str()[prefix.len()..].split('/').next().unwrap_or_default().to_owned();
                if let (16, Ok(system)) = (part.len(), u64::from_str_radix(&part, 16)) {
                    found.push(system);
                }
                let behind = format!("{prefix}{part}/z").parse::<Key>().ok().filter(|key| *key > first.key);
                after = Some(behind.unwrap_or_else(|| first.key.clone()));
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Reads the archived log of a cluster. Fails for a credential that cannot decrypt.
    pub fn wal_reader(&self, system: u64) -> Result<WalReader, Error> {
        if !self.can_read() {
            return Err(self.access().cannot("read an archived log"));
        }
        Ok(WalReader { repository: self.clone(), system })
    }
}

impl WalReader {
    /// The cluster.
    pub fn system(&self) -> u64 {
        self.system
    }

    /// Members that archived something of this cluster. Costs one request per member.
    pub async fn writers(&self) -> Result<Vec<MemberId>, Error> {
        let mut writers = Vec::new();
        for member in self.repository.chain().members().map(keepwell_crypto::trust::Member::id) {
            let prefix = wal::system_prefix(member, self.system);
            if !self.repository.store().list_page(&prefix, None).await?.objects.is_empty() {
                writers.push(member);
            }
        }
        Ok(writers)
    }

    /// The timelines of which a writer archived something, ascending.
    pub async fn timelines(&self, writer: MemberId) -> Result<Vec<u32>, Error> {
        timelines(&self.repository, writer, self.system).await
    }

    /// A writer's pieces of a timeline from a file on, in order; the history file comes last.
    pub async fn pieces_from(
        &self,
        writer: MemberId,
        timeline: u32,
        file: u64,
    ) -> Result<Vec<WalName>, Error> {
        pieces_from(&self.repository, writer, self.system, timeline, file).await
    }

    /// The first of a writer's pieces of a timeline from a file on, at most a thousand; costs one request.
    pub async fn some_from(&self, writer: MemberId, timeline: u32, file: u64) -> Result<Vec<WalName>, Error> {
        let prefix = wal::timeline_prefix(writer, self.system, timeline);
        let after = file.checked_sub(1).map(|file| wal::after_file(writer, self.system, timeline, file));
        let page = self.repository.store().list_page(&prefix, after.as_ref()).await?;
        Ok(page.objects.iter().filter_map(|info| info.key.as_str().parse().ok()).collect())
    }

    /// The history files of a timeline that were archived, each with its content.
    pub async fn histories(&self, writer: MemberId, timeline: u32) -> Result<Vec<WalPiece>, Error> {
        let mut found = Vec::new();
        for name in self.pieces_from(writer, timeline, u64::MAX).await? {
            if name.place == WalPlace::History {
                found.push(self.read(&name).await?);
            }
        }
        Ok(found)
    }

    /// Fetches a piece, and proves that a member archived exactly these bytes as this part of this log.
    pub async fn read(&self, name: &WalName) -> Result<WalPiece, Error> {
        let key = name.key();
        let sealed = fetch_at_most(self.repository.store(), &key, 2 * OPENED_MAX).await?;
        self.prove(name, sealed).await
    }

    /// The same of stored bytes that are at hand.
    pub(super) async fn prove(&self, name: &WalName, sealed: Bytes) -> Result<WalPiece, Error> {
        let (this, name) = (self.clone(), *name);
        let opened = tokio::task::spawn_blocking(move || this.open(&name, &sealed));
        opened.await.map_err(|e| Error::Task(e.to_string()))?
    }

    fn open(&self, name: &WalName, sealed: &[u8]) -> Result<WalPiece, Error> {
        let repository = &self.repository;
        let damaged = |reason: &dyn std::fmt::Display| Error::damaged(name, reason);
        let mut keys = repository.access().domains().filter(|domain| !domain.identities.is_empty());
        let opened = keys.find_map(|domain| {
            let opened = keepwell_crypto::open(&domain.identities, sealed, OPENED_MAX).ok()?;
            Some((domain, opened))
        });
        let (domain, opened) = opened.ok_or_else(|| damaged(&"no key at hand opens it"))?;
        let (signed, plaintext) = wal::decode_piece(&opened).map_err(|e| damaged(&e))?;
        let signed = Signed::from_bytes(signed).map_err(|e| damaged(&e))?;
        let may_write = Roles::WRITER | Roles::KEEPER;
        repository.chain().verify_author(&signed, WalHeader::KIND, may_write).map_err(|e| damaged(&e))?;
        let header = WalHeader::decode(&signed.payload).map_err(|e| damaged(&e))?;
        let said = WalName {
            writer: header.writer,
            system: header.system,
            timeline: header.timeline,
            place: header.place,
            hash: header.hash,
        };
        if signed.signer != header.writer || said != *name {
            return Err(damaged(&"it belongs elsewhere"));
        }
        let length = match header.place {
            WalPlace::Bytes { from, to, .. } => u64::from(to - from),
            WalPlace::History => plaintext.len() as u64,
        };
        if WalHash::of(&domain.id_key, &plaintext) != header.hash || plaintext.len() as u64 != length {
            return Err(damaged(&"its content is not what was archived"));
        }
        Ok(WalPiece { header, plaintext })
    }
}

/// Jumps from timeline to timeline; costs one request for each.
pub(super) async fn timelines(
    repository: &Repository,
    writer: MemberId,
    system: u64,
) -> Result<Vec<u32>, Error> {
    let prefix = wal::system_prefix(writer, system);
    let (mut found, mut after): (Vec<u32>, Option<Key>) = (Vec::new(), None);
    loop {
        let page = repository.store().list_page(&prefix, after.as_ref()).await?;
        let Some(last) = page.objects.last() else { return Ok(found) };
        let names = page.objects.iter().filter_map(|info| info.key.as_str().parse::<WalName>().ok());
        for timeline in names.map(|name| name.timeline) {
            if found.last() != Some(&timeline) {
                found.push(timeline);
            }
        }
        if !page.more {
            return Ok(found);
        }
        after = Some(match found.last() {
            Some(timeline) => wal::after_timeline(writer, system, *timeline).max(last.key.clone()),
            None => last.key.clone(),
        });
    }
}

pub(super) async fn pieces_from(
    repository: &Repository,
    writer: MemberId,
    system: u64,
    timeline: u32,
    file: u64,
) -> Result<Vec<WalName>, Error> {
    let prefix = wal::timeline_prefix(writer, system, timeline);
    let mut after = file.checked_sub(1).map(|file| wal::after_file(writer, system, timeline, file));
    let mut found = Vec::new();
    loop {
        let page = repository.store().list_page(&prefix, after.as_ref()).await?;
        let Some(last) = page.objects.last() else { return Ok(found) };
        found.extend(page.objects.iter().filter_map(|info| info.key.as_str().parse::<WalName>().ok()));
        if !page.more {
            return Ok(found);
        }
        after = Some(last.key.clone());
    }
}
