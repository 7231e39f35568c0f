//! Signed records that another copy holds as well: put back under their own names, or published anew.

use std::collections::BTreeSet;
use std::time::Duration;

use keepwell_catalog::names::{self, ObjectName};
use keepwell_catalog::{Commit, CommitKind, List};
use keepwell_crypto::{MemberId, Signed, trust::Roles};
use keepwell_storage::{Key, list_all};

use super::hold::hold;
use super::put::put_exactly;
use super::vital::restore_vital;
use crate::Error;
use crate::check::{CheckReport, prove_object};
use crate::prune::needed_state;
use crate::repository::{Repository, Snapshot, SnapshotState, fetch_bounded, read_ends, verify_end};
use crate::transfer::manifest_bytes;
use crate::write::{Ending, Session, fence, put_claim};

/// What a mirror may put back, in this order: a verdict before its plan, which without it would be judged again.
const MIRRORED: [&str; 6] = ["commits/", "lists/", "retired/", "gc/", "state/", "sessions/"];

/// Puts back records whose own bytes the copy holds, where they are missing here or not sound. What is sound here stays,
/// whatever the copy says. Gives how many, and how many of them are trust and keys: then the repository goes by these, and
/// what was found before was found without.
pub(super) async fn put_back(repository: &Repository, copy: &Repository) -> Result<(u64, u64), Error> {
    let pin = repository.chain().fingerprint();
    let vital = restore_vital(repository.store(), copy.store(), pin, repository.now()).await?;
    if !vital.is_empty() {
        repository.refresh_trust().await?;
    }
    let others = if copy.store_id() == repository.store_id() {
        from_mirror(repository, copy).await?
    } else {
        from_origins(repository, copy).await?
    };
    let vital = vital.len() as u64;
    Ok((vital + others, vital))
}

/// From a copy byte for byte, made by other means than `copy`: everything that this store ever signed.
async fn from_mirror(repository: &Repository, mirror: &Repository) -> Result<u64, Error> {
    let mut restored = 0;
    for prefix in MIRRORED {
        let mut keys: Vec<Key> =
            list_all(mirror.store(), prefix).await?.into_iter().map(|info| info.key).collect();
        keys.sort_by_key(|key| (!key.as_str().ends_with(".kept"), key.clone()));
        let wanted = wanted(repository, prefix).await?;
        for key in keys {
            let bytes = match fetch_bounded(mirror.store(), &key).await {
                Err(Error::Damaged { .. }) => continue, // larger than anything that would be sound
                fetched => fetched?,
            };
            let chain = repository.chain();
            let is_sound = |bytes: &[u8]| prove_object(&chain, repository.store_id(), &key, bytes).is_ok();
            let is_here = repository.exists(&key).await?;
            let is_wanted = is_here || wanted.as_ref().is_none_or(|wanted| wanted.contains(key.as_str()));
            if is_wanted && is_sound(&bytes) {
                if let (true, Ok(ObjectName::Commit(writer, n))) = (is_here, key.as_str().parse())
                    && let Err(Error::Damaged { .. }) = repository.read_end(writer, n).await
                {
                    let end = verify_end(&chain, Some(repository.store_id()), writer, n, &bytes)?;
                    hold(repository, &end.commit, &bytes).await?;
                }
                restored += u64::from(put_exactly(repository.store(), &key, bytes, is_sound).await?);
            }
        }
    }
    Ok(restored)
}

/// Of what prunes delete, the names that belong here still; `None` for what nobody ever deletes.
async fn wanted(repository: &Repository, prefix: &str) -> Result<Option<BTreeSet<String>>, Error> {
    match prefix {
        "state/" => Ok(Some(needed_state(&read_ends(repository).await?.0))),
        "sessions/" => Ok(Some(BTreeSet::new())),
        _ => Ok(None),
    }
}

/// From a copy made by `copy`: commits of this store, which those of the copy have as their origins.
async fn from_origins(repository: &Repository, copy: &Repository) -> Result<u64, Error> {
    let mut restored = 0;
    let chain = repository.chain();
    for snapshot in copy.snapshots().await? {
        let Some((commit, envelope)) = origin_here(repository, &snapshot) else { continue };
        let is_sound = |bytes: &[u8]| {
            verify_end(&chain, Some(repository.store_id()), commit.writer, commit.n, bytes).is_ok()
        };
        let key = names::commit_key(commit.writer, commit.n);
        match repository.read_end(commit.writer, commit.n).await {
            Ok(_) => continue,
            Err(Error::Damaged { .. }) => hold(repository, &commit, &envelope).await?,
            Err(_) => {}
        }
        hold_number(repository, commit.writer, commit.n).await?;
        restored += u64::from(put_exactly(repository.store(), &key, envelope.into(), is_sound).await?);
    }
    Ok(restored)
}

/// The commit of this store that a snapshot of the copy was made from.
fn origin_here(repository: &Repository, snapshot: &Snapshot) -> Option<(Commit, Vec<u8>)> {
    let envelope = snapshot.commit.origin.as_ref()?;
    let commit = Commit::decode(&Signed::from_bytes(envelope).ok()?.payload).ok()?;
    let chain = repository.chain();
    let end = verify_end(&chain, Some(repository.store_id()), commit.writer, commit.n, envelope).ok()?;
    (end.commit.kind == CommitKind::Snapshot).then(|| (end.commit, envelope.clone()))
}

/// Takes the number of a session whose end is about to be replaced, so that no backup takes it while nothing stands there.
async fn hold_number(repository: &Repository, writer: MemberId, n: u64) -> Result<(), Error> {
    put_claim(repository, writer, n).await.map(drop) // its own claim does as well
}

/// Puts fences in the place of ends that are missing or do not verify, where the session published nothing: its list,
/// which is written before a commit, names no manifest. Such an end says nothing that could be lost, and without it nothing
/// is pruned. Where there is no list, as for a fence, that is what the caller says (`unlisted`). Gives how many.
pub(super) async fn end_again(
    repository: &Repository,
    before: &CheckReport,
    unlisted: bool,
) -> Result<u64, Error> {
    let mut fenced = 0;
    for finding in &before.findings {
        let Ok(ObjectName::Commit(writer, n)) = finding.object.parse() else { continue };
        let exists = match repository.read_end(writer, n).await {
            Err(Error::Damaged { .. }) => true,
            Err(Error::Storage(error)) if error.is_not_found() => false,
            Err(error @ Error::Storage(_)) => return Err(error),
            _ => continue,
        };
        let published_nothing = match read_list(repository, writer, n).await? {
            Some(list) => list.is_some_and(|l| l.objects.iter().all(|o| !o.name.starts_with("manifests/"))),
            None => exists && unlisted,
        };
        if !published_nothing {
            continue;
        }
        if exists {
            hold_number(repository, writer, n).await?;
            repository.store().delete(&names::commit_key(writer, n)).await?;
        }
        fenced += u64::from(fence(repository, writer, n, Vec::new()).await?);
    }
    Ok(fenced)
}

/// The list of a session: nothing if there is none, and nothing within if it is not sound.
async fn read_list(repository: &Repository, writer: MemberId, n: u64) -> Result<Option<Option<List>>, Error> {
    let key = names::list_key(writer, n);
    let bytes = match fetch_bounded(repository.store(), &key).await {
        Ok(bytes) => bytes,
        Err(Error::Storage(error)) if error.is_not_found() => return Ok(None),
        Err(Error::Damaged { .. }) => return Ok(Some(None)),
        Err(error) => return Err(error),
    };
    if prove_object(&repository.chain(), repository.store_id(), &key, &bytes).is_err() {
        return Ok(Some(None));
    }
    let any = Roles::WRITER | Roles::KEEPER;
    let payload = repository.open_authored(&key, &bytes, List::KIND, any)?;
    Ok(Some(List::decode(&payload).ok()))
}

/// Publishes snapshots again that the copy holds whole: those whose manifest is lost here, and those whose commit gave way
/// to another end. The commits that name lost manifests are retired. What they need and is damaged is made good
/// afterwards, pack by pack. Gives how many, and the names of the lost manifests.
pub(super) async fn publish_again(
    repository: &Repository,
    copy: &Repository,
) -> Result<(u64, Vec<String>), Error> {
    let held = copy.snapshots().await?;
    let here = repository.snapshots().await?;
    let (mut published, mut replaced) = (0, Vec::new());
    for snapshot in here.iter().filter(|s| matches!(s.state, SnapshotState::Damaged(_))) {
        let Some(sound) = held.iter().find(|s| s.id == snapshot.id && s.manifest().is_ok()) else { continue };
        // An earlier repair may have come so far and no further.
        if !here.iter().any(|s| s.id == snapshot.id && s.manifest().is_ok()) {
            publish(repository, copy, snapshot, sound).await?;
            published += 1;
        }
        repository.forget(&[(snapshot, "its manifest was lost; it is published again".to_owned())]).await?;
        replaced.extend(snapshot.commit.manifest.map(|name| names::manifest_key(&name).to_string()));
    }
    let Ok(retired) = repository.retired().await else { return Ok((published, replaced)) };
    let is_lost = |snapshot: &&Snapshot| {
        origin_here(repository, snapshot).is_some_and(|(commit, _)| {
            !retired.contains(&(commit.writer, commit.n)) && !here.iter().any(|s| s.id == snapshot.id)
        })
    };
    if copy.store_id() != repository.store_id() {
        let lost: Vec<Snapshot> = held.iter().filter(is_lost).cloned().collect();
        published += copy.store_snapshots(repository, &lost).await?.copied.len() as u64;
    }
    Ok((published, replaced))
}

/// Condemns manifests and state that are damaged or missing, so that they go, or a scrub knows why they are gone. What is
/// still needed stays, by the verdict; and so does everything while other damage hides what is needed.
pub(super) async fn clear_away(
    repository: &Repository,
    before: &CheckReport,
    replaced: Vec<String>,
    fence_after: Duration,
) -> Result<(), Error> {
    let bad: BTreeSet<String> = before
        .findings
        .iter()
        .filter(|finding| {
            matches!(finding.object.parse(), Ok(ObjectName::Manifest(_) | ObjectName::State(..)))
        })
        .map(|finding| finding.object.clone())
        .chain(replaced)
        .collect();
    if !bad.is_empty() {
        repository.condemn(bad.into_iter().collect(), fence_after).await?;
    }
    Ok(())
}

/// Commits `snapshot` under a manifest of its own again: that of `sound`, the same snapshot in the copy.
async fn publish(
    repository: &Repository,
    copy: &Repository,
    snapshot: &Snapshot,
    sound: &Snapshot,
) -> Result<(), Error> {
    let manifest = manifest_bytes(copy, sound).await?;
    let origin = repository.origin_for(snapshot).await?;
    let session = Session::claim(repository).await?;
    let size = manifest.len() as u64;
    let (name, key) = match repository.put_content(names::manifest_key, manifest).await {
        Ok(stored) => stored,
        Err(error) => return Err(session.fail(error).await),
    };
    let ending = Ending {
        state: snapshot.commit.state.clone(),
        dataset_tag: snapshot.commit.dataset_tag,
        created: vec![(key.to_string(), size)],
        ..Ending::again(&snapshot.commit, Some((name, snapshot.id)), origin)
    };
    session.end(ending).await.map(|_| ())
}
