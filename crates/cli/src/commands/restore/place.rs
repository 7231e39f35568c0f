//! What is restored where.

use std::cmp::Reverse;
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use backup_core::{Depth, Error, Select, Snapshot, Tree};
use keepwell_catalog::{Entry, EntryKind, MapKey, Problem};
use keepwell_source_files::FileTarget;

use crate::exit::Complaint;
use crate::select::path_key;

/// A part of a snapshot and the directory that it is restored into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The part; `None` is everything.
    pub below: Option<MapKey>,
    /// The directory. What is no directory itself is restored under its name in it.
    pub target: PathBuf,
    /// Where the paths that were captured come to stand; only these are the snapshot's, not the directories above them.
    pub captured: Vec<PathBuf>,
}

impl Scope {
    /// The way to the directory from the one that the caller named.
    pub fn within(&self, named: &Path) -> Result<MapKey> {
        let names = self.target.strip_prefix(named).context("find the way to a part of the target")?;
        Ok(MapKey::from_components(names.components().map(|name| name.as_os_str().as_bytes()))?)
    }

    /// What could not be captured of this part, by its place in the target. The snapshot lacks it only for that. It names
    /// the first of it; of the paths that are `missing`, all are known.
    pub fn lost(&self, snapshot: &Snapshot, missing: &[MapKey]) -> Result<Vec<MapKey>> {
        if snapshot.commit.complete {
            return Ok(Vec::new());
        }
        let part = self.below.clone().unwrap_or_default();
        let named = lost(&snapshot.manifest()?.problems, &part);
        Ok(named.into_iter().chain(within(missing.iter().cloned(), &part)).collect())
    }
}

fn lost(problems: &[Problem], part: &MapKey) -> Vec<MapKey> {
    let keys = problems.iter().filter_map(|problem| MapKey::from_bytes(problem.key.as_slice()).ok());
    within(keys, part).collect()
}

/// Of these, what lies in a part, by its place there.
fn within(keys: impl Iterator<Item = MapKey>, part: &MapKey) -> impl Iterator<Item = MapKey> {
    let within = keys.filter(move |key| key.starts_with(part));
    within.filter_map(move |key| MapKey::from_components(key.components().skip(part.depth())).ok())
}

/// What a restore consists of.
#[derive(Debug)]
pub struct Parts {
    /// What is restored where; never empty.
    pub scopes: Vec<Scope>,
    /// Captured paths of which a snapshot that is not complete has nothing.
    pub missing: Vec<MapKey>,
}

/// Divides a restore into parts.
///
/// Usually that is one. With `delete` it is one per captured path: the directories that lead to a captured path are in
/// the snapshot without what else is in them, and nothing of that must be removed. What lies deeper comes first: on a
/// file system of its own, only its own part removes anything. A captured path that the snapshot lacks for not being complete
/// is no part, and not a reason to restore more than was captured.
pub async fn parts(
    tree: &Tree,
    snapshot: &Snapshot,
    below: Option<MapKey>,
    target: &Path,
    delete: bool,
) -> Result<Parts> {
    let below_or_root = below.clone().unwrap_or_else(MapKey::root);
    let place = |names: &MapKey| {
        names.components().fold(target.to_path_buf(), |path, name| path.join(OsStr::from_bytes(&name)))
    };
    let whole = |captured| {
        let scopes = vec![Scope { below: below.clone(), target: target.to_path_buf(), captured }];
        Parts { scopes, missing: Vec::new() }
    };
    if let Some(name) = below.as_ref().and_then(MapKey::name)
        && !is_directory(tree, &below_or_root).await?
    {
        return Ok(whole(vec![target.join(OsStr::from_bytes(&name))]));
    }
    let captured = captured(&snapshot.manifest()?.paths, &below_or_root)?;
    if !delete || matches!(captured.as_slice(), [(key, _)] if *key == below_or_root) {
        return Ok(whole(captured.iter().map(|(_, within)| place(within)).collect()));
    }
    let (mut scopes, mut missing) = (Vec::new(), Vec::new());
    for (key, within) in captured.into_iter().rev() {
        if !snapshot.commit.complete && is_missing(tree, &key).await {
            missing.push(key);
            continue;
        }
        let stands = place(&within);
        let target = match is_directory(tree, &key).await? {
            true => stands.clone(),
            false => place(&within.parent().unwrap_or_default()),
        };
        scopes.push(Scope { below: Some(key), target, captured: vec![stands] });
    }
    if scopes.is_empty()
        && let Some(first) = missing.first()
    {
        let path = format!("/{}", first.display_path());
        return Err(Error::NoSuchPath { path, snapshot: snapshot.short() }.into());
    }
    Ok(Parts { scopes, missing })
}

/// Whether nothing is at a key and nothing below it. What cannot be read there, the restore names.
async fn is_missing(tree: &Tree, key: &MapKey) -> bool {
    let listed = tree.list(key, Depth::Children, |_, _| ControlFlow::Break(())).await;
    matches!(listed, Err(Error::NoSuchPath { .. }))
}

/// What of a part was captured, each with its place in the part; what lies deeper comes later. That is the whole part if it
/// lies within a captured path, whatever else was named in it.
fn captured(paths: &[Vec<u8>], part: &MapKey) -> Result<Vec<(MapKey, MapKey)>> {
    let keys = paths.iter().map(path_key).collect::<Result<Vec<MapKey>>>()?;
    let mut captured = Vec::new();
    for key in keys.iter().filter(|key| key.starts_with(part)) {
        captured.push((key.clone(), MapKey::from_components(key.components().skip(part.depth()))?));
    }
    if captured.is_empty() || keys.iter().any(|key| key != part && part.starts_with(key)) {
        captured.retain(|(key, _)| key != part);
        captured.insert(0, (part.clone(), MapKey::root()));
    }
    Ok(captured)
}

/// Whether a part is a directory, or not there at all, which shows later.
async fn is_directory(tree: &Tree, key: &MapKey) -> Result<bool> {
    Ok(tree.entry(key).await?.is_none_or(|entry| entry.kind == EntryKind::Directory))
}

/// Whether the target directory is to become what the snapshot's directory was, and not only what is in it.
///
/// Not if it is somebody's directory that merely gets something put into it, as `/tmp`.
pub fn takes_root_metadata(scope: &Scope, delete: bool) -> bool {
    let in_place = scope.below.as_ref().is_some_and(|key| {
        let path = key.to_os_path_bytes().unwrap_or_default();
        Path::new("/").join(OsStr::from_bytes(&path)) == scope.target
    });
    delete || in_place || !is_occupied(&scope.target)
}

/// What to restore of a part, but for what would come to stand where nothing may be touched.
pub fn without_kept(select: Option<Select>, scope: &Scope, target: &Arc<FileTarget>) -> Option<Select> {
    if target.kept().is_empty() {
        return select;
    }
    let (above, target) = (scope.below.as_ref().map_or(0, MapKey::depth), Arc::clone(target));
    Some(Arc::new(move |key, entry| {
        let within = MapKey::from_components(key.components().skip(above));
        !within.is_ok_and(|within| target.is_kept(&within))
            && select.as_ref().is_none_or(|select| select(key, entry))
    }))
}

/// What the directory that a part is restored into was in the snapshot; nothing for a part that is no directory.
pub async fn root_of(tree: &Tree, scope: &Scope) -> Result<Option<Entry>> {
    let Some(key) = &scope.below else { return Ok(None) };
    Ok(tree.entry(key).await?.filter(|entry| entry.kind == EntryKind::Directory))
}

/// Whether something stands in a directory. One that cannot be listed may hold anything.
pub fn is_occupied(directory: &Path) -> bool {
    match fs::read_dir(directory) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) => !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
    }
}

/// Directories that were made only so that a plan could be made.
#[derive(Debug)]
pub struct Made(Vec<PathBuf>);

impl Made {
    /// Makes a directory and those above it.
    pub fn directories(path: &Path) -> Result<Self> {
        if path.exists() && !path.is_dir() {
            return Err(Complaint::usage(format!("`{}` is not a directory", path.display())).into());
        }
        let missing: Vec<PathBuf> =
            path.ancestors().take_while(|p| !p.exists()).map(Path::to_path_buf).collect();
        fs::create_dir_all(path).with_context(|| format!("create `{}`", path.display()))?;
        Ok(Self(missing))
    }

    /// Notes what is missing on the way to a further directory, which will be made.
    pub fn expect(&mut self, path: &Path) {
        let missing = path.ancestors().take_while(|path| path.symlink_metadata().is_err());
        self.0.extend(missing.map(Path::to_path_buf));
        self.0.sort_by_key(|path| Reverse(path.components().count()));
    }

    /// Removes them again, as far as they are empty.
    pub fn undo(&self) {
        for path in &self.0 {
            // A directory that somebody else uses by now stays.
            let _ = fs::remove_dir(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use backup_core::BackupOptions;
    use backup_core::env::SystemClock;
    use backup_core::source::{Found, Item, Opened, Preflight, Source, SourceError};
    use keepwell_source_files::{FileOptions, FileSource};
    use keepwell_storage::Memory;

    use super::*;
    use crate::testing;

    /// Files of which some cannot be looked at.
    struct Unreadable(FileSource, Vec<MapKey>);

    impl Source for Unreadable {
        fn kind(&self) -> &str {
            self.0.kind()
        }

        fn paths(&self) -> Vec<Vec<u8>> {
            self.0.paths()
        }

        fn preflight(&self) -> Result<Preflight, SourceError> {
            self.0.preflight()
        }

        fn walk(&self, visit: &mut dyn FnMut(Found) -> ControlFlow<()>) -> Result<(), SourceError> {
            self.0.walk(&mut |found| match found {
                Found::Item(Item { key, .. }) if self.1.contains(&key) => {
                    visit(Found::Problem { key, message: "cannot be looked at".to_owned() })
                }
                found => visit(found),
            })
        }

        fn open(&self, item: &Item) -> Result<Option<Opened>, SourceError> {
            self.0.open(item)
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_captured_path_that_the_snapshot_lacks_is_no_part() {
        let repository = testing::repository(&Memory::new()).await;
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let paths = ["a", "b"].map(|name| dir.join(name));
        paths.iter().for_each(|path| fs::create_dir(path).unwrap());
        let keys = [&paths[0], &paths[1]].map(|path| path_key(path.as_os_str().as_bytes()).unwrap());
        for (unreadable, there) in [(0, Some(1)), (1, Some(0)), (2, None)] {
            let options = FileOptions { paths: paths.to_vec(), ..FileOptions::default() };
            let source = FileSource::new(&options, Arc::new(SystemClock)).unwrap();
            let lost = if unreadable == 2 { keys.to_vec() } else { vec![keys[unreadable].clone()] };
            let source = Unreadable(source, lost.clone());
            let backup = BackupOptions { dataset: "d".to_owned(), ..BackupOptions::default() };
            let report = repository.backup(Arc::new(source), backup).await.unwrap();
            let snapshots = repository.snapshots().await.unwrap();
            let snapshot = snapshots.iter().find(|snapshot| snapshot.id == report.snapshot).unwrap();
            let tree = repository.tree(snapshot).await.unwrap();
            let found = parts(&tree, snapshot, None, Path::new("/t"), true).await;
            let Some(there) = there else {
                let error = found.unwrap_err();
                assert!(matches!(error.downcast_ref::<Error>(), Some(Error::NoSuchPath { .. })), "{error:?}");
                continue;
            };
            let Parts { scopes, missing } = found.unwrap();
            let below: Vec<_> = scopes.into_iter().map(|scope| scope.below).collect();
            assert_eq!((below, missing), (vec![Some(keys[there].clone())], lost));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_path_that_the_snapshot_lacks_stays_within_another_also_where_it_names_others() {
        let repository = testing::repository(&Memory::new()).await;
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        // More than a snapshot names, and before the path.
        let names: Vec<String> = (0..1100).map(|n| format!("a{n:04}")).collect();
        names.iter().for_each(|name| fs::write(dir.join(name), "").unwrap());
        let paths = [dir.clone(), dir.join("z")];
        fs::create_dir(&paths[1]).unwrap();
        let part = path_key(dir.as_os_str().as_bytes()).unwrap();
        let child = |name: &str| part.child(name.as_bytes()).unwrap();
        let lost: Vec<MapKey> = names.iter().map(|name| child(name)).chain([child("z")]).collect();
        let source = FileOptions { paths: paths.to_vec(), ..FileOptions::default() };
        let source = Unreadable(FileSource::new(&source, Arc::new(SystemClock)).unwrap(), lost);
        let backup = BackupOptions { dataset: "d".to_owned(), ..BackupOptions::default() };
        repository.backup(Arc::new(source), backup).await.unwrap();
        let snapshots = repository.snapshots().await.unwrap();
        let tree = repository.tree(&snapshots[0]).await.unwrap();
        let Parts { scopes, missing } =
            parts(&tree, &snapshots[0], None, Path::new("/t"), true).await.unwrap();
        assert_eq!((scopes.len(), missing.as_slice()), (1, &[child("z")][..]));
        let spared = scopes[0].lost(&snapshots[0], &missing).unwrap();
        assert!(spared.contains(&MapKey::from_components(["z"]).unwrap()), "{} are named", spared.len());
    }

    #[test]
    fn a_part_within_a_captured_path_is_captured_whole_whatever_was_named_in_it() {
        let paths = ["/", "/srv/data", "/srv/data/deep"].map(|path| path.as_bytes().to_vec());
        let two = ["/a/x", "/a/y"].map(|path| path.as_bytes().to_vec());
        for (paths, part, expected) in [
            (&paths[..], "/", &[("", ""), ("srv/data", "srv/data"), ("srv/data/deep", "srv/data/deep")][..]),
            (&paths[..], "/srv", &[("srv", ""), ("srv/data", "data"), ("srv/data/deep", "data/deep")][..]),
            (&paths[..], "/srv/data", &[("srv/data", ""), ("srv/data/deep", "deep")][..]),
            (&paths[..], "/etc", &[("etc", "")][..]),
            (&two[..], "/a", &[("a/x", "x"), ("a/y", "y")][..]),
            (&two[..], "/a/x", &[("a/x", "")][..]),
            (&two[..], "/a/x/in", &[("a/x/in", "")][..]),
        ] {
            let found = captured(paths, &path_key(part).unwrap()).unwrap();
            let found: Vec<_> =
                found.iter().map(|(key, within)| (key.display_path(), within.display_path())).collect();
            let found: Vec<_> = found.iter().map(|(key, within)| (key.as_str(), within.as_str())).collect();
            assert_eq!(found, expected, "{part}");
        }
    }

    #[test]
    fn what_could_not_be_captured_has_its_place_in_the_part() {
        let problem = |path: &str| {
            let key = path_key(path).unwrap().as_bytes().to_vec();
            Problem { key, message: "cannot be opened".to_owned() }
        };
        let problems = ["/etc/shadow", "/srv", "/srv/a/b", "/srv2"].map(problem);
        for (part, expected) in [
            ("/", &["etc/shadow", "srv", "srv/a/b", "srv2"][..]),
            ("/srv", &["", "a/b"][..]),
            ("/x", &[][..]),
        ] {
            let found = lost(&problems, &path_key(part).unwrap());
            assert_eq!(found.iter().map(MapKey::display_path).collect::<Vec<_>>(), expected, "{part}");
        }
    }

    #[test]
    fn a_directory_that_cannot_be_listed_counts_as_occupied() {
        let dir = tempfile::tempdir().unwrap();
        let (file, missing) = (dir.path().join("file"), dir.path().join("missing"));
        assert!(!is_occupied(dir.path()) && !is_occupied(&missing));
        fs::write(&file, "x").unwrap();
        assert!(is_occupied(dir.path()) && !is_occupied(&file));
        // Stands for one without the right to list it, which root has anyway.
        assert!(is_occupied(&dir.path().join("x".repeat(300))));
    }
}
