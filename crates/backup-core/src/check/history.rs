//! The records: commits, their order, retirements, manifests.

use std::collections::{BTreeMap, BTreeSet};

use keepwell_catalog::names;
use keepwell_crypto::{Digest, MemberId};

use super::CheckReport;
use crate::Error;
use crate::prune::{live_ends, open_sessions};
use crate::repository::{End, Plans, Repository, Snapshot, read_ends, read_plans};

/// What the structure check builds on.
pub(super) struct History {
    pub snapshots: Vec<Snapshot>,
    pub plans: Plans,
}

pub(super) async fn check(repository: &Repository, report: &mut CheckReport) -> Result<History, Error> {
    let (ends, undecided) = read_ends(repository).await?;
    for (name, reason) in undecided {
        report.found(name, reason);
    }
    let open = open_sessions(repository).await?;
    report.open_sessions = open.len() as u64;
    let open = open.keys().copied().collect();
    check_chain(&ends, &open, &mut |object, what| report.found(object, what));
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
    for end in live_ends(&ends, &retired) {
        if let Some(snapshot) = repository.load_snapshot(end.clone()).await? {
            report.snapshots += 1;
            match snapshot.manifest() {
                Err(error) => {
                    report
                        .found(format_args!("snapshot {}", snapshot.short()), crate::error::one_line(&error));
                    report.damaged_snapshots.insert(snapshot.id.to_string());
                }
                Ok(manifest) if repository.is_erased(manifest.domain) => report.erased_snapshots += 1,
                Ok(_) => snapshots.push(snapshot),
            }
        }
    }
    Ok(History { snapshots, plans })
}

/// Every number of a writer has an end or an open session, and ends name the hashes of those before them.
pub(super) fn check_chain(
    ends: &[End],
    open: &BTreeSet<(MemberId, u64)>,
    found: &mut dyn FnMut(keepwell_storage::Key, &str),
) {
    let by_place: BTreeMap<(MemberId, u64), Digest> =
        ends.iter().map(|e| ((e.writer, e.n), e.digest)).collect();
    let mut last: BTreeMap<MemberId, u64> = BTreeMap::new();
    for end in ends {
        let expected = last.get(&end.writer).map_or(0, |n| n + 1);
        for missing in expected..end.n {
            if !open.contains(&(end.writer, missing)) {
                found(names::commit_key(end.writer, missing), "it is missing, and later ones exist");
            }
        }
        last.insert(end.writer, end.n);
        for (n, digest) in &end.commit.previous {
            match by_place.get(&(end.writer, *n)) {
                Some(found) if found == digest => {}
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
