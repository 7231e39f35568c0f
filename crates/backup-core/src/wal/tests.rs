use bytes::Bytes;
use keepwell_catalog::wal::{WalName, WalPlace};
use keepwell_storage::ObjectStore;

use super::Archived;
use crate::Error;
use crate::testing::World;

const FILE_BYTES: u32 = 1 << 20;

fn bytes(file: u64, from: u32, to: u32) -> WalPlace {
    WalPlace::Bytes { file, from, to }
}

#[tokio::test]
async fn what_was_archived_is_read_back_in_the_order_of_the_log() {
    let world = World::new().await;
    let log = world.repository.wal_writer("db", 7, FILE_BYTES, false).await.unwrap();
    assert!(!log.has_from(1, 0).await.unwrap());
    let (_, first) = log.put(1, bytes(3, 0, 5), Bytes::from_static(b"first"), None).await.unwrap();
    log.put(2, WalPlace::History, Bytes::from_static(b"1\t0/5\tx\n"), None).await.unwrap();
    log.put(2, bytes(4, 0, 5), Bytes::from_static(b"third"), None).await.unwrap();
    log.put(1, bytes(3, 5, 11), Bytes::from_static(b"second"), Some(first)).await.unwrap();
    assert_eq!(log.timelines().await.unwrap(), [1, 2]);
    assert!(log.has_from(1, 3).await.unwrap() && !log.has_from(1, 4).await.unwrap());
    assert!(!log.has_from(2, 5).await.unwrap(), "a history file is no log file");
    let reader = world.repository.wal_reader(7).unwrap();
    let writer = reader.writers().await.unwrap();
    assert_eq!(writer.len(), 1);
    let names = reader.pieces_from(writer[0], 1, 0).await.unwrap();
    let mut text = Vec::new();
    for name in &names {
        let piece = reader.read(name).await.unwrap();
        assert_eq!(piece.header.file_bytes, FILE_BYTES);
        text.extend(piece.plaintext);
    }
    assert_eq!(text, b"firstsecond");
    assert_eq!(reader.read(&names[1]).await.unwrap().header.previous, Some(first));
    assert_eq!(reader.histories(writer[0], 2).await.unwrap()[0].plaintext, b"1\t0/5\tx\n");
    assert!(world.repository.wal_reader(8).unwrap().writers().await.unwrap().is_empty());
    let other = world.repository.wal_writer("other", u64::MAX, FILE_BYTES, false).await.unwrap();
    other.put(1, bytes(0, 0, 1), Bytes::from_static(b"x"), None).await.unwrap();
    assert_eq!(world.repository.wal_systems().await.unwrap(), [7, u64::MAX]);
}

#[tokio::test]
async fn the_same_bytes_are_archived_once_and_others_have_another_name() {
    let world = World::new().await;
    let log = world.repository.wal_writer("db", 7, FILE_BYTES, false).await.unwrap();
    let put = |text: &'static [u8]| log.put(1, bytes(0, 0, 4), Bytes::from_static(text), None);
    assert_eq!(put(b"same").await.unwrap().0, Archived::Stored);
    assert_eq!(put(b"same").await.unwrap().0, Archived::Already);
    assert_eq!(put(b"else").await.unwrap().0, Archived::Stored);
    assert_eq!(log.pieces_of(1, 0).await.unwrap().len(), 2, "both show, and nobody may overlook it");
}

#[tokio::test]
async fn a_dataset_is_bound_to_one_cluster() {
    let world = World::new().await;
    world.repository.wal_writer("db", 7, FILE_BYTES, false).await.unwrap();
    world.repository.wal_writer("db", 7, FILE_BYTES, false).await.unwrap();
    world.repository.wal_writer("other", 8, FILE_BYTES, false).await.unwrap();
    let error = world.repository.wal_writer("db", 8, FILE_BYTES, false).await.unwrap_err();
    assert_eq!(error.to_string(), "the log of `db` is that of cluster 7, and this is cluster 8");
    world.repository.wal_writer("db", 8, FILE_BYTES, true).await.unwrap();
    assert!(
        world.repository.wal_writer("db", 7, FILE_BYTES, false).await.is_err(),
        "the newest record is in force"
    );
}

#[tokio::test]
async fn a_mere_writer_archives_and_cannot_read() {
    let world = World::new().await;
    let host = world.enrol_writer().await;
    let log = host.wal_writer("db", 7, FILE_BYTES, false).await.unwrap();
    log.put(1, bytes(0, 0, 4), Bytes::from_static(b"text"), None).await.unwrap();
    assert!(matches!(host.wal_reader(7), Err(Error::NotAllowed { .. })));
    let owner = world.open(&world.key).await;
    let reader = owner.wal_reader(7).unwrap();
    let writers = reader.writers().await.unwrap();
    let names = reader.pieces_from(writers[0], 1, 0).await.unwrap();
    assert_eq!(reader.read(&names[0]).await.unwrap().plaintext, b"text");
}

#[tokio::test]
async fn a_piece_that_is_not_what_its_name_says_is_refused() {
    let world = World::new().await;
    let log = world.repository.wal_writer("db", 7, FILE_BYTES, false).await.unwrap();
    log.put(1, bytes(0, 0, 4), Bytes::from_static(b"text"), None).await.unwrap();
    let reader = world.repository.wal_reader(7).unwrap();
    let name = log.pieces_of(1, 0).await.unwrap()[0];
    let stored = world.store.get(&name.key()).await.unwrap();
    let elsewhere = [
        WalName { place: bytes(1, 0, 4), ..name },
        WalName { timeline: 2, ..name },
        WalName { place: WalPlace::History, ..name },
    ];
    for moved in elsewhere {
        world.store.put_new(&moved.key(), stored.clone()).await.unwrap();
        assert!(matches!(reader.read(&moved).await, Err(Error::Damaged { .. })), "{moved}");
    }
    // What somebody sealed who knows the recipient and has no signing key of a member.
    let recipient = world.repository.domain().recipient.clone();
    let mut encoder = keepwell_catalog::wal::PieceEncoder::new(1).unwrap();
    let (head, compressed) = encoder.encode(b"no signature", b"text").unwrap();
    let forged = [&head, compressed].concat();
    let forged = keepwell_crypto::seal(&[recipient], &forged).unwrap();
    let target = WalName { place: bytes(2, 0, 4), ..name };
    world.store.put_new(&target.key(), Bytes::from(forged)).await.unwrap();
    assert!(matches!(reader.read(&target).await, Err(Error::Damaged { .. })));
    for at in [0, stored.len() / 2, stored.len() - 1] {
        let mut damaged = stored.to_vec();
        damaged[at] ^= 1;
        world.store.delete(&name.key()).await.unwrap();
        world.store.put_new(&name.key(), Bytes::from(damaged)).await.unwrap();
        assert!(matches!(reader.read(&name).await, Err(Error::Damaged { .. })), "byte {at}");
    }
}
