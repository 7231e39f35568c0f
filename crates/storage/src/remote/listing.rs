//! Listing in the order of bytes, a page at a time, with what each service offers for it.

use std::sync::PoisonError;

use futures_util::StreamExt;
use opendal::options::ListOptions;
use opendal::{Lister, Metadata};

use super::Service;
use super::store::OpendalStore;
use crate::tree::{self, Child, Directories};
use crate::{Key, LIST_PAGE_MAX, ObjectInfo, Page, StorageError, StorageErrorKind};

/// Listings kept for their next page; the oldest is given up first.
const POSITIONS_MAX: usize = 16;

/// A listing that stopped at the end of a page.
pub(super) struct Position {
    prefix: String,
    /// The last key of that page.
    last: Key,
    lister: Lister,
}

pub(super) async fn page(
    store: &OpendalStore,
    prefix: &str,
    after: Option<&Key>,
) -> Result<Page, StorageError> {
    match store.site.service {
        Service::S3 | Service::Gcs => {
            let lister = lister(store, prefix, after).await?;
            fill(store, prefix, after, lister).await.map(|(page, _)| page)
        }
        Service::Azblob => sequential(store, prefix, after).await,
        Service::Webdav | Service::Other => tree::page(store, prefix, after).await,
    }
}

/// For a service that lists only from the beginning: goes on with the listing that ended at `after`, if it is still
/// there, or else reads over everything before. So a listing of many pages costs a request for each.
async fn sequential(store: &OpendalStore, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError> {
    let kept = after.and_then(|after| take(store, prefix, after));
    let lister = match kept {
        Some(lister) => lister,
        None => lister(store, prefix, None).await?,
    };
    let (page, lister) = fill(store, prefix, after, lister).await?;
    if let (true, Some(last)) = (page.more, page.objects.last()) {
        let position = Position { prefix: prefix.to_owned(), last: last.key.clone(), lister };
        let mut positions = store.positions.lock().unwrap_or_else(PoisonError::into_inner);
        // Of two at one place the earlier may hold answers from before the later began, whose caller must see what is new.
        positions.retain(|kept| kept.prefix != position.prefix || kept.last != position.last);
        if positions.len() >= POSITIONS_MAX {
            positions.remove(0);
        }
        positions.push(position);
    }
    Ok(page)
}

fn take(store: &OpendalStore, prefix: &str, after: &Key) -> Option<Lister> {
    let mut positions = store.positions.lock().unwrap_or_else(PoisonError::into_inner);
    let found = positions.iter().position(|kept| kept.prefix == prefix && kept.last == *after)?;
    Some(positions.remove(found).lister)
}

/// Whether a listing shows the object. Whoever may do nothing else may list.
pub(super) async fn is_there(store: &OpendalStore, key: &Key) -> Result<bool, StorageError> {
    let options = ListOptions { recursive: true, limit: Some(1), ..ListOptions::default() };
    let first = async {
        let mut lister = store.hot.lister_options(key.as_str(), options).await?;
        lister.next().await.transpose()
    };
    // Of all names that begin with it, it is the first.
    let listed = store.limited("list", key.as_str(), store.limits.timeout, first).await?;
    Ok(listed.is_some_and(|entry| entry.path() == key.as_str()))
}

async fn lister(
    store: &OpendalStore,
    prefix: &str,
    start_after: Option<&Key>,
) -> Result<Lister, StorageError> {
    let options = ListOptions {
        recursive: true,
        limit: Some(LIST_PAGE_MAX),
        start_after: start_after.map(|key| key.as_str().to_owned()),
        ..ListOptions::default()
    };
    store.limited("list", prefix, store.limits.timeout, store.hot.lister_options(prefix, options)).await
}

/// Takes the next page of objects that come after `after`.
async fn fill(
    store: &OpendalStore,
    prefix: &str,
    after: Option<&Key>,
    mut lister: Lister,
) -> Result<(Page, Lister), StorageError> {
    let mut objects: Vec<ObjectInfo> = Vec::new();
    while objects.len() < LIST_PAGE_MAX {
        let next = async { lister.next().await.transpose() };
        let Some(entry) = store.limited("list", prefix, store.limits.timeout, next).await? else {
            return Ok((Page { objects, more: false }, lister));
        };
        let Ok(key) = Key::new(entry.path()) else { continue }; // somebody else's
        if after.is_some_and(|after| key <= *after) {
            continue;
        }
        if objects.last().is_some_and(|last| last.key >= key) {
            return Err(store.site.strange("list", &key, "does not list in the order of bytes").with_hint(
                "S3 directory buckets and Azure's hierarchical namespaces cannot hold a repository.",
            ));
        }
        let (size, modified) = (entry.metadata().content_length(), modified(entry.metadata()));
        objects.push(ObjectInfo { key, size, modified });
    }
    Ok((Page { objects, more: true }, lister))
}

fn modified(metadata: &Metadata) -> Option<i64> {
    i64::try_from(metadata.last_modified()?.into_inner().as_nanosecond()).ok()
}

impl Directories for OpendalStore {
    async fn children(&self, directory: &str) -> Result<Vec<Child>, StorageError> {
        let (path, time) = (if directory.is_empty() { "/" } else { directory }, self.limits.timeout);
        let mut lister = match self.limited("list", directory, time, self.hot.lister(path)).await {
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            lister => lister?,
        };
        let (mut children, mut shows_itself, mut shows_anything) = (Vec::new(), false, false);
        loop {
            let next = async { lister.next().await.transpose() };
            let entry = match self.limited("list", directory, time, next).await {
                Ok(Some(entry)) => entry,
                Ok(None) if self.site.service == Service::Webdav && shows_anything && !shows_itself => {
                    return Err(under_other_names(self, directory));
                }
                Ok(None) => return Ok(children),
                Err(error) if error.is_not_found() => return Ok(children),
                Err(error) if self.is_beneath_object(directory, &error).await => return Ok(children),
                Err(error) => return Err(error),
            };
            shows_anything = true;
            let name = entry.path().strip_prefix(directory);
            // An object of that name shows itself, too, and has nothing beneath it.
            if entry.path() == path || name == Some("") || directory.strip_suffix('/') == Some(entry.path()) {
                shows_itself = true;
                continue;
            }
            let Some(name) = name else { continue };
            let size = entry.metadata().content_length();
            children.push(Child { name: name.to_owned(), size, modified: modified(entry.metadata()) });
        }
    }
}

/// A WebDAV server shows a directory among what is in it. Where it does not, what it lists has other addresses than were
/// asked for, whole URLs for example, or paths from before a proxy: OpenDAL makes nonsense of these, which would look like
/// an empty directory.
fn under_other_names(store: &OpendalStore, directory: &str) -> StorageError {
    let message = format!("{} lists it under another path than it was asked for", store.site.server);
    StorageError::new(StorageErrorKind::Invalid, "list", directory, message).with_hint(
        "The server must name what it lists by its path, and a proxy before it must leave paths as they are.",
    )
}

#[cfg(test)]
mod tests {
    use super::super::{Limits, services, transport};
    use super::*;
    use crate::connect::ConnectOptions;
    use crate::location::{Location, Settings};

    /// Lists at once what there is, and hands it out in pages.
    fn in_memory() -> OpendalStore {
        let location: Location = "opendal:memory".parse().unwrap();
        let (settings, options) = (Settings::default(), ConnectOptions::default());
        let parts = services::parts(&location, &settings, &options).unwrap();
        let limits = Limits::new(Service::Other, &settings);
        let http = transport::client(&settings, false, limits.timeout).unwrap();
        OpendalStore::new(parts, transport::transport(http), limits, location.place.to_string())
    }

    async fn put(store: &OpendalStore, name: &str) {
        store.hot.write(name, "x").await.unwrap();
    }

    #[tokio::test]
    async fn a_listing_does_not_go_on_with_the_answers_of_an_earlier_one() {
        let store = in_memory();
        for number in 0..LIST_PAGE_MAX + 10 {
            put(&store, &format!("k/{number:05}")).await;
        }
        let earlier = sequential(&store, "k/", None).await.unwrap();
        put(&store, "k/99999").await;
        let later = sequential(&store, "k/", None).await.unwrap();
        let last = later.objects.last().map(|info| info.key.clone());
        assert_eq!(earlier.objects.last().map(|info| info.key.clone()), last);
        let rest = sequential(&store, "k/", last.as_ref()).await.unwrap();
        assert_eq!(rest.objects.len(), 11, "what came after the earlier listing began");
        // The earlier one finds its place gone, and reads again.
        let rest = sequential(&store, "k/", last.as_ref()).await.unwrap();
        assert!((10..=11).contains(&rest.objects.len()) && !rest.more);
    }
}
