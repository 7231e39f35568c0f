//! Listing packs that no sound index segment lists, from their own directories.

use std::collections::BTreeSet;

use keepwell_catalog::names::{self, ObjectName};
use keepwell_catalog::{ContentName, PackClass, PackRef, PackSet, SegmentBuilder};
use keepwell_crypto::Digest;

use crate::Error;
use crate::check::{CheckReport, class_of_key};
use crate::pack::PackDirectory;
use crate::repository::{Repository, read_plans};
use crate::write::{Ending, Session, name_of};

/// Writes new segments for packs that no sound segment lists, and removes damaged segments and those with false entries. Gives how many packs are listed again.
pub(super) async fn list_again(repository: &Repository, before: &CheckReport) -> Result<u64, Error> {
    let is_segment = |object: &String| matches!(object.parse(), Ok(ObjectName::Index(..)));
    let damaged: Vec<String> = before.findings.iter().map(|f| f.object.clone()).filter(is_segment).collect();
    let lost_chunks = before.findings.iter().any(|f| f.object.starts_with("chunk ") || f.object == "tree");
    if damaged.is_empty() && !lost_chunks {
        return Ok(0);
    }
    let session = Session::claim(repository).await?;
    let listed = match list_unlisted(repository, &damaged).await {
        Ok(listed) => listed,
        Err(error) => {
            session.abandon().await;
            return Err(error);
        }
    };
    let (created, packs) = listed;
    session.end(Ending::index_only(created)).await?;
    if !damaged.is_empty() {
        // Also those that are missing: the plan tells a scrub why.
        crate::prune::delete_segments(repository, &damaged).await?;
    }
    repository.refresh_index().await?;
    Ok(packs)
}

/// The listing is made after the plans are read, as a resumed writer would do (docs/pruning.md). A pack that is doomed and
/// not dead is listed too: what lies in it can only be released by a verdict that finds it in the index.
async fn list_unlisted(
    repository: &Repository,
    damaged: &[String],
) -> Result<(Vec<(String, u64)>, u64), Error> {
    let dead = PackSet::from_keys(read_plans(repository).await?.dead());
    repository.refresh_index().await?;
    // What a damaged segment says goes with it, also where it can be read.
    let is_sound = |name: &str| !damaged.contains(&format!("index/{}/{name}", repository.group()));
    let segments = repository.index().segments();
    let sound = segments.iter().filter(|(name, _)| is_sound(name));
    let indexed: BTreeSet<ContentName> =
        sound.flat_map(|(_, s)| s.packs().iter().map(|p| p.name).collect::<Vec<_>>()).collect();
    let mut created = Vec::new();
    let mut count = 0;
    for class in [PackClass::Meta, PackClass::Data] {
        let mut builder = SegmentBuilder::new(repository.group(), class);
        for info in repository.list(&format!("{}/", class.prefix())).await? {
            let Ok(ObjectName::Pack(_, name)) = info.key.as_str().parse() else { continue };
            if indexed.contains(&name) || dead.contains(&name) || class_of_key(info.key.as_str()) != class {
                continue;
            }
            match read_directory(repository, class, &name).await {
                Ok((pack, directory)) => {
                    let number = builder.add_pack(pack);
                    directory.entries(number).into_iter().for_each(|entry| builder.add(entry));
                    count += 1;
                }
                Err(error @ Error::Storage(_)) => return Err(error),
                // Not a pack of ours, or damaged: it stays unlisted, and a prune removes it.
                Err(error) => {
                    repository.monitor().problem(info.key.as_str(), &crate::error::one_line(&error))
                }
            }
        }
        if builder.is_empty() {
            continue;
        }
        let (_, sealed) = repository.seal_segment(builder, Vec::new())?;
        let name = name_of(&sealed, repository.random_suffix());
        let key = names::index_key(repository.group(), &name);
        let size = sealed.len() as u64;
        repository.put_new(&key, sealed).await?;
        created.push((key.to_string(), size));
    }
    Ok((created, count))
}

async fn read_directory(
    repository: &Repository,
    class: PackClass,
    name: &ContentName,
) -> Result<(PackRef, PackDirectory), Error> {
    let key = names::pack_key(class, name);
    let stored = repository.store().get(&key).await?;
    if Digest::of(&stored) != name.digest() {
        return Err(Error::damaged(&key, "its bytes do not have the hash in its name"));
    }
    let header_len = keepwell_crypto::header_len(&stored)?;
    for domain in repository.access().domains() {
        let Ok(plain) = keepwell_crypto::open(&domain.identities, &stored, stored.len() as u64) else {
            continue;
        };
        let pack = PackRef {
            name: *name,
            size: stored.len() as u64,
            header_len: u32::try_from(header_len).unwrap_or(u32::MAX),
            domain: domain.id,
        };
        return Ok((pack, PackDirectory::of_plaintext(&plain)?));
    }
    Err(Error::damaged(&key, "no key at hand opens it"))
}
