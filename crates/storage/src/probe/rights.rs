//! What may these credentials do to an object that is there?

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::creates::refusal;
use super::{ProbeReport, Role, fresh_key};
use crate::control::Versioning;
use crate::{Control, Key, ObjectStore, StorageError, StorageErrorKind};

/// What credentials may do, as tried on an object of our own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights {
    /// Read an object.
    pub read: Right,
    /// List objects; a listing shows at once what was stored.
    pub list: Right,
    /// Replace an object.
    pub overwrite: Right,
    /// Delete an object.
    pub delete: Right,
    /// Delete a version for good, where deleting alone only hides.
    pub delete_version: Right,
    /// Read the data packs of the repository, which a backup host never needs.
    #[serde(default)]
    pub read_packs: Right,
}

/// Whether something may be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// It was done.
    Yes,
    /// It was refused.
    No,
    /// It was not tried, or cannot be.
    #[default]
    Unknown,
}

impl Right {
    fn of(done: bool) -> Self {
        if done { Self::Yes } else { Self::No }
    }
}

/// Tries everything on one object.
pub(super) async fn examine(
    store: &Arc<dyn ObjectStore>,
    report: &mut ProbeReport,
) -> Result<(), StorageError> {
    let key = fresh_key(store)?;
    store.put_new(&key, Bytes::from_static(b"probe")).await?;
    let tried = attempt(store, &key, report).await;
    // Deleted for good if we can; it was deleted already if all went well.
    let cleaned = refusal(store.delete(&key).await);
    tried?;
    cleaned.map(drop)?;
    report.rights.read_packs = read_packs(&**store).await?;
    Ok(())
}

/// Tries to read a byte of a pack that is there. One that is absent would not tell: some services refuse to say so.
async fn read_packs(store: &dyn ObjectStore) -> Result<Right, StorageError> {
    let Some(listed) = refusal(store.list_page("data/", None).await)? else { return Ok(Right::Unknown) };
    let Some(pack) = listed.objects.iter().find(|pack| pack.size > 0) else { return Ok(Right::Unknown) };
    match store.get_range(&pack.key, 0..1).await {
        Ok(_) => Ok(Right::Yes),
        Err(error) if error.kind == StorageErrorKind::PermissionDenied => Ok(Right::No),
        // In an archive; or a prune came between.
        Err(error) if matches!(error.kind, StorageErrorKind::Archived) => Ok(Right::Yes),
        Err(error) if error.is_not_found() => Ok(Right::Unknown),
        Err(error) => Err(error),
    }
}

async fn attempt(
    store: &Arc<dyn ObjectStore>,
    key: &Key,
    report: &mut ProbeReport,
) -> Result<(), StorageError> {
    report.rights.read = Right::of(refusal(store.get(key).await)?.is_some());
    report.rights.list = listed(&**store, key, report).await?;
    if let Some(control) = store.control() {
        overwrite(&*control, key, report).await?;
    }
    report.rights.delete = match refusal(store.delete(key).await)? {
        None => Right::No,
        // What the credentials cannot read they cannot look at again: the store said that it is done.
        Some(()) => match store.head(key).await {
            Ok(_) => Right::No,
            Err(error) if error.is_not_found() || error.kind == StorageErrorKind::PermissionDenied => {
                Right::Yes
            }
            Err(error) => return Err(error),
        },
    };
    Ok(())
}

async fn listed(store: &dyn ObjectStore, key: &Key, report: &mut ProbeReport) -> Result<Right, StorageError> {
    let Some(found) = refusal(crate::list_all(store, "probe/").await)? else {
        return Ok(Right::No);
    };
    if !found.iter().any(|info| info.key == *key) {
        report.problems.push(
            "A listing did not show what had just been stored: a prune could miss what a backup relies on."
                .into(),
        );
    }
    Ok(Right::Yes)
}

async fn overwrite(control: &dyn Control, key: &Key, report: &mut ProbeReport) -> Result<(), StorageError> {
    match control.overwrite(key, Bytes::from_static(b"replaced")).await {
        Ok(version) => {
            report.rights.overwrite = Right::Yes;
            if let Some(version) = version {
                let deleted = refusal(control.delete_version(key, &version).await)?;
                report.rights.delete_version = Right::of(deleted.is_some());
            }
        }
        Err(error)
            if matches!(error.kind, StorageErrorKind::PermissionDenied | StorageErrorKind::AlreadyExists) =>
        {
            report.rights.overwrite = Right::No;
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// What the rights mean for somebody in that role.
pub(super) fn judge(report: &mut ProbeReport, role: Role) {
    let rights = report.rights;
    if rights.list == Right::No {
        report.problems.push("These credentials may not list objects, which every command must.".into());
    }
    let retention = report.bucket.as_ref().and_then(|bucket| bucket.retention_days).filter(|days| *days > 0);
    if let Some(days) = retention.filter(|_| rights.delete == Right::No || rights.overwrite == Right::No) {
        report.notes.push(format!(
            "Deleting or overwriting was refused, but the bucket refuses that to everybody before an object is {days} days \
             old: whether these credentials may do it later was not found out."
        ));
    }
    match role {
        Role::Keeper => judge_keeper(report, rights, retention.is_some()),
        Role::Writer => judge_writer(report, rights, retention.is_some()),
    }
}

fn judge_keeper(report: &mut ProbeReport, rights: Rights, retained: bool) {
    match rights.delete {
        Right::No if retained => {}
        Right::Yes => report.findings.push("These credentials may delete, as `prune` must.".into()),
        Right::No => report.notes.push(
            "These credentials may not delete: backups and restores work, `prune` does not. A few small objects remain \
             under `probe/`."
                .into(),
        ),
        Right::Unknown => {}
    }
    if rights.read == Right::No {
        report.problems.push("These credentials may not read what they stored.".into());
    }
}

fn judge_writer(report: &mut ProbeReport, rights: Rights, retained: bool) {
    let versioning = report.bucket.as_ref().and_then(|bucket| bucket.versioning);
    let kept = versioning == Some(Versioning::Enabled) && rights.delete_version == Right::No;
    let remedy = match report.bucket {
        Some(_) => "Give it a policy of its own: `keepwell policy writer` prints one.",
        // A directory, a server of SSH or WebDAV, …: there is none to print.
        None => {
            "Let the machine that holds the directory take snapshots of its file system, or a keeper elsewhere copy away \
             what this host writes."
        }
    };
    let mut say = |right: Right, done: &str, refused: &str, unknown: &str| {
        match right {
        // Everybody is refused that: it says nothing of this writer.
        Right::No if retained => {}
        Right::No => report.findings.push(refused.into()),
        Right::Unknown => report.notes.push(unknown.into()),
        Right::Yes if kept => report.notes.push(format!(
            "{done} The bucket keeps the old version, which these credentials cannot remove, so a keeper can bring it back; \
             better is a policy that refuses it (`keepwell policy writer`)."
        )),
        Right::Yes => report.problems.push(format!(
            "{done} Whoever takes over this host can destroy its backups. {remedy}"
        )),
    }
    };
    say(
        rights.delete,
        "This writer can delete objects.",
        "This writer cannot delete: it was tried, and refused.",
        "Whether this writer can delete was not found out.",
    );
    say(
        rights.overwrite,
        "This writer can overwrite objects.",
        "This writer cannot overwrite: it was tried, and refused.",
        "Whether this writer can overwrite was not checked: there is no common way to try it on such a store.",
    );
    match rights.read_packs {
        Right::No => report
            .findings
            .push("This writer cannot read what backups consist of: it was tried, and refused.".into()),
        Right::Yes => report.notes.push(
            "This writer can read data packs, which it never needs. They are encrypted, and its key does not open them; \
             `keepwell policy writer` prints a policy that refuses it, where the store knows such policies."
                .into(),
        ),
        Right::Unknown => {}
    }
    if rights.delete_version == Right::Yes {
        report.problems.push("This writer can delete versions for good.".into());
    }
    if rights.delete == Right::No {
        report.notes.push("A few small objects of this test remain under `probe/`.".into());
    }
}
