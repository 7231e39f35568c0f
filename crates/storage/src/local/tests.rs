use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use super::*;
use crate::{LIST_PAGE_MAX, list_all};

/// Options that do not look at this machine's mounts.
fn options() -> LocalOptions {
    LocalOptions { require_mount: None, fstab: "/nonexistent/fstab".into() }
}

async fn new_store() -> (tempfile::TempDir, LocalFs) {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalFs::create(directory.path().join("repository"), &options()).await.unwrap();
    (directory, store)
}

fn key(text: &str) -> Key {
    text.parse().unwrap()
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn names_in(path: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A mounted file system, unmounted at the end.
struct Mounted(PathBuf);

impl Mounted {
    /// Nothing, with the reason printed, where this process may not mount; CI may.
    fn tmpfs(path: &Path, size: &str) -> Option<Self> {
        let options = format!("size={size}");
        let output =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(path).output().unwrap();
        if output.status.success() {
            return Some(Self(path.to_path_buf()));
        }
        println!("skipped: cannot mount a tmpfs: {}", String::from_utf8_lossy(&output.stderr).trim());
        None
    }

    fn remount_read_only(&self) {
        let status = Command::new("mount").args(["-o", "remount,ro"]).arg(&self.0).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test]
async fn objects_and_directories_are_private() {
    let (_directory, store) = new_store().await;
    store.put_new(&key("data/2a/pack"), "x".into()).await.unwrap();
    for (path, expected) in
        [("", 0o700), (".tmp", 0o700), ("data", 0o700), ("data/2a", 0o700), ("data/2a/pack", 0o600)]
    {
        assert_eq!(mode(&store.path().join(path)), expected, "{path}");
    }
}

#[tokio::test]
async fn a_put_syncs_the_file_then_every_new_name() {
    let (_directory, store) = new_store().await;
    let log = Arc::new(Mutex::new(Vec::<String>::new()));
    let logged = |what: &'static str| -> SyncCall {
        let (log, root) = (Arc::clone(&log), store.path().to_path_buf());
        Arc::new(move |fd: BorrowedFd<'_>| {
            let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
            let path = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            let path = if path.starts_with(".tmp/") { ".tmp/*".into() } else { path };
            log.lock().unwrap().push(format!("{what} {path}"));
            Ok(())
        })
    };
    let store = with_sync_calls(&store, SyncCalls { data: logged("data"), directory: logged("dir") });
    let take = || std::mem::take(&mut *log.lock().unwrap());

    store.put_new(&key("a/b/c"), "x".into()).await.unwrap();
    assert_eq!(
        take(),
        ["data .tmp/*", "dir ", "dir a", "dir a/b"],
        "new directories, parents first, then the name"
    );
    store.put_new(&key("a/b/d"), "x".into()).await.unwrap();
    assert_eq!(take(), ["data .tmp/*", "dir a/b"], "known directories are not synced again");
    store.put_new(&key("a/b/d"), "y".into()).await.unwrap_err();
    assert_eq!(take(), ["data .tmp/*", "dir a/b"], "an object that exists is durable when we say so");
    std::fs::create_dir(store.path().join("other")).unwrap();
    store.put_new(&key("other/x"), "x".into()).await.unwrap();
    assert_eq!(
        take(),
        ["data .tmp/*", "dir ", "dir other"],
        "a directory made by someone else is made durable"
    );
    store.delete(&key("a/b/d")).await.unwrap();
    assert_eq!(take(), ["dir a/b"]);
    // Often within one tick of the file system's clock, so that inode and time are those of the old directory.
    for round in 0..100 {
        store.delete(&key("a/b/c")).await.unwrap();
        assert_eq!(take(), ["dir a/b"]);
        store.put_new(&key("a/b/c"), "x".into()).await.unwrap();
        assert_eq!(
            take(),
            ["data .tmp/*", "dir ", "dir a", "dir a/b"],
            "directories made anew are not taken for the old, round {round}"
        );
    }
}

/// A put makes its directory durable; before it says so, a deletion elsewhere removes the directory, and another put makes
/// one of the same name, often with the inode and the time of the old.
#[tokio::test]
async fn a_directory_that_is_gone_is_not_remembered_as_durable() {
    let (_directory, store) = new_store().await;
    store.put_new(&key("a/b"), "x".into()).await.unwrap();
    let removed = std::fs::File::open(store.path().join("a")).unwrap();
    store.delete(&key("a/b")).await.unwrap();
    store.disk.remember_durable("a", removed.as_fd());
    assert!(store.disk.durable.lock().unwrap().is_empty());
}

fn with_sync_calls(store: &LocalFs, sync: SyncCalls) -> LocalFs {
    let root = store.disk.root.try_clone().unwrap();
    let mut disk = Disk::new(root, store.disk.path.clone());
    disk.sync = sync;
    LocalFs { disk: Arc::new(disk) }
}

#[tokio::test]
async fn a_failed_sync_is_final() {
    let fine: SyncCall = Arc::new(|_: BorrowedFd<'_>| Ok(()));
    let fails: SyncCall = Arc::new(|_: BorrowedFd<'_>| Err(Errno::IO));
    for (what, sync, visible) in [
        ("data", SyncCalls { data: fails.clone(), directory: fine.clone() }, false),
        ("directory", SyncCalls { data: fine.clone(), directory: fails.clone() }, true),
    ] {
        let (_directory, store) = new_store().await;
        store.put_new(&key("old"), "old".into()).await.unwrap();
        let store = with_sync_calls(&store, sync);
        let error = store.put_new(&key("new"), "new".into()).await.unwrap_err();
        assert_eq!(error.kind, StorageErrorKind::Suspect, "{what}");
        assert!(!error.is_retryable());
        assert_eq!(error.to_string(), "put `new`: the disk did not confirm that the put is durable");
        assert_eq!(store.head(&key("new")).await.is_ok(), visible, "{what}");
        assert!(names_in(&store.path().join(".tmp")).is_empty(), "{what}");

        let later = store.put_new(&key("later"), "x".into()).await.unwrap_err();
        assert_eq!(later.kind, StorageErrorKind::Suspect);
        assert_eq!(store.delete(&key("old")).await.unwrap_err().kind, StorageErrorKind::Suspect);
        assert_eq!(store.get(&key("old")).await.unwrap(), "old", "reading goes on");
    }
}

#[tokio::test]
async fn a_disk_that_is_full_only_at_the_sync_is_full_and_not_suspect() {
    let (_directory, store) = new_store().await;
    let full = SyncCalls { data: Arc::new(|_: BorrowedFd<'_>| Err(Errno::DQUOT)), ..SyncCalls::default() };
    let store = with_sync_calls(&store, full);
    for _ in 0..2 {
        assert_eq!(store.put_new(&key("a"), "x".into()).await.unwrap_err().kind, StorageErrorKind::NoSpace);
    }
    assert!(names_in(&store.path().join(".tmp")).is_empty());
}

#[tokio::test]
async fn a_file_system_without_directory_sync_is_accepted() {
    let (_directory, store) = new_store().await;
    let none =
        SyncCalls { directory: Arc::new(|_: BorrowedFd<'_>| Err(Errno::INVAL)), ..SyncCalls::default() };
    with_sync_calls(&store, none).put_new(&key("a/b"), "x".into()).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_is_said_so_and_keeps_nothing_of_the_put() {
    let directory = tempfile::tempdir().unwrap();
    let Some(mounted) = Mounted::tmpfs(directory.path(), "1m") else { return };
    let store = LocalFs::create(mounted.0.join("repository"), &options()).await.unwrap();
    store.put_new(&key("small"), vec![1; 100_000].into()).await.unwrap();
    let error = store.put_new(&key("data/large"), vec![2; 4 << 20].into()).await.unwrap_err();
    assert_eq!(error.kind, StorageErrorKind::NoSpace);
    assert_eq!(error.to_string(), "put `data/large`: no space left on the device");
    assert!(error.hint.unwrap().contains("run the command again"));
    assert!(names_in(&store.path().join(".tmp")).is_empty());
    assert_eq!(list_all(&store, "").await.unwrap().len(), 1);
    store.put_new(&key("another"), vec![3; 100_000].into()).await.unwrap();
}

#[tokio::test]
async fn a_read_only_disk_can_be_read_and_is_named_when_written() {
    let directory = tempfile::tempdir().unwrap();
    let Some(mounted) = Mounted::tmpfs(directory.path(), "1m") else { return };
    let path = mounted.0.join("repository");
    let store = LocalFs::create(&path, &options()).await.unwrap();
    store.put_new(&key("a"), "bytes".into()).await.unwrap();
    std::fs::write(path.join(format!(".tmp/{}.part", "0".repeat(32))), "left by a crash").unwrap();
    mounted.remount_read_only();
    let store = LocalFs::open(&path, &options()).await.unwrap();
    assert_eq!(store.get(&key("a")).await.unwrap(), "bytes");
    let put = store.put_new(&key("b"), "x".into()).await.unwrap_err();
    let delete = store.delete(&key("a")).await.unwrap_err();
    for (error, text) in [(put, "put `b`"), (delete, "delete `a`")] {
        assert_eq!(error.kind, StorageErrorKind::ReadOnly);
        assert_eq!(error.to_string(), format!("{text}: the file system is mounted read-only"));
    }
    let created = LocalFs::create(mounted.0.join("new"), &options()).await.unwrap_err();
    assert_eq!(created.kind, StorageErrorKind::ReadOnly);
}

#[tokio::test]
async fn a_repository_on_a_mount_that_is_not_mounted_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path().canonicalize().unwrap();
    let (nas, fstab) = (base.join("nas"), base.join("fstab"));
    let repository = nas.join("backup");
    std::fs::create_dir(&nas).unwrap();
    symlink(&repository, base.join("link")).unwrap();
    std::fs::write(&fstab, format!("nas:/export {} nfs noauto 0 0\n", nas.display())).unwrap();
    let listed = LocalOptions { require_mount: None, fstab };
    let required = LocalOptions { require_mount: Some(nas.clone()), ..options() };

    for options in [&listed, &required] {
        for path in [repository.clone(), base.join("link")] {
            let created = LocalFs::create(&path, options).await.unwrap_err();
            let opened = LocalFs::open(&path, options).await.unwrap_err();
            for error in [created, opened] {
                assert_eq!(error.kind, StorageErrorKind::NotMounted);
                let (nas, path) = (nas.display(), path.display());
                let expected = format!("`{nas}` is not mounted; the repository `{path}` lives on it");
                assert_eq!(error.to_string(), expected);
            }
        }
    }
    assert!(names_in(&nas).is_empty(), "nothing was created beneath the mount point");

    let Some(mounted) = Mounted::tmpfs(&nas, "1m") else { return };
    for options in [&listed, &required] {
        let store = LocalFs::create(&repository, options).await.unwrap();
        let _ = store.put_new(&key("keepwell.json"), "{}".into()).await;
        LocalFs::open(base.join("link"), options).await.unwrap();
    }
    drop(mounted);
    assert_eq!(LocalFs::open(&repository, &listed).await.unwrap_err().kind, StorageErrorKind::NotMounted);
}

#[tokio::test]
async fn a_file_in_the_way_of_a_new_repository_is_said_so() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "x").unwrap();
    for path in [file.clone(), file.join("repository")] {
        let error = LocalFs::create(&path, &options()).await.unwrap_err();
        assert_eq!(error.kind, StorageErrorKind::Invalid);
        assert!(error.message.contains("a file and not a directory"), "{error}");
    }
}

#[tokio::test]
async fn a_required_mount_that_is_elsewhere_is_a_mistake() {
    let directory = tempfile::tempdir().unwrap();
    let elsewhere = LocalOptions { require_mount: Some("/proc".into()), ..options() };
    let error = LocalFs::create(directory.path().join("r"), &elsewhere).await.unwrap_err();
    assert_eq!(error.kind, StorageErrorKind::Invalid);
    assert!(error.message.contains("does not lie on `/proc`"), "{error}");
    assert!(error.hint.unwrap().contains("`require-mount`"));
}

#[tokio::test]
async fn an_open_store_does_not_follow_what_is_mounted_over_it() {
    let (_directory, store) = new_store().await;
    let Some(mounted) = Mounted::tmpfs(store.path(), "1m") else { return };
    store.put_new(&key("a"), "x".into()).await.unwrap();
    assert!(!store.path().join("a").exists(), "the mount hides it");
    drop(mounted);
    assert!(store.path().join("a").exists());
}

#[tokio::test]
async fn create_takes_only_directories_that_are_ours_to_take() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deep/er/repository");
    let store = LocalFs::create(&path, &options()).await.unwrap();
    assert_eq!(mode(&directory.path().join("deep")), 0o700);
    store.put_new(&key("keepwell.json"), "{}".into()).await.unwrap();
    LocalFs::create(&path, &options()).await.expect("a repository is opened");

    let disk = directory.path().join("disk");
    std::fs::create_dir_all(disk.join("lost+found")).unwrap();
    LocalFs::create(&disk, &options()).await.expect("a fresh file system counts as empty");

    let home = directory.path().join("home");
    std::fs::create_dir(&home).unwrap();
    std::fs::write(home.join("thesis.odt"), "x").unwrap();
    let error = LocalFs::create(&home, &options()).await.unwrap_err();
    assert_eq!(error.kind, StorageErrorKind::AlreadyExists);
    assert!(error.to_string().ends_with("the directory holds `thesis.odt`, but no repository"), "{error}");
    assert_eq!(names_in(&home), ["thesis.odt"]);
    let file = LocalFs::create(home.join("thesis.odt"), &options()).await.unwrap_err();
    assert!(matches!(file.kind, StorageErrorKind::Invalid | StorageErrorKind::NotFound), "{file}");
    assert_eq!(
        LocalFs::open(home.join("none"), &options()).await.unwrap_err().kind,
        StorageErrorKind::NotFound
    );
}

#[tokio::test]
async fn symbolic_links_inside_are_never_followed() {
    let (directory, store) = new_store().await;
    let outside = directory.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), "secret").unwrap();
    symlink(&outside, store.path().join("data")).unwrap();
    symlink(outside.join("secret"), store.path().join("link")).unwrap();
    symlink(outside.join("new"), store.path().join("dangling")).unwrap();

    for text in ["data/secret", "link"] {
        let key = key(text);
        assert_eq!(store.get(&key).await.unwrap_err().kind, StorageErrorKind::Invalid, "{text}");
        assert_eq!(store.get_range(&key, 0..1).await.unwrap_err().kind, StorageErrorKind::Invalid, "{text}");
        assert_eq!(store.head(&key).await.unwrap_err().kind, StorageErrorKind::Invalid, "{text}");
    }
    for text in ["data/new", "link", "dangling"] {
        let error = store.put_new(&key(text), "x".into()).await.unwrap_err();
        assert_eq!(error.kind, StorageErrorKind::Invalid, "{text}");
        assert!(error.message.contains("symbolic link"), "{error}");
    }
    let _ = store.delete(&key("data/secret")).await;
    store.delete(&key("link")).await.unwrap();
    assert!(list_all(&store, "").await.unwrap().is_empty());
    assert!(list_all(&store, "data/").await.unwrap().is_empty());
    assert_eq!(names_in(&outside), ["secret"]);
}

#[tokio::test]
async fn other_things_in_the_directory_are_left_alone_and_do_no_harm() {
    let (_directory, store) = new_store().await;
    store.put_new(&key("data/pack"), "x".into()).await.unwrap();
    let pipe = store.path().join("data/pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert!(std::fs::metadata(&pipe).unwrap().file_type().is_fifo());
    std::fs::create_dir(store.path().join("lost+found")).unwrap();
    std::fs::write(store.path().join("data/not a key"), "x").unwrap();
    assert_eq!(store.get(&key("data/pipe")).await.unwrap_err().kind, StorageErrorKind::Invalid);
    let keys: Vec<_> = list_all(&store, "").await.unwrap().into_iter().map(|info| info.key).collect();
    assert_eq!(keys, [key("data/pack")]);
    assert!(store.get(&key("data")).await.unwrap_err().is_not_found());
    assert_eq!(store.put_new(&key("data"), "x".into()).await.unwrap_err().kind, StorageErrorKind::Invalid);
    let beneath = store.put_new(&key("data/pack/x"), "x".into()).await.unwrap_err();
    assert_eq!(beneath.message, "`data/pack` is an object, so nothing can be stored beneath it");
}

#[tokio::test]
async fn open_sweeps_our_stale_unfinished_files_only() {
    let (_directory, store) = new_store().await;
    let temp = store.path().join(".tmp");
    let stale = format!("{}.part", "a".repeat(32));
    let fresh = format!("{}.part", "b".repeat(32));
    for (name, hours_old) in [(stale.as_str(), 25), (fresh.as_str(), 23), ("foreign", 1000)] {
        let path = temp.join(name);
        std::fs::write(&path, "x").unwrap();
        let seconds = std::fs::metadata(&path).unwrap().mtime() - hours_old * 3600;
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds.try_into().unwrap());
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    }
    LocalFs::open(store.path(), &options()).await.unwrap();
    assert_eq!(names_in(&temp), [fresh, "foreign".to_owned()]);
}

#[tokio::test]
async fn deleting_removes_empty_directories_while_puts_make_them() {
    let (_directory, store) = new_store().await;
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..8 {
        let store = store.clone();
        tasks.spawn(async move {
            for _ in 0..50 {
                let key = key(&format!("a/b/{worker}"));
                store.put_new(&key, "x".into()).await.unwrap();
                store.delete(&key).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(names_in(store.path()), [".tmp"]);
}

#[tokio::test]
async fn placing_falls_back_to_a_link_and_stays_exclusive() {
    let (_directory, store) = new_store().await;
    let disk = &store.disk;
    let temp = disk.write_temp(&key("a"), b"first").unwrap();
    put::link(&temp, disk.root.as_fd(), "a").unwrap();
    put::link(&temp, disk.root.as_fd(), "a").expect("a link that NFS reports twice is ours");
    let other = disk.write_temp(&key("a"), b"second").unwrap();
    assert_eq!(put::link(&other, disk.root.as_fd(), "a"), Err(Errno::EXIST));
    drop((temp, other));
    assert_eq!(store.get(&key("a")).await.unwrap(), "first");
    assert!(names_in(&store.path().join(".tmp")).is_empty());
}

#[tokio::test]
async fn what_is_stale_on_a_mount_that_is_there_was_deleted() {
    let (_directory, store) = new_store().await;
    let kind = |error| store.disk.read_error("get", &key("a"), error).kind;
    assert_eq!(kind(Errno::STALE), StorageErrorKind::NotFound);
    assert_eq!(kind(Errno::IO), StorageErrorKind::Device);
}

#[tokio::test]
async fn where_renames_are_not_exclusive_names_are_given_by_links() {
    let (_directory, store) = new_store().await;
    assert!(store.disk.rename_is_exclusive, "as on every local file system");
    let mut disk = Disk::new(store.disk.root.try_clone().unwrap(), store.disk.path.clone());
    disk.rename_is_exclusive = false; // as on SMB
    let temp = disk.write_temp(&key("a"), b"first").unwrap();
    assert_eq!(disk.place(&temp, disk.root.as_fd(), "a"), Ok(put::Placed::Linked));
    let other = disk.write_temp(&key("a"), b"second").unwrap();
    assert_eq!(disk.place(&other, disk.root.as_fd(), "a"), Err(Errno::EXIST));
    drop((temp, other));
    assert_eq!(store.get(&key("a")).await.unwrap(), "first");
    assert!(names_in(&store.path().join(".tmp")).is_empty());
}

#[tokio::test]
async fn a_directory_larger_than_a_page_is_listed_in_order_and_once() {
    let (_directory, store) = new_store().await;
    let mut expected = Vec::new();
    for number in 0..(2 * LIST_PAGE_MAX + 10) {
        let name = format!("d/{number:05}");
        std::fs::create_dir_all(store.path().join("d")).unwrap();
        if number % 3 == 0 {
            std::fs::create_dir(store.path().join(&name)).unwrap(); // empty directories fill no page
        } else {
            std::fs::write(store.path().join(&name), "x").unwrap();
            expected.push(key(&name));
        }
    }
    let keys: Vec<_> = list_all(&store, "d/").await.unwrap().into_iter().map(|info| info.key).collect();
    assert_eq!(keys, expected);
}

#[tokio::test]
async fn the_probe_names_the_file_system_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let Some(mounted) = Mounted::tmpfs(directory.path(), "2m") else { return };
    let store = LocalFs::create(mounted.0.join("r"), &options()).await.unwrap();
    let report = store.probe(crate::Role::Keeper).await.unwrap();
    assert!(report.conditional_create());
    let as_writer = store.probe(crate::Role::Writer).await.unwrap();
    let [problem] = as_writer.problems.as_slice() else { panic!("{:?}", as_writer.problems) };
    assert!(problem.starts_with("This writer can delete objects."), "{problem}");
    assert!(!problem.contains("policy"), "{problem}");
    let file_system = report.file_system.as_ref().unwrap();
    assert_eq!(file_system.kind, "tmpfs");
    assert_eq!(file_system.exclusive_by, crate::ExclusiveBy::Rename);
    assert!(file_system.private_modes && file_system.directory_sync);
    assert_eq!(file_system.total_bytes, 2 << 20);
    assert!(report.notes.iter().any(|text| text == "It is in memory: everything in it is lost at a reboot."));
    assert_eq!(names_in(store.path()), [".tmp"]);
    assert!(names_in(&store.path().join(".tmp")).is_empty());
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<crate::ProbeReport>(&json).unwrap(), report);
}
