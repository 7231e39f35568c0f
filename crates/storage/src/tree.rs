//! Listing a tree of directories in the order of keys.

use crate::key::{KEY_MAX_BYTES, RESERVED_COMPONENT, is_component};
use crate::{Key, LIST_PAGE_MAX, ObjectInfo, Page, StorageError};

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Child {
    /// Its name; that of a directory ends in `/`.
    pub(crate) name: String,
    /// The size of a file.
    pub(crate) size: u64,
    /// When it was last modified, as [`ObjectInfo::modified`].
    pub(crate) modified: Option<i64>,
}

/// What can list one directory.
pub(crate) trait Directories: Sync {
    /// The entries of a directory, in any order; none if it does not exist. `directory` is empty or ends in `/`.
    fn children(&self, directory: &str) -> impl Future<Output = Result<Vec<Child>, StorageError>> + Send;
}

/// A page of [`ObjectStore::list_page`](crate::ObjectStore::list_page).
///
/// Lists the directories on the way to `after`, and those of the page; holds the names of one directory for each level.
pub(crate) async fn page(
    store: &impl Directories,
    prefix: &str,
    after: Option<&Key>,
) -> Result<Page, StorageError> {
    let after = after.map_or("", Key::as_str);
    let mut page = Page::default();
    if !after.starts_with(prefix) && after > prefix {
        return Ok(page);
    }
    let mut open = vec![(prefix.to_owned(), sorted(store, prefix).await?)];
    while let Some((directory, children)) = open.last_mut() {
        let Some(child) = children.pop() else {
            open.pop();
            continue;
        };
        let path = format!("{directory}{}", child.name);
        if path.ends_with('/') {
            let is_before = path.as_str() <= after && !after.starts_with(&path);
            if !is_before && path.len() < KEY_MAX_BYTES {
                let children = sorted(store, &path).await?;
                open.push((path, children));
            }
            continue;
        }
        let Ok(key) = Key::new(&path) else { continue };
        if key.as_str() <= after {
            continue;
        }
        if page.objects.len() == LIST_PAGE_MAX {
            page.more = true;
            break;
        }
        page.objects.push(ObjectInfo { key, size: child.size, modified: child.modified });
    }
    Ok(page)
}

/// What can be part of a key, the last first.
async fn sorted(store: &impl Directories, directory: &str) -> Result<Vec<Child>, StorageError> {
    let mut children = store.children(directory).await?;
    children.retain(|child| {
        let name = child.name.strip_suffix('/').unwrap_or(&child.name);
        is_component(name) && !(directory.is_empty() && name == RESERVED_COMPONENT)
    });
    children.sort_unstable_by(|a, b| b.name.cmp(&a.name));
    children.dedup_by(|a, b| a.name == b.name);
    Ok(children)
}
