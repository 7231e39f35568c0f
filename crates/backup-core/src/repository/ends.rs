//! Ends of sessions: commits, checkpoints, fences.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use keepwell_catalog::names::{self, ObjectName};
use keepwell_catalog::{Commit, CommitKind};
use keepwell_crypto::trust::{Chain, Roles, TrustError};
use keepwell_crypto::{Digest, MemberId, Signed, StoreId};

use super::seen::Reading;
use super::{Repository, Snapshot};
use crate::Error;
use crate::parallel;
use crate::planted::planted;

/// One verified end of a session.
#[derive(Debug, Clone)]
pub(crate) struct End {
    pub writer: MemberId,
    pub n: u64,
    /// SHA-256 of the stored bytes.
    pub digest: Digest,
    /// It is a fence that a keeper signed.
    pub by_keeper: bool,
    pub commit: Commit,
    /// When the store received it, by its own clock, if a listing told.
    pub stored: Option<i64>,
    /// Why nothing that it says counts, if its writer was revoked before: then `commit` is a fence, whatever it was.
    pub refused: Option<String>,
}

/// Ends of the writer itself that the listing at a claim goes back by, beyond the newest: datasets that are captured in
/// turn find their last snapshot without another listing.
const OWN_BACK: u64 = 500;
/// The newest end of each writer, as last listed.
const NEWEST: &str = "ends";

/// What a new session says about those before it.
#[derive(Debug, Default)]
pub(crate) struct Before {
    /// The number after the writer's newest end.
    pub next: u64,
    /// The writer's ends that none of them names yet, with their hashes.
    pub previous: Vec<(u64, Digest)>,
    /// The newest end of every other writer.
    pub seen: Vec<(MemberId, u64)>,
    pub own: OwnEnds,
}

/// Numbers of a writer's ends, as far back as somebody asked.
#[derive(Debug, Default)]
pub(crate) struct OwnEnds {
    /// Ascending.
    numbers: Vec<u64>,
    /// Ends below this one were not listed.
    from: u64,
}

impl OwnEnds {
    /// The newest end below a number, or of all; lists older ones when those at hand do not reach so far.
    pub async fn before(
        &mut self,
        repository: &Repository,
        writer: MemberId,
        below: Option<u64>,
    ) -> Result<Option<u64>, Error> {
        loop {
            let end = below.map_or(self.numbers.len(), |below| self.numbers.partition_point(|n| *n < below));
            match end.checked_sub(1) {
                Some(at) => return Ok(Some(self.numbers[at])),
                None if self.from == 0 => return Ok(None),
                None => {
                    self.numbers = read_own_ends(repository, writer).await?;
                    self.from = 0;
                }
            }
        }
    }
}

/// Reads what a new session of `writer` has to name. Ends that are damaged are left out: a check reports them.
///
/// Costs a listing from the newest ends on that this host knows, and a request for each end since the writer's last
/// commit that the cache does not hold.
pub(crate) async fn read_before(repository: &Repository, writer: MemberId) -> Result<Before, Error> {
    let (newest, mut own) = list_newest(repository, writer).await?;
    let mut before = Before { next: newest.get(&writer).map_or(0, |n| n + 1), ..Before::default() };
    before.seen = newest.into_iter().filter(|(by, _)| *by != writer).collect();
    let mut named = None; // ends up to this one are named by one that was read
    let mut last = None;
    while let Some(n) = own.before(repository, writer, last).await? {
        if named.is_some_and(|named| n <= named) {
            break;
        }
        last = Some(n);
        match read_end(repository, writer, n).await {
            Ok(end) => {
                before.previous.push((n, end.digest));
                if named.is_none() && end.commit.kind != CommitKind::Fence {
                    named = end.commit.previous.iter().map(|(n, _)| *n).max();
                }
            }
            Err(Error::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    before.previous.sort_unstable();
    before.own = own;
    Ok(before)
}

/// The newest end of every member, and the numbers of the writer's own ends.
async fn list_newest(
    repository: &Repository,
    writer: MemberId,
) -> Result<(BTreeMap<MemberId, u64>, OwnEnds), Error> {
    let known = read_newest(repository);
    let (newest, own) = list_from(repository, writer, &known).await?;
    let (newest, own) = match known.iter().all(|(by, n)| newest.get(by) >= Some(n)) {
        true => (newest, own),
        false => list_from(repository, writer, &BTreeMap::new()).await?, // the cache is not of this store
    };
    if newest != known {
        let lines: String = newest.iter().map(|(by, n)| format!("{by} {n}\n")).collect();
        let _ = repository.cache().store(NEWEST, lines.as_bytes());
    }
    Ok((newest, own))
}

/// Lists ends, skipping those of each writer that are older than the known one. That one is listed again, so that a
/// wrong cache shows.
async fn list_from(
    repository: &Repository,
    writer: MemberId,
    known: &BTreeMap<MemberId, u64>,
) -> Result<(BTreeMap<MemberId, u64>, OwnEnds), Error> {
    let members: BTreeSet<MemberId> = repository.chain().members().map(|member| member.id()).collect();
    let first_of = |by: &MemberId| {
        let back = if *by == writer { OWN_BACK } else { 0 };
        known.get(by).map_or(0, |n| n.saturating_sub(back))
    };
    let skip = |by: &MemberId| first_of(by).checked_sub(1).map(|n| names::commit_key(*by, n));
    let (mut newest, mut own) = (BTreeMap::new(), OwnEnds { numbers: Vec::new(), from: first_of(&writer) });
    let mut after = members.first().and_then(skip);
    loop {
        let page = repository.store().list_page("commits/", after.as_ref()).await?;
        let mut last = None;
        for info in &page.objects {
            let Ok(ObjectName::Commit(by, n)) = info.key.as_str().parse() else { continue };
            if by == writer && n >= own.from {
                own.numbers.push(n);
            }
            if members.contains(&by) {
                newest.insert(by, n);
            }
            last = Some(by);
        }
        after = match page.objects.last() {
            Some(end) if page.more => Some(end.key.clone()).max(last.as_ref().and_then(skip)),
            _ => return Ok((newest, own)),
        };
    }
}

fn read_newest(repository: &Repository) -> BTreeMap<MemberId, u64> {
    let bytes = repository.cache().read(NEWEST).unwrap_or_default();
    let text = std::str::from_utf8(&bytes).unwrap_or_default();
    let parse = |line: &str| {
        let (by, n) = line.split_once(' ')?;
        Some((by.parse().ok()?, n.parse::<u64>().ok().filter(|n| *n <= names::NUMBER_MAX)?))
    };
    text.lines().filter_map(parse).collect()
}

/// Every end, in order of writer and number, and the names of those that do not verify, with the reason.
///
/// Costs a listing, and a request for each end that the cache does not hold as it is listed (`seen.rs`), several at a
/// time.
pub(crate) async fn read_ends(repository: &Repository) -> Result<(Vec<End>, Vec<(String, String)>), Error> {
    read_listed(repository, Reading::of(repository, "commits")).await
}

/// The same for what deletes: where the store tells no times, every end is read from it.
pub(crate) async fn read_ends_anew(
    repository: &Repository,
) -> Result<(Vec<End>, Vec<(String, String)>), Error> {
    read_listed(repository, Reading::anew(repository, "commits")).await
}

async fn read_listed(
    repository: &Repository,
    reading: Reading,
) -> Result<(Vec<End>, Vec<(String, String)>), Error> {
    let (mut listed, mut undecided) = (Vec::new(), Vec::new());
    for info in repository.list("commits/").await? {
        match info.key.as_str().parse() {
            Ok(ObjectName::Commit(writer, n)) => listed.push((writer, n, info)),
            _ => undecided.push((info.key.to_string(), "not the name of a commit".to_owned())),
        }
    }
    let reading = Arc::new(reading);
    let reads = listed.into_iter().map(|(writer, n, info)| {
        let (repository, reading) = (repository.clone(), Arc::clone(&reading));
        async move {
            match reading.read(&repository, &info, prover(&repository, writer, n)).await {
                Ok(end) => Ok(Ok(End { stored: info.modified, ..end })),
                // Ends are never deleted, but for a moment by a repair, which may have died.
                Err(Error::Storage(error)) if error.is_not_found() => {
                    Ok(Err((info.key.to_string(), "it was listed, and is gone".to_owned())))
                }
                Err(error @ Error::Storage(_)) => Err(error),
                Err(error) => Ok(Err((info.key.to_string(), crate::error::one_line(&error)))),
            }
        }
    });
    let mut ends = Vec::new();
    for read in parallel::all(reads).await? {
        match read {
            Ok(end) => ends.push(end),
            Err(problem) => undecided.push(problem),
        }
    }
    reading.end(repository);
    Ok((ends, undecided))
}

/// Numbers of a writer's ends, ascending.
pub(crate) async fn read_own_ends(repository: &Repository, writer: MemberId) -> Result<Vec<u64>, Error> {
    let mut numbers = Vec::new();
    for info in repository.list(&format!("commits/{writer}/")).await? {
        if let Ok(ObjectName::Commit(_, n)) = info.key.as_str().parse() {
            numbers.push(n);
        }
    }
    Ok(numbers)
}

impl Repository {
    /// Reads and verifies one end.
    pub(crate) async fn read_end(&self, writer: MemberId, n: u64) -> Result<End, Error> {
        read_end(self, writer, n).await
    }

    /// The bytes of a snapshot's commit, proved to be that commit.
    pub(crate) async fn commit_bytes(&self, snapshot: &Snapshot) -> Result<Vec<u8>, Error> {
        let (writer, n) = snapshot.place();
        let key = names::commit_key(writer, n);
        let prove = |bytes: &[u8]| match prover(self, writer, n)(bytes)?.commit == snapshot.commit {
            true => Ok(bytes.to_vec()),
            false => Err(Error::damaged(&key, "it is another commit than was read a moment ago")),
        };
        self.records().get(&key, prove).await
    }
}

/// Reads and verifies one end: signed by the writer itself, or a fence by a keeper.
pub(crate) async fn read_end(repository: &Repository, writer: MemberId, n: u64) -> Result<End, Error> {
    repository.records().get(&names::commit_key(writer, n), prover(repository, writer, n)).await
}

fn prover(repository: &Repository, writer: MemberId, n: u64) -> impl Fn(&[u8]) -> Result<End, Error> {
    move |bytes| {
        let chain = repository.chain_lock().read().unwrap_or_else(std::sync::PoisonError::into_inner);
        verify_end(&chain, Some(repository.store_id()), writer, n, bytes)
    }
}

/// Verifies the stored bytes of an end, with public information only. `store` is left open where it is not known. What a
/// revoked writer committed is a fence.
pub(crate) fn verify_end(
    chain: &Chain,
    store: Option<StoreId>,
    writer: MemberId,
    n: u64,
    bytes: &[u8],
) -> Result<End, Error> {
    let key = names::commit_key(writer, n);
    let signed = Signed::from_bytes(bytes).map_err(|e| Error::damaged(&key, e))?;
    let commit = Commit::decode(&signed.payload).map_err(|e| Error::damaged(&key, e))?;
    if store.is_some_and(|store| store != commit.store) || commit.writer != writer || commit.n != n {
        return Err(Error::damaged(&key, "it belongs elsewhere"));
    }
    let may_write = Roles::WRITER | Roles::KEEPER;
    let verified = match (signed.signer == writer, commit.kind) {
        (true, CommitKind::Fence) => chain.verify_author(&signed, Commit::KIND, may_write),
        (true, _) => chain.verify_member(&signed, Commit::KIND, may_write, Some((writer, n))).map(|_| ()),
        (false, CommitKind::Fence) => chain.verify_author(&signed, Commit::KIND, Roles::KEEPER),
        (false, _) => return Err(Error::damaged(&key, "it is not signed by its writer")),
    };
    // It is an end all the same, if its author signed it: its number is taken, and nothing hides behind it.
    let (verified, refused) = match verified {
        Err(error @ TrustError::Revoked { .. }) => {
            let why = (!planted("believe-revoked")).then(|| crate::error::one_line(&error));
            (chain.verify_author(&signed, Commit::KIND, may_write), why)
        }
        verified => (verified, None),
    };
    if !planted("believe-unsigned") {
        verified.map_err(|e| Error::damaged(&key, e))?;
    }
    let by_keeper = refused.is_none()
        && commit.kind == CommitKind::Fence
        && chain.verify_author(&signed, Commit::KIND, Roles::KEEPER).is_ok();
    let commit = match (&refused, commit.kind) {
        (Some(_), _) => without_a_word(&commit),
        // A fence counts also after a revocation; so it ends its session, and nothing else that it says is heard.
        (None, CommitKind::Fence) => Commit { previous: commit.previous.clone(), ..without_a_word(&commit) },
        (None, _) => commit,
    };
    Ok(End { writer, n, digest: Digest::of(bytes), by_keeper, commit, stored: None, refused })
}

/// What is left of a commit that is refused: the end of its session.
fn without_a_word(commit: &Commit) -> Commit {
    Commit::fence(commit.store, commit.writer, commit.n, commit.time)
}
