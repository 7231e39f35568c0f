//! The records: commits, their order, retirements, manifests.

use std::collections::{BTreeMap, BTreeSet};

use keepwell_catalog::names::{self, ObjectName};
use keepwell_crypto::MemberId;

use super::CheckReport;
use super::records::{check_keyrings, check_trust};
use crate::Error;
use crate::prune::{live_ends, open_sessions};
use crate::repository::{End, Plans, Repository, Snapshot, read_ends, read_plans};

/// What the structure check builds on.
pub(super) struct History {
    pub snapshots: Vec<Snapshot>,
    pub plans: Plans,
    /// The newest record of the trust chain, and what was retired.
    head: u64,
    retired: BTreeSet<(MemberId, u64)>,
}

impl History {
    /// Whether others have changed since what counts, or what may be gone. Plans and verdicts never change under their names;
    /// what cannot be read says nothing, then as now.
    pub async fn is_outdated(&self, repository: &Repository) -> bool {
        if repository.trust_has_grown(self.head).await.unwrap_or(false)
            || repository.retired().await.unwrap_or_default() != self.retired
        {
            return true;
        }
        let now = read_plans(repository).await.unwrap_or_default();
        !(now.plans.keys().eq(self.plans.plans.keys()) && now.verdicts.keys().eq(self.plans.verdicts.keys()))
    }
}

pub(super) async fn check(repository: &Repository, report: &mut CheckReport) -> Result<History, Error> {
    repository.forget_records(); // what counts here is what the store holds
    let chain = repository.chain();
    let (head, _) = chain.head();
    let mut found = |key: keepwell_storage::Key, what: &str| report.found(key, what);
    check_trust(repository.store(), &chain, &mut found).await?;
    check_keyrings(repository.store(), &chain, &mut found).await?;
    let lists = listed_sessions(repository).await?;
    let (ends, undecided) = read_ends(repository).await?;
    for (name, reason) in &undecided {
        report.found(name, reason);
    }
    let open = open_sessions(repository).await?;
    report.open_sessions = open.len() as u64;
    let open = open.keys().copied().collect();
    check_lists(repository, lists, &ends, &open, report).await?;
    check_ends(repository, &ends, &open, report).await?;
    let retired = match repository.retired().await {
        Ok(retired) => retired,
        Err(error @ Error::Storage(_)) => return Err(error),
        Err(error) => {
            report.found("retired/", crate::error::one_line(&error));
            BTreeSet::new()
        }
    };
    let plans = match read_plans(repository).await {
        Ok(plans) => plans,
        Err(error @ Error::Storage(_)) => return Err(error),
        Err(error) => {
            report.found("gc/", crate::error::one_line(&error));
            Plans::default()
        }
    };
    let mut snapshots = Vec::new();
    let live = live_ends(&ends, &retired).into_iter().cloned().collect();
    for snapshot in repository.load_snapshots(live).await?.into_iter().flatten() {
        report.snapshots += 1;
        match snapshot.manifest() {
            Err(error) => {
                report.found(format_args!("snapshot {}", snapshot.short()), crate::error::one_line(&error));
                report.damaged_snapshots.insert(snapshot.id.to_string());
            }
            Ok(manifest) if repository.is_erased(manifest.domain) => report.erased_snapshots += 1,
            Ok(_) => snapshots.push(snapshot),
        }
    }
    Ok(History { snapshots, plans, head, retired })
}

/// Sessions that have written the list of what they created.
async fn listed_sessions(repository: &Repository) -> Result<BTreeSet<(MemberId, u64)>, Error> {
    let mut listed = BTreeSet::new();
    for info in repository.list("lists/").await? {
        if let Ok(ObjectName::List(writer, n)) = info.key.as_str().parse() {
            listed.insert((writer, n));
        }
    }
    Ok(listed)
}

/// A session that wrote its list and is not open any more has an end: this is how a missing newest commit shows.
async fn check_lists(
    repository: &Repository,
    lists: BTreeSet<(MemberId, u64)>,
    ends: &[End],
    open: &BTreeSet<(MemberId, u64)>,
    report: &mut CheckReport,
) -> Result<(), Error> {
    let ended: BTreeSet<(MemberId, u64)> = ends.iter().map(|e| (e.writer, e.n)).collect();
    for (writer, n) in lists.into_iter().filter(|place| !ended.contains(place) && !open.contains(place)) {
        let key = names::commit_key(writer, n);
        match repository.store().head(&key).await {
            Err(error) if error.is_not_found() => {
                report.found(key, "it is missing, and its session has written a list and ended");
            }
            Err(error) => return Err(error.into()),
            Ok(_) => {} // it does not verify, or came meanwhile
        }
    }
    Ok(())
}

/// Names what is missing among the ends, but for what came since they were listed: a session that ended then is not open any
/// more, and its claim may be swept.
async fn check_ends(
    repository: &Repository,
    ends: &[End],
    open: &BTreeSet<(MemberId, u64)>,
    report: &mut CheckReport,
) -> Result<(), Error> {
    let mut wrong = Vec::new();
    check_chain(ends, open, &mut |key, what| wrong.push((key, what.to_owned())));
    let ended: BTreeSet<(MemberId, u64)> = ends.iter().map(|e| (e.writer, e.n)).collect();
    for (key, what) in wrong {
        let is_ended =
            matches!(key.as_str().parse(), Ok(ObjectName::Commit(writer, n)) if ended.contains(&(writer, n)));
        if is_ended || !repository.exists(&key).await? {
            report.found(key, what);
        }
    }
    Ok(())
}

/// So many missing numbers in a row are named: a stolen key may sign something under the largest of all.
pub(super) const MISSING_MAX: usize = 100;

/// Every number of a writer has an end or an open session, and ends name the hashes of those before them. A fence by a
/// keeper may stand where a repair found an end that nobody could read.
pub(super) fn check_chain(
    ends: &[End],
    open: &BTreeSet<(MemberId, u64)>,
    found: &mut dyn FnMut(keepwell_storage::Key, &str),
) {
    let by_place: BTreeMap<(MemberId, u64), &End> = ends.iter().map(|e| ((e.writer, e.n), e)).collect();
    let mut last: BTreeMap<MemberId, u64> = BTreeMap::new();
    for end in ends {
        let expected = last.get(&end.writer).map_or(0, |n| n + 1);
        let mut missing = (expected..end.n).filter(|n| !open.contains(&(end.writer, *n)));
        for n in missing.by_ref().take(MISSING_MAX) {
            found(names::commit_key(end.writer, n), "it is missing, and later ones exist");
        }
        if missing.next().is_some() {
            found(names::commit_key(end.writer, end.n), "far more numbers before it are missing than these");
        }
        last.insert(end.writer, end.n);
        for (n, digest) in &end.commit.previous {
            match by_place.get(&(end.writer, *n)) {
                Some(found) if found.digest == *digest || found.by_keeper => {}
                Some(_) => {
                    found(names::commit_key(end.writer, *n), "a later commit names another hash for it")
                }
                None => {
                    found(names::commit_key(end.writer, *n), "a later commit names it, and it is missing")
                }
            }
        }
        for (writer, n) in &end.commit.seen {
            if !by_place.contains_key(&(*writer, *n)) && !open.contains(&(*writer, *n)) {
                found(names::commit_key(*writer, *n), "another writer has seen it, and it is missing");
            }
        }
    }
}
