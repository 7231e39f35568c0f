//! Members that are not to be believed, or not in everything.

use keepwell_catalog::{IndexEntry, PackClass, Segment, SegmentBuilder, names, open_record};
use keepwell_crypto::Digest;
use keepwell_crypto::keyring::Keyring;
use keepwell_crypto::trust::Roles;
use keepwell_storage::{Key, ObjectStore};

use super::stage::{Stage, expect, files, said};
use crate::check::line;
use crate::oracle::Wrong;
use crate::tree::{Node, Tree, key};
use crate::work::restore;

/// A process whose credential was stolen goes on after it was revoked.
pub(super) async fn a_revoked_writer_commits() -> Result<(), Wrong> {
    let stage = Stage::new().await?;
    let owner = stage.host().await?.repository;
    let credential = owner.new_member("thief", Roles::WRITER, None).map_err(said)?;
    owner.enroll(&credential).await.map_err(said)?;
    let thief = stage.host_of(&credential).await?;
    let member = credential.member.as_ref().expect("a member's key").signing.member_id();
    stage.begin(&thief, files(&[1]), &[]).end().await?.map_err(said)?;
    owner.revoke(member, None, "stolen").await.map_err(said)?;
    stage.begin(&thief, files(&[2]), &[]).end().await?.map_err(said)?;
    expect(stage.names("commits/").await?.len() == 2, "it has committed once more")?;
    stage.all_restore(1).await
}

/// A writer lists each of two chunks where the other one lies. Nothing but the id of a chunk tells.
pub(super) async fn the_index_names_the_wrong_place() -> Result<(), Wrong> {
    let stage = Stage::new().await?;
    let file = |name: &str, byte: u8| (key(name), Node::File(vec![byte; 3000]));
    let tree = Tree([file("a", b'a'), file("b", b'b')].into_iter().collect());
    stage.back_up(tree.clone()).await?;
    expect(swap_places(&stage).await? == 2, "two chunks change places")?;
    let repository = stage.host().await?.repository;
    for snapshot in &repository.snapshots().await.map_err(said)? {
        let restored = restore(&repository, 0, snapshot).await.map_err(said)?;
        for (path, node) in &restored.tree.0 {
            if tree.0.get(path) != Some(node) {
                return Err(format!("`{}` came back wrong", path.display_path()));
            }
        }
        expect(!restored.problems.is_empty(), "the restore says what it has not found")?;
    }
    Ok(())
}

/// Replaces the index of content by one that has the ids of chunks of equal length in reverse order. Gives how many.
async fn swap_places(stage: &Stage) -> Result<usize, Wrong> {
    let repository = stage.host().await?.repository;
    let keys = stage.key.member.as_ref().expect("the owner is a member");
    let chain = repository.chain();
    let keyring: Key = chain.keyring(&stage.member()).expect("it has a keyring").name.parse().expect("a key");
    let sealed = stage.memory.get(&keyring).await.map_err(|e| line(&e))?;
    let opened = open_record(std::slice::from_ref(&keys.identity), &sealed, 1 << 20).map_err(|e| line(&e))?;
    let group = Keyring::from_bytes(&opened).map_err(|e| line(&e))?.groups.remove(0);
    let mut swapped = 0;
    for name in stage.names("index/").await? {
        let at: Key = name.parse().map_err(|_| "a name".to_owned())?;
        let sealed = stage.memory.get(&at).await.map_err(|e| line(&e))?;
        let plain = keepwell_crypto::open(&group.index_identities, &sealed, 1 << 24).map_err(|e| line(&e))?;
        let segment =
            Segment::open(Box::new(bytes::Bytes::from(plain)), &|_, _, _| Ok(())).map_err(|e| line(&e))?;
        if segment.class() != PackClass::Data {
            continue;
        }
        let mut builder = SegmentBuilder::new(group.id, PackClass::Data);
        for pack in segment.packs() {
            builder.add_pack(*pack);
        }
        let entries: Result<Vec<IndexEntry>, _> =
            segment.iter().map(|item| item.map(|(_, entry)| entry)).collect();
        let entries = entries.map_err(|e| line(&e))?;
        for (entry, other) in entries.iter().zip(entries.iter().rev()) {
            builder.add(IndexEntry { id: other.id, ..*entry });
            swapped += 1;
        }
        stage.memory.delete(&at).await.map_err(|e| line(&e))?;
        let plain = builder.finish(repository.id(), &keys.signing, Vec::new()).map_err(|e| line(&e))?;
        let recipient = &chain.groups().next().expect("there is a group").recipient;
        let sealed = keepwell_crypto::seal(std::slice::from_ref(recipient), &plain).map_err(|e| line(&e))?;
        let name = names::content_name(&Digest::of(&sealed), [7; 4]);
        let at = names::index_key(group.id, &name);
        stage.memory.put_new(&at, sealed.into()).await.map_err(|e| line(&e))?;
    }
    Ok(swapped)
}
