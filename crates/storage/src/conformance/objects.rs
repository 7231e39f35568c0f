//! Cases about single objects.

use std::sync::Arc;

use super::{LARGE_BYTES, body, get, key, keys, kind_of, put};
use crate::{ObjectStore, StorageErrorKind as Kind};

pub(super) async fn an_absent_object_is_not_found(store: Arc<dyn ObjectStore>) {
    put(&store, "dir/object", "x").await;
    for name in ["absent", "dir", "dir/absent", "dir/object/beneath", "no/such/dir"] {
        let key = key(name);
        assert_eq!(kind_of(store.get(&key).await), Some(Kind::NotFound), "get `{name}`");
        assert_eq!(kind_of(store.get_range(&key, 0..0).await), Some(Kind::NotFound), "get range `{name}`");
        assert_eq!(kind_of(store.head(&key).await), Some(Kind::NotFound), "head `{name}`");
    }
}

pub(super) async fn an_object_is_read_back_exactly(store: Arc<dyn ObjectStore>) {
    for (name, length) in [("empty", 0), ("one", 1), ("page", 4096), ("large", LARGE_BYTES)] {
        let expected = body(length as u8, length);
        put(&store, name, expected.clone()).await;
        assert!(get(&store, name).await == expected, "`{name}` of {length} bytes came back different");
        let info = store.head(&key(name)).await.expect("an object that was just put");
        assert_eq!((info.key, info.size), (key(name), length as u64), "head `{name}`");
    }
}

pub(super) async fn ranges_are_exact(store: Arc<dyn ObjectStore>) {
    let expected = body(7, LARGE_BYTES);
    let size = LARGE_BYTES as u64;
    put(&store, "large", expected.clone()).await;
    put(&store, "empty", "").await;
    for range in [0..0, 0..1, 0..size, size - 1..size, size..size, 5..5, 4095..4097, 1 << 20..5 << 20] {
        let bytes = store.get_range(&key("large"), range.clone()).await;
        let bytes = bytes.unwrap_or_else(|error| panic!("range {range:?} of {size} bytes: {error}"));
        let slice = &expected[range.start as usize..range.end as usize];
        assert!(bytes == slice, "range {range:?} came back different, with {} bytes", bytes.len());
    }
    assert_eq!(
        store.get_range(&key("empty"), 0..0).await.ok().as_deref(),
        Some(&b""[..]),
        "nothing of nothing"
    );
    let backwards = std::ops::Range { start: 5, end: 4 };
    for (name, range) in [
        ("large", 0..size + 1),
        ("large", size..size + 1),
        ("large", size + 1..size + 1),
        ("large", size + 5..size + 9),
        ("large", 0..u64::MAX),
        ("large", u64::MAX - 1..u64::MAX),
        ("large", backwards),
        ("empty", 0..1),
    ] {
        let kind = kind_of(store.get_range(&key(name), range.clone()).await);
        assert_eq!(kind, Some(Kind::OutOfRange), "range {range:?} of `{name}`");
    }
}

pub(super) async fn what_is_too_large_is_refused(store: Arc<dyn ObjectStore>) {
    let expected = body(5, 5000);
    put(&store, "object", expected.clone()).await;
    for most in [5000, 5001, u64::MAX] {
        let bytes = store.get_at_most(&key("object"), most).await;
        assert!(bytes.is_ok_and(|bytes| bytes == expected), "at most {most} of 5000 bytes");
    }
    for most in [0, 1, 4999] {
        let kind = kind_of(store.get_at_most(&key("object"), most).await);
        assert_eq!(kind, Some(Kind::TooLarge), "at most {most} of 5000 bytes");
    }
    assert_eq!(kind_of(store.get_at_most(&key("absent"), 1).await), Some(Kind::NotFound));
}

pub(super) async fn every_key_is_a_name(store: Arc<dyn ObjectStore>) {
    let long = "n".repeat(255);
    let longest = format!("{}bb/{long}", "a/".repeat(127));
    assert_eq!(longest.len(), 512);
    let names = [
        "...",
        ".hidden",
        "-dash",
        "_",
        "a.b/c-d/E_F",
        "A",
        "a-upper-and-lower-differ",
        "A-UPPER-AND-LOWER-DIFFER",
        "x/.tmp",
        "x/..x",
        "con",
        "keepwell.json",
        long.as_str(),
        longest.as_str(),
    ];
    for name in names {
        put(&store, name, name.to_owned()).await;
    }
    for name in names {
        assert_eq!(get(&store, name).await, name, "the object has another's content");
    }
    let mut sorted = names.map(str::to_owned);
    sorted.sort();
    assert_eq!(keys(&store, "").await, sorted);
}

pub(super) async fn a_taken_name_stays_as_it_is(store: Arc<dyn ObjectStore>) {
    put(&store, "d/taken", "first").await;
    for other in ["second", "a longer body than the first", ""] {
        let kind = kind_of(store.put_new(&key("d/taken"), other.into()).await);
        assert_eq!(kind, Some(Kind::AlreadyExists), "putting `{other}` over `first`");
        assert_eq!(get(&store, "d/taken").await, "first");
    }
}

pub(super) async fn deleting_is_idempotent(store: Arc<dyn ObjectStore>) {
    put(&store, "d/gone", "x").await;
    put(&store, "d/stays", "y").await;
    for name in ["d/gone", "d/gone", "d/never", "never", "no/such/dir", "d", "d/stays/beneath"] {
        let deleted = store.delete(&key(name)).await;
        deleted.unwrap_or_else(|error| panic!("deleting `{name}`: {error}"));
    }
    assert_eq!(kind_of(store.get(&key("d/gone")).await), Some(Kind::NotFound));
    assert_eq!(keys(&store, "").await, ["d/stays"]);
    store.delete(&key("d/stays")).await.expect("an object can be deleted");
    // Directories that cannot be removed safely may stay.
    match kind_of(store.put_new(&key("d"), "a name beneath which nothing is left".into()).await) {
        None => store.delete(&key("d")).await.expect("an object can be deleted"),
        kind => assert_eq!(kind, Some(Kind::Invalid), "putting beneath nothing"),
    }
    put(&store, "d/gone", "again").await;
    assert_eq!(get(&store, "d/gone").await, "again");
}

pub(super) async fn a_key_beneath_an_object_harms_nothing(store: Arc<dyn ObjectStore>) {
    put(&store, "a", "object").await;
    put(&store, "b/c/d", "deep").await;
    for name in ["a/b", "a/b/c", "b", "b/c"] {
        let kind = kind_of(store.put_new(&key(name), "x".into()).await);
        assert!(matches!(kind, None | Some(Kind::Invalid)), "putting `{name}`: {kind:?}");
    }
    assert_eq!(get(&store, "a").await, "object");
    assert_eq!(get(&store, "b/c/d").await, "deep");
}
