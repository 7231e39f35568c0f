//! Archiving.

use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use keepwell_catalog::wal::{self, PieceEncoder, WalHash, WalName, WalPlace};
use keepwell_catalog::{WalCluster, WalHeader, dataset_tag};
use keepwell_crypto::trust::Roles;
use keepwell_crypto::{CryptoError, MemberId, SealWriter};

use crate::Error;
use crate::repository::{Repository, fetch_listed};

/// Archived at the speed of the log: compression must not become its limit.
const LEVEL: i32 = 1;

/// Whether a piece was new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Archived {
    /// It was stored.
    Stored,
    /// The very same bytes were archived before.
    Already,
}

/// Archives the log of one cluster. Cheap to clone.
#[derive(Debug, Clone)]
pub struct WalWriter {
    repository: Repository,
    writer: MemberId,
    system: u64,
    file_bytes: u32,
    /// What makes pieces, where nobody uses it at the moment: fresh memory for each piece costs a fifth of the work.
    encoders: Arc<Mutex<Vec<PieceEncoder>>>,
}

impl Repository {
    /// Begins to archive the log of the cluster `system` for a dataset, whose files are `file_bytes` long.
    ///
    /// The first call for a dataset binds it to the cluster. Another cluster is refused from then on
    /// ([`Error::Invalid`]), unless `rebind` says that it is meant to take the place of the first.
    pub async fn wal_writer(
        &self,
        dataset: &str,
        system: u64,
        file_bytes: u32,
        rebind: bool,
    ) -> Result<WalWriter, Error> {
        let writer = self.writer()?;
        let tag = dataset_tag(&self.domain().id_key, dataset);
        loop {
            let bound = bound_cluster(self, writer, &tag).await?;
            let n = match bound {
                Some((_, found)) if found == system => break,
                Some((_, found)) if !rebind => {
                    return Err(Error::Invalid(format!(
                        "the log of `{dataset}` is that of cluster {found}, and this is cluster {system}"
                    )));
                }
                Some((n, _)) => n + 1,
                None => 0,
            };
            let record = WalCluster { writer, tag, n, system, time: self.now() };
            let signed = self.sign(WalCluster::KIND, record.encode())?;
            if self.put_own(&wal::cluster_key(writer, &tag, n), signed).await? {
                break;
            }
        }
        Ok(WalWriter::of(self, writer, system, file_bytes))
    }
}

/// The newest record of a dataset: its number and the cluster it names.
async fn bound_cluster(
    repository: &Repository,
    writer: MemberId,
    tag: &[u8; 16],
) -> Result<Option<(u64, u64)>, Error> {
    let Some(last) = repository.list(&wal::cluster_prefix(writer, tag)).await?.pop() else { return Ok(None) };
    let bytes = fetch_listed(repository.store(), &last).await?;
    let damaged = |reason: &dyn std::fmt::Display| Error::damaged(&last.key, reason);
    let signed = keepwell_crypto::Signed::from_bytes(&bytes).map_err(|e| damaged(&e))?;
    repository
        .chain()
        .verify_author(&signed, WalCluster::KIND, Roles::WRITER | Roles::KEEPER)
        .map_err(|e| damaged(&e))?;
    let record = WalCluster::decode(&signed.payload).map_err(|e| damaged(&e))?;
    let fits = signed.signer == writer && record.writer == writer && record.tag == *tag;
    if !fits || wal::cluster_key(writer, tag, record.n) != last.key {
        return Err(damaged(&"it belongs elsewhere"));
    }
    Ok(Some((record.n, record.system)))
}

impl WalWriter {
    /// Without looking which cluster a dataset is bound to.
    pub(super) fn of(repository: &Repository, writer: MemberId, system: u64, file_bytes: u32) -> Self {
        Self { repository: repository.clone(), writer, system, file_bytes, encoders: Arc::default() }
    }

    /// The cluster.
    pub fn system(&self) -> u64 {
        self.system
    }

    /// Length of each file of the log, in bytes.
    pub fn file_bytes(&self) -> u32 {
        self.file_bytes
    }

    /// The name that these bytes would have.
    pub fn hash(&self, plaintext: &[u8]) -> WalHash {
        WalHash::of(&self.repository.domain().id_key, plaintext)
    }

    /// Archives a piece; it is durable when this returns. `previous` is the piece that it continues.
    ///
    /// At most 16 MiB. Equal bytes at the same place are [`Archived::Already`]; other bytes at the same place are for
    /// the caller to notice, in [`WalWriter::pieces_of`].
    pub async fn put(
        &self,
        timeline: u32,
        place: WalPlace,
        plaintext: Bytes,
        previous: Option<WalHash>,
    ) -> Result<(Archived, WalHash), Error> {
        let this = self.clone();
        let sealed = tokio::task::spawn_blocking(move || this.seal(timeline, place, &plaintext, previous));
        let (name, sealed) = sealed.await.map_err(|e| Error::Task(e.to_string()))??;
        match self.repository.store().put_new(&name.key(), Bytes::from(sealed)).await {
            Ok(()) => Ok((Archived::Stored, name.hash)),
            // The name says what is in it.
            Err(error) if error.is_already_exists() => Ok((Archived::Already, name.hash)),
            Err(error) => Err(error.into()),
        }
    }

    fn seal(
        &self,
        timeline: u32,
        place: WalPlace,
        plaintext: &[u8],
        previous: Option<WalHash>,
    ) -> Result<(WalName, Vec<u8>), Error> {
        let hash = self.hash(plaintext);
        let header = WalHeader {
            writer: self.writer,
            system: self.system,
            timeline,
            place,
            file_bytes: self.file_bytes,
            hash,
            previous,
            time: self.repository.now(),
        };
        let signed = self.repository.sign(WalHeader::KIND, header.encode())?;
        let mut encoder = match self.encoders().pop() {
            Some(encoder) => encoder,
            None => PieceEncoder::new(LEVEL)?,
        };
        let (head, compressed) = encoder.encode(&signed, plaintext)?;
        let recipient = &self.repository.domain().recipient;
        let length = head.len() + compressed.len();
        let room = Vec::with_capacity(length + length / 2048 + 1024);
        let mut sealed = SealWriter::new(std::slice::from_ref(recipient), room)?;
        let written = sealed.write_all(&head).and_then(|()| sealed.write_all(compressed));
        let sealed = written.and_then(|()| sealed.finish()).map_err(|source| CryptoError::Io { source })?;
        self.encoders().push(encoder);
        Ok((WalName { writer: self.writer, system: self.system, timeline, place, hash }, sealed))
    }

    fn encoders(&self) -> std::sync::MutexGuard<'_, Vec<PieceEncoder>> {
        self.encoders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The timelines of which something is archived, ascending.
    pub async fn timelines(&self) -> Result<Vec<u32>, Error> {
        super::reader::timelines(&self.repository, self.writer, self.system).await
    }

    /// Pieces of a timeline from a file on, in order; the history file comes last. Holds all their names in memory.
    pub async fn pieces_from(&self, timeline: u32, file: u64) -> Result<Vec<WalName>, Error> {
        super::reader::pieces_from(&self.repository, self.writer, self.system, timeline, file).await
    }

    /// Pieces of one file, in order.
    pub async fn pieces_of(&self, timeline: u32, file: u64) -> Result<Vec<WalName>, Error> {
        let prefix = format!("{}{file:016x}/", wal::timeline_prefix(self.writer, self.system, timeline));
        let listed = self.repository.list(&prefix).await?;
        Ok(listed.iter().filter_map(|info| info.key.as_str().parse().ok()).collect())
    }

    /// Whether anything of a timeline is archived from `file` on; costs one request.
    pub async fn has_from(&self, timeline: u32, file: u64) -> Result<bool, Error> {
        let prefix = wal::timeline_prefix(self.writer, self.system, timeline);
        let after = file.checked_sub(1).map(|file| wal::after_file(self.writer, self.system, timeline, file));
        let page = self.repository.store().list_page(&prefix, after.as_ref()).await?;
        let first = page.objects.first().and_then(|info| info.key.as_str().parse::<WalName>().ok());
        Ok(first.is_some_and(|name| matches!(name.place, WalPlace::Bytes { .. })))
    }
}
