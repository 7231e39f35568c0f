//! Cases about listings.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::{key, keys, kind_of, put};
use crate::{LIST_PAGE_MAX, ObjectStore, StorageErrorKind, list_all};

/// Puts running at a time while a case fills its store.
const PARALLEL_PUTS: usize = 64;

pub(super) async fn a_listing_is_in_byte_order(store: Arc<dyn ObjectStore>) {
    assert!(keys(&store, "").await.is_empty(), "the suite needs an empty store");
    // `-` and `.` sort before `/`, digits and letters after it: directories do not sort like their names.
    let names = ["a-/1", "a.b", "a.b.c/1", "a/1", "a/1.x", "a/1a", "a/b/c", "a0", "aZ/x", "a_", "ab/c", "b"];
    assert!(names.is_sorted());
    for name in names.iter().rev() {
        put(&store, name, name.as_bytes()).await;
    }
    assert_eq!(keys(&store, "").await, names);
    for prefix in ["a/", "a-/", "a/b/", "a.b.c/", "none/", "b/", "a/1/", "A/"] {
        let expected: Vec<_> = names.into_iter().filter(|name| name.starts_with(prefix)).collect();
        assert_eq!(keys(&store, prefix).await, expected, "prefix `{prefix}`");
    }
    let sizes: Vec<u64> =
        list_all(&store, "").await.expect("listed before").iter().map(|info| info.size).collect();
    assert_eq!(sizes, names.map(|name| name.len() as u64), "sizes");
}

pub(super) async fn pages_join_without_gap_or_repetition(store: Arc<dyn ObjectStore>) {
    let mut names: Vec<String> = (0..LIST_PAGE_MAX + 25).map(|number| format!("many/{number:05}")).collect();
    names.extend(
        (0..30).map(|number| format!("many/00500/{number}")).map(|name| name.replace("00500", "00500x")),
    );
    names.extend(["before/x".to_owned(), "other".to_owned()]);
    let mut puts = JoinSet::new();
    for name in names.clone() {
        if puts.len() >= PARALLEL_PUTS {
            puts.join_next().await;
        }
        let store = Arc::clone(&store);
        puts.spawn(async move { put(&store, &name, "x").await });
    }
    puts.join_all().await;
    names.sort();
    assert_eq!(keys(&store, "").await, names);
    names.retain(|name| name.starts_with("many/"));
    assert_eq!(keys(&store, "many/").await, names);

    let first = store.list_page("many/", None).await.expect("a page");
    let length = first.objects.len();
    assert!((1..=LIST_PAGE_MAX).contains(&length), "a page has 1 to 1000 objects, not {length}");
    assert!(first.more, "the first page of {} objects says that there are no more", names.len());
    let last = &names[names.len() - 3];
    let rest = store.list_page("many/", Some(&key(last))).await.expect("a page");
    assert_eq!(
        (rest.objects.len(), rest.more),
        (2, false),
        "what follows `{last}` is one page, and the last"
    );
    let full = store.list_page("many/", Some(&key(&names[names.len() - LIST_PAGE_MAX - 1]))).await;
    assert_eq!(full.expect("a page").objects.len(), LIST_PAGE_MAX, "what fits into one page comes as one");
}

pub(super) async fn a_page_starts_after_any_key(store: Arc<dyn ObjectStore>) {
    let names = ["a/x", "b.c", "b/1", "b/2/x", "b/2/y", "b/3", "c"];
    for name in names {
        put(&store, name, "x").await;
    }
    for prefix in ["", "b/", "b/2/"] {
        for after in
            ["A", "a", "a/x", "b", "b.", "b/", "b/1", "b/10", "b/2", "b/2/x", "b/2/x/y", "b/9", "c", "d"]
        {
            let Ok(after) = after.parse() else { continue }; // `b/` is no key
            let page = store.list_page(prefix, Some(&after)).await.expect("a page");
            let listed: Vec<_> = page.objects.iter().map(|info| info.key.as_str()).collect();
            let wanted = |name: &&str| name.starts_with(prefix) && *name > after.as_str();
            let expected: Vec<_> = names.into_iter().filter(wanted).collect();
            assert_eq!(listed, expected, "prefix `{prefix}`, after `{after}`");
            assert!(!page.more, "a short listing is one page: prefix `{prefix}`, after `{after}`");
        }
    }
}

pub(super) async fn a_listing_sees_every_finished_write(store: Arc<dyn ObjectStore>) {
    for round in 0..20u64 {
        let name = format!("d/{round}");
        put(&store, &name, vec![0; round as usize]).await;
        let listed = list_all(&store, "d/").await.expect("a listing");
        let facts: Vec<_> = listed.iter().map(|info| (&info.key, info.size)).collect();
        assert_eq!(facts, [(&key(&name), round)], "after the put");
        store.delete(&key(&name)).await.expect("an object can be deleted");
        assert!(keys(&store, "d/").await.is_empty(), "after the delete");
    }
}

pub(super) async fn half_a_component_is_no_prefix(store: Arc<dyn ObjectStore>) {
    for prefix in ["a", "/", "a//", "../", "a/../", "a b/", ".tmp/"] {
        let kind = kind_of(store.list_page(prefix, None).await);
        assert_eq!(kind, Some(StorageErrorKind::Invalid), "prefix `{prefix}`");
    }
}
