//! What is said of packs, truly or not.

use keepwell_catalog::{IndexEntry, PackClass, PackRef, SegmentBuilder, names};
use keepwell_storage::Key;

use crate::repository::Repository;
use crate::write::name_of;

/// Stores a segment that says these things of a pack. With `first`, under a name before that of every other.
pub(crate) async fn say(
    repository: &Repository,
    class: PackClass,
    pack: PackRef,
    entries: &[IndexEntry],
    first: bool,
) -> Key {
    loop {
        let mut builder = SegmentBuilder::new(repository.group(), class);
        let number = builder.add_pack(pack);
        entries.iter().for_each(|entry| builder.add(IndexEntry { pack: number, ..*entry }));
        let (_, sealed) = repository.seal_segment(builder, Vec::new()).unwrap();
        let key = names::index_key(repository.group(), &name_of(&sealed, repository.random_suffix()));
        let others = repository.list("index/").await.unwrap();
        if !first || others.iter().all(|other| key < other.key) {
            repository.put_new(&key, sealed).await.unwrap();
            return key;
        }
    }
}

/// The only data pack, with all that the index says of it.
pub(crate) fn data_pack(repository: &Repository) -> (PackRef, Vec<IndexEntry>) {
    let segments = repository.index().segments();
    let (_, segment) = segments.iter().find(|(_, s)| s.class() == PackClass::Data).unwrap();
    assert_eq!(segment.packs().len(), 1);
    (segment.packs()[0], segment.iter().map(|item| item.unwrap().1).collect())
}
