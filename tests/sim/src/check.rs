//! Judges how jobs end: what was reported is true, and no error is without a cause.

use backup_core::Error;
use keepwell_crypto::MemberId;

use crate::actor::Finished;
use crate::oracle::{Given, Oracle, Wrong};
use crate::tree::{Node, Tree};
use crate::work::{Ended, Restored};

/// What a judge has to know beside the job.
pub(crate) struct Case<'c> {
    pub oracles: &'c [Oracle],
    pub given: &'c Given,
    pub member: MemberId,
    /// Whether an owner has revoked it.
    pub revoked: bool,
    /// Retirements in all stores by now.
    pub retirements: usize,
}

/// Says how a job ended, for the trace, or what is wrong with that.
pub(crate) fn judge(case: &Case<'_>, finished: &Finished) -> Result<String, Wrong> {
    let retired = case.retirements != finished.retirements_before;
    let excused = |error: &Error| {
        let fenced = matches!(error, Error::Fenced { .. });
        let revoked = case.revoked && matches!(error, Error::WrongKey(_));
        if finished.disturbed || fenced || revoked {
            Ok(format!("failed: {}", line(error)))
        } else {
            Err(format!("it failed although nothing went wrong: {}", line(error)))
        }
    };
    match &finished.ended {
        Ended::Backup(attempt, Ok(report)) => {
            let place = (case.member, report.seq);
            let oracle = &case.oracles[0];
            match oracle.promised().get(&place) {
                Some(p) if p.id == report.snapshot && p.attempt == *attempt => {}
                None if oracle.is_retired(place) || case.revoked => {}
                other => return Err(format!("it reports snapshot {place:?}, and the store has {other:?}")),
            }
            let Some(problem) = report.problems.first() else {
                let counts = &report.statistics;
                return Ok(format!("done as {}: {} checkpoints, {counts:?}", report.seq, report.checkpoints));
            };
            Err(format!("it reports a problem that is none: {problem:?}"))
        }
        Ended::Backup(attempt, Err(error)) => {
            // The number may be that of another process with the credential, which has published under it.
            if let Error::Fenced { seq, .. } = error
                && let Some(promised) = case.oracles[0].promised().get(&(case.member, *seq))
                && promised.attempt == *attempt
            {
                return Err(format!("it says that it was fenced, and its commit stands: {promised:?}"));
            }
            excused(error)
        }
        Ended::Prune(Ok(report)) => Ok(format!("done: {report:?}")),
        Ended::Prune(Err(error)) => excused(error),
        Ended::Forget(Ok(count)) => Ok(format!("done: {count} forgotten")),
        Ended::Forget(Err(error)) => excused(error),
        Ended::Restore(_, Ok(None)) => Ok("there is nothing".to_owned()),
        Ended::Restore(_, Ok(Some(restored))) => compare(case, restored, finished.disturbed),
        Ended::Restore(Some((store, place)), Err(error @ Error::NoSuchSnapshot(_))) => {
            if case.oracles[*store].promised().contains_key(place) {
                return Err(format!("it says so of a snapshot that is promised: {}", line(error)));
            }
            Ok(format!("too late: {}", line(error)))
        }
        Ended::Restore(_, Err(error)) if retired => Ok(format!("too late: {}", line(error))),
        Ended::Restore(_, Err(error)) => excused(error),
        Ended::Copy(Ok(report)) => Ok(format!("done: {} copied", report.copied.len())),
        Ended::Copy(Err(error @ Error::NoSuchSnapshot(_))) if case.oracles[0].has_refused() => {
            Ok(format!("too late: {}", line(error)))
        }
        Ended::Copy(Err(error)) if retired => Ok(format!("too late: {}", line(error))),
        Ended::Copy(Err(error)) => excused(error),
        Ended::Archive(Ok(file)) => Ok(format!("done: file {file} of the log")),
        Ended::Archive(Err(error)) => excused(error),
        Ended::Trim(Ok(report)) => Ok(format!("done: {report:?}")),
        Ended::Trim(Err(error)) if retired => Ok(format!("too late: {}", line(error))),
        Ended::Trim(Err(error)) => excused(error),
        Ended::Revoke(Ok(from)) => Ok(format!("done: refused from {from} on")),
        Ended::Revoke(Err(error)) => excused(error),
    }
}

/// What came back is what was given; all of it, unless there is an excuse.
pub(crate) fn compare(case: &Case<'_>, restored: &Restored, disturbed: bool) -> Result<String, Wrong> {
    let attempt = restored.attempt.parse().map_err(|_| "it restored what nobody took".to_owned())?;
    let given: &Tree = case.given.get(&attempt).ok_or("it restored what nobody took")?;
    let is_gone = !case.oracles[restored.store].promised().contains_key(&restored.place);
    if restored.problems.is_empty() {
        let wrong = restored.tree.difference(given);
        return wrong.map_or_else(|| Ok(format!("attempt {attempt} is whole")), Err);
    }
    let file_is_wrong =
        |(key, node): &(_, &Node)| matches!(node, Node::File(_)) && given.0.get(*key) != Some(node);
    if let Some((key, _)) = restored.tree.0.iter().find(file_is_wrong) {
        return Err(format!("`{}` came back wrong", key.display_path()));
    }
    if is_gone || disturbed {
        return Ok(format!("attempt {attempt} is incomplete: {:?}", restored.problems[0]));
    }
    Err(format!("attempt {attempt} did not restore: {:?}", restored.problems))
}

/// An error with its causes, in a line.
pub(crate) fn line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
