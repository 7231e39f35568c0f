//! Records that another copy holds as well: put back under their own names, or published anew.

use keepwell_catalog::names::{self, ObjectName};
use keepwell_catalog::{Commit, CommitKind, List};
use keepwell_crypto::{Signed, trust::Roles};
use keepwell_storage::{Key, list_all};

use crate::Error;
use crate::check::CheckReport;
use crate::repository::{Repository, SnapshotState};
use crate::transfer::manifest_bytes;
use crate::write::{Ending, Session, fence};

/// Puts back trust records, keyrings and commits whose own bytes the copy holds. The chain of this store was read when
/// it was opened, so only objects that differ from the copy's, or are missing, are touched.
pub(super) async fn put_back(
    repository: &Repository,
    copy: &Repository,
    before: &CheckReport,
) -> Result<u64, Error> {
    let mut restored = 0;
    for prefix in ["trust/", "keys/"] {
        for info in list_all(copy.store(), prefix).await? {
            if info.key.as_str().starts_with("keys/erasable/") {
                continue; // what was erased here must not come back
            }
            let bytes = copy.store().get(&info.key).await?;
            restored += u64::from(put_exactly(repository, &info.key, bytes).await?);
        }
    }
    for snapshot in copy.snapshots().await? {
        let Some(envelope) = &snapshot.commit.origin else { continue };
        let Ok(signed) = Signed::from_bytes(envelope) else { continue };
        let Ok(commit) = Commit::decode(&signed.payload) else { continue };
        let may_write = Roles::WRITER | Roles::KEEPER;
        let verified = repository.chain().verify_author(&signed, Commit::KIND, may_write).is_ok();
        if commit.store != repository.store_id() || signed.signer != commit.writer || !verified {
            continue;
        }
        let key = names::commit_key(commit.writer, commit.n);
        if before.findings.iter().any(|f| f.object == key.as_str()) {
            restored += u64::from(put_exactly(repository, &key, envelope.clone().into()).await?);
        }
    }
    Ok(restored)
}

/// Puts fences in the place of ends that are missing or do not verify, where the session published nothing: its list,
/// which is written before a commit, names no manifest, or there is no list, as for a fence. Such an end says nothing
/// that could be lost, and without it nothing is pruned. Gives how many.
pub(super) async fn end_again(repository: &Repository, before: &CheckReport) -> Result<u64, Error> {
    let mut fenced = 0;
    for finding in &before.findings {
        let Ok(ObjectName::Commit(writer, n)) = finding.object.parse() else { continue };
        let exists = match repository.read_end(writer, n).await {
            Err(Error::Damaged { .. }) => true,
            Err(Error::Storage(error)) if error.is_not_found() => false,
            Err(error @ Error::Storage(_)) => return Err(error),
            _ => continue,
        };
        let key = names::list_key(writer, n);
        let any = Roles::WRITER | Roles::KEEPER;
        let published_nothing = match repository.read_authored(&key, List::KIND, any).await {
            Ok(payload) => List::decode(&payload)
                .is_ok_and(|list| list.objects.iter().all(|o| !o.name.starts_with("manifests/"))),
            Err(Error::Storage(error)) if error.is_not_found() => exists,
            Err(error @ Error::Storage(_)) => return Err(error),
            Err(_) => false,
        };
        if !published_nothing {
            continue;
        }
        if exists {
            repository.store().delete(&names::commit_key(writer, n)).await?;
        }
        fenced += u64::from(fence(repository, writer, n, Vec::new()).await?);
    }
    Ok(fenced)
}

/// Makes the object have these bytes. Beside [`end_again`] the one place where a name is used again: for the very bytes it was made for.
async fn put_exactly(repository: &Repository, key: &Key, bytes: bytes::Bytes) -> Result<bool, Error> {
    match repository.store().get(key).await {
        Ok(found) if found == bytes => return Ok(false),
        Ok(_) => repository.store().delete(key).await?,
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error.into()),
    }
    repository.put_new(key, bytes).await?;
    Ok(true)
}

/// Publishes snapshots whose manifest is lost again, with the copy's manifest, and retires the commits that name the
/// lost ones. Chunks are made good afterwards, pack by pack.
pub(super) async fn publish_again(repository: &Repository, copy: &Repository) -> Result<u64, Error> {
    let held = copy.snapshots().await?;
    let mut published = 0;
    for snapshot in repository.snapshots().await? {
        if !matches!(snapshot.state, SnapshotState::Damaged(_)) {
            continue;
        }
        let Some(sound) = held.iter().find(|s| s.id == snapshot.id && s.manifest().is_ok()) else { continue };
        let manifest = manifest_bytes(copy, sound).await?;
        let session = Session::claim(repository).await?;
        let size = manifest.len() as u64;
        let (name, key) = repository.put_content(names::manifest_key, manifest.to_vec()).await?;
        let ending = Ending {
            kind: CommitKind::Snapshot,
            manifest: Some((name, snapshot.id)),
            complete: snapshot.commit.complete,
            logical_bytes: snapshot.commit.logical_bytes,
            capture: snapshot.commit.capture,
            state: snapshot.commit.state.clone(),
            dataset_tag: snapshot.commit.dataset_tag,
            origin: Some(repository.origin_for(&snapshot).await?),
            supersedes: Vec::new(),
            created: vec![(key.to_string(), size)],
        };
        session.end(ending).await?;
        repository.forget(&[(&snapshot, "its manifest was lost; it is published again".to_owned())]).await?;
        published += 1;
    }
    Ok(published)
}
