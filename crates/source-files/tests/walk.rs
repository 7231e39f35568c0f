//! What a walk finds and leaves out, and what it does when things move under it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::common::{self, key, key_of, names, source, source_of, walk};
use backup_core::source::{Found, Item, Piece, Source, SourceError};
use keepwell_catalog::EntryKind;
use keepwell_source_files::FileOptions;

fn tree(dir: &Path, files: &[&str]) {
    for file in files {
        let path = dir.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, file).unwrap();
    }
}

fn options(dir: &Path) -> FileOptions {
    FileOptions { paths: vec![dir.to_owned()], ..FileOptions::default() }
}

fn find(items: &[Item], path: &Path) -> Item {
    items.iter().find(|item| item.key == key_of(path)).cloned().expect("the walk found it")
}

#[test]
fn the_order_is_that_of_keys_not_of_paths() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path(), &["a/x", "a-b", "a.b/y", "ab", "a\u{1}", "b"]);
    let expected = ["a", "a/x", "a\\u{1}", "a-b", "a.b", "a.b/y", "ab", "b"];
    assert_eq!(names(&source_of(dir.path()), dir.path()), expected);
}

#[test]
fn a_directory_of_twenty_thousand_entries_comes_in_order() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..20_000_u32 {
        fs::write(dir.path().join(format!("{:x}", number.wrapping_mul(2_654_435_761))), "").unwrap();
    }
    assert_eq!(names(&source_of(dir.path()), dir.path()).len(), 20_000);
}

#[test]
fn given_paths_are_merged_and_what_leads_to_them_is_captured_alone() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path(), &["a/one/x", "a/two/y", "a/two/z", "b/other", "c"]);
    let given = ["a/two", "c", "a/two/z"].map(|path| dir.path().join(path));
    let source = source(&FileOptions { paths: given.to_vec(), ..FileOptions::default() });
    assert_eq!(names(&source, dir.path()), ["a", "a/two", "a/two/y", "a/two/z", "c"]);
    let (items, _) = walk(&source);
    let depth = key_of(dir.path()).depth();
    assert_eq!(items.iter().filter(|item| item.key.depth() <= depth).count(), depth);
    assert_eq!(source.paths().len(), 3);
}

#[test]
fn symlinks_are_followed_on_the_way_to_a_given_path_and_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path(), &["real/data/file", "real/outside"]);
    symlink("real", dir.path().join("way")).unwrap();
    symlink("../outside", dir.path().join("real/data/link")).unwrap();
    let source = source_of(&dir.path().join("way/data"));
    assert_eq!(names(&source, dir.path()), ["way", "way/data", "way/data/file", "way/data/link"]);
    let (items, _) = walk(&source);
    for (path, kind) in [
        ("way", EntryKind::Directory),
        ("way/data", EntryKind::Directory),
        ("way/data/file", EntryKind::File),
        ("way/data/link", EntryKind::Symlink),
    ] {
        let item = find(&items, &dir.path().join(path));
        assert_eq!((item.kind, source.open(&item).unwrap().unwrap().entry.kind), (kind, kind), "{path}");
    }
    let source = source_of(&dir.path().join("way"));
    assert_eq!(names(&source, dir.path()), ["way"]);
    assert_eq!(find(&walk(&source).0, &dir.path().join("way")).kind, EntryKind::Symlink);
    assert!(
        source.preflight().unwrap().notes[0]
            .ends_with("is a symlink: the link is captured, not what it leads to.")
    );
}

#[test]
fn what_is_excepted_is_left_out_and_named_unless_it_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().canonicalize().unwrap();
    tree(&top, &["a", "store/data/pack", "z/store"]);
    let ours = [top.join("store"), top.join("not there")];
    let without = FileOptions { excludes: vec!["!store".to_owned()], ..options(&top) };
    let beneath = FileOptions { paths: vec![top.join("store/data")], ..without.clone() };
    let itself = FileOptions { paths: vec![top.clone(), top.join("store")], ..without.clone() };
    for (options, expected, is_named) in [
        (without, vec!["a", "z", "z/store"], true),
        (beneath, vec!["store", "store/data", "store/data/pack"], false),
        (itself, vec!["a", "store", "store/data", "store/data/pack", "z", "z/store"], false),
    ] {
        let source = source(&options).without(&ours);
        assert_eq!(names(&source, &top), expected);
        let notes = source.preflight().unwrap().notes;
        let note =
            format!("`{}` is left out: it belongs to the backups themselves.", top.join("store").display());
        assert_eq!(notes.contains(&note), is_named, "{notes:?}");
        assert!(!notes.iter().any(|note| note.contains("not there")));
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let elsewhere = elsewhere.path().canonicalize().unwrap();
    symlink(top.parent().unwrap(), elsewhere.join("way")).unwrap();
    let given = elsewhere.join("way").join(top.file_name().unwrap());
    let source = source(&options(&given)).without(&ours);
    assert_eq!(names(&source, &given), ["a", "z", "z/store"], "by a symlink too");
}

#[test]
fn many_excepted_directories_of_one_cache_are_named_together() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().canonicalize().unwrap();
    tree(&top, &["a", "cache/1/x", "cache/2/x", "cache/3/x", "cache/mine"]);
    let ours = ["cache/1", "cache/2", "cache/3"].map(|name| top.join(name));
    let source = source(&options(&top)).without(&ours);
    assert_eq!(names(&source, &top), ["a", "cache", "cache/mine"]);
    let together = format!(
        "3 directories in `{}` are left out: they belong to the backups themselves.",
        top.join("cache").display()
    );
    assert_eq!(source.preflight().unwrap().notes, [together]);
}

#[test]
fn patterns_ignore_files_caches_and_size_leave_things_out() {
    let dir = tempfile::tempdir().unwrap();
    let files = [
        "keep",
        "x.tmp",
        "sub/y.tmp",
        "cache/data",
        "cache/CACHEDIR.TAG",
        "no cache/CACHEDIR.TAG",
        "no cache/z",
    ];
    tree(dir.path(), &files);
    tree(
        dir.path(),
        &["sub/.keepwellignore", "sub/secret", "sub/deep/secret", "sub/deep/.keepwellignore", "large"],
    );
    fs::write(dir.path().join("cache/CACHEDIR.TAG"), "Signature: 8a477f597d28d172789f06886806bc55\n# note")
        .unwrap();
    fs::write(dir.path().join("sub/.keepwellignore"), "secret\n!*.tmp\n").unwrap();
    fs::write(dir.path().join("sub/deep/.keepwellignore"), "!secret\n").unwrap();
    fs::write(dir.path().join("large"), vec![0; 1001]).unwrap();
    fs::write(dir.path().join("patterns"), "# from a file\n*.tmp\npatterns\n").unwrap();
    let all = FileOptions {
        exclude_files: vec![dir.path().join("patterns")],
        ignore_file_names: vec![".keepwellignore".to_owned()],
        exclude_caches: true,
        exclude_larger_than: Some(1000),
        ..options(dir.path())
    };
    let expected = [
        "cache",
        "cache/CACHEDIR.TAG",
        "keep",
        "no cache",
        "no cache/CACHEDIR.TAG",
        "no cache/z",
        "sub",
        "sub/.keepwellignore",
        "sub/deep",
        "sub/deep/.keepwellignore",
        "sub/deep/secret",
    ];
    assert_eq!(names(&source(&all), dir.path()), expected);
}

#[test]
fn a_given_path_is_captured_whatever_the_rules_say() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path(), &["skip/in/wanted", "skip/in/other", "skip/not"]);
    let paths = ["", "skip/in/wanted"].map(|path| dir.path().join(path)).to_vec();
    let source = source(&FileOptions { paths, excludes: vec!["skip".to_owned()], ..FileOptions::default() });
    assert_eq!(names(&source, dir.path()), ["skip", "skip/in", "skip/in/wanted"]);
}

#[test]
fn a_path_that_is_not_there_fails_the_preflight_and_is_a_problem_of_the_walk() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing/deeper");
    for paths in [vec![missing.clone()], vec![missing.clone(), dir.path().to_owned()]] {
        let source = source(&FileOptions { paths, ..FileOptions::default() });
        assert!(
            matches!(source.preflight(), Err(SourceError::NotFound { path }) if path == missing.to_str().unwrap())
        );
        let (_, problems) = walk(&source);
        let text = "cannot be looked at: No such file or directory (os error 2)".to_owned();
        assert_eq!(problems, [(key_of(&dir.path().join("missing")).display_path(), text)]);
    }
}

#[test]
fn hard_links_point_to_the_first_name_and_follow_it() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path(), &["d/first", "e"]);
    for name in ["d/second", "third"] {
        fs::hard_link(dir.path().join("d/first"), dir.path().join(name)).unwrap();
    }
    let source = source_of(dir.path());
    let (items, _) = walk(&source);
    let first = key_of(&dir.path().join("d/first"));
    for (name, carrier) in
        [("d/first", None), ("d/second", Some(&first)), ("third", Some(&first)), ("e", None)]
    {
        assert_eq!(find(&items, &dir.path().join(name)).hard_link.as_ref(), carrier, "{name}");
    }
    let third = find(&items, &dir.path().join("third"));
    let opened = source.open(&third).unwrap().unwrap();
    assert!(opened.content.is_none() && opened.entry.check().is_ok());
    // Moving the parent of the first names touches no inode, yet another name carries it now.
    fs::rename(dir.path().join("d"), dir.path().join("zz")).unwrap();
    let moved = find(&walk(&source).0, &dir.path().join("third"));
    assert_eq!((moved.kind, moved.hard_link), (EntryKind::File, None));
    assert_ne!(moved.fingerprint, third.fingerprint);
    fs::remove_file(dir.path().join("third")).unwrap();
    fs::write(dir.path().join("third"), "another").unwrap();
    let message = source.open(&third).err().unwrap().to_string();
    assert!(message.ends_with("third` lost its first name while it was captured"), "{message}");
}

#[test]
fn one_file_system_stops_at_a_mount_unless_it_is_given_too() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path(), &["a", "mount/below", "z"]);
    let mount = dir.path().join("mount");
    let status = std::process::Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&mount).status();
    if !status.is_ok_and(|status| status.success()) {
        eprintln!("mounting is not allowed here");
        return;
    }
    fs::write(mount.join("other"), "other").unwrap();
    let stay = FileOptions { one_file_system: true, ..options(dir.path()) };
    let both = FileOptions { paths: vec![dir.path().to_owned(), mount.clone()], ..stay.clone() };
    let found = [options(dir.path()), stay, both].map(|options| names(&source(&options), dir.path()));
    let target = common::target(dir.path());
    let refused = backup_core::target::RestoreTarget::remove(&target, &key("mount"));
    let survived = mount.join("other").exists();
    let mounted = |path: Option<&str>| {
        backup_core::target::RestoreTarget::is_mounted(&target, path.map(key).as_ref()).unwrap()
    };
    let on_another = [mounted(None), mounted(Some("mount")), mounted(Some("nowhere"))];
    std::process::Command::new("umount").arg(&mount).status().unwrap();
    assert_eq!(
        found,
        [
            vec!["a", "mount", "mount/other", "z"],
            vec!["a", "mount", "z"],
            vec!["a", "mount", "mount/other", "z"]
        ]
    );
    assert!(refused.unwrap_err().to_string().contains("another file system is mounted there"));
    assert!(survived);
    assert_eq!(on_another, [false, true, false]);
}

#[test]
fn what_vanishes_is_left_out_and_what_is_replaced_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path(), &["gone", "swapped", "d/in"]);
    let source = source_of(dir.path());
    let (items, _) = walk(&source);
    fs::remove_file(dir.path().join("gone")).unwrap();
    fs::remove_file(dir.path().join("swapped")).unwrap();
    symlink("/etc/passwd", dir.path().join("swapped")).unwrap();
    fs::rename(dir.path().join("d"), dir.path().join("real")).unwrap();
    symlink("real", dir.path().join("d")).unwrap();
    assert!(source.open(&find(&items, &dir.path().join("gone"))).unwrap().is_none());
    for name in ["swapped", "d/in", "d"] {
        assert!(source.open(&find(&items, &dir.path().join(name))).is_err(), "{name}");
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let writer = |path: &Path| fs::OpenOptions::new().append(true).open(path).unwrap();
    for name in ["appended", "truncated", "rewritten", "untouched"] {
        let path = dir.path().join(name);
        fs::write(&path, vec![1; 100_000]).unwrap();
        let source = source_of(&path);
        let item = find(&walk(&source).0, &path);
        let mut content = source.open(&item).unwrap().unwrap().content.unwrap();
        let mut buffer = [0; 1000];
        assert_eq!(content.read(&mut buffer).unwrap(), Piece::Data(1000));
        match name {
            "appended" => writer(&path).write_all(b"more").unwrap(),
            "truncated" => writer(&path).set_len(10).unwrap(),
            "rewritten" => fs::write(&path, vec![2; 100_000]).unwrap(),
            _ => {}
        }
        let mut total = 1000;
        while let Piece::Data(count) = content.read(&mut buffer).unwrap() {
            total += count;
        }
        assert!(total <= 100_000, "{name}: never more than there was");
        assert_eq!(content.changed_while_read().unwrap(), name != "untouched", "{name}");
    }
}

#[test]
fn no_swapped_directory_makes_a_capture_read_outside() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path(), &["in/d/file", "outside/file"]);
    fs::write(dir.path().join("outside/file"), "SECRET").unwrap();
    symlink("../outside", dir.path().join("in/s")).unwrap();
    common::while_swapping(&dir.path().join("in/d"), &dir.path().join("in/s"), || {
        let source = source_of(&dir.path().join("in"));
        let mut read = 0;
        for _ in 0..2_000 {
            for item in walk(&source).0.into_iter().filter(|item| item.kind == EntryKind::File) {
                if let Ok(Some(opened)) = source.open(&item) {
                    let mut buffer = [0; 64];
                    let found = opened.content.unwrap().read(&mut buffer).unwrap();
                    assert!(!buffer.starts_with(b"SECRET"), "{found:?}");
                    read += 1;
                }
            }
        }
        assert!(read > 0);
    });
}

#[test]
fn the_whole_file_system_begins_below_its_top() {
    let source = source_of(Path::new("/"));
    let mut first = None;
    let visit = &mut |found| {
        first = Some(found);
        ControlFlow::Break(())
    };
    source.walk(visit).unwrap();
    let Some(Found::Item(item)) = first else { panic!("{first:?}") };
    assert_eq!((item.key.depth(), source.paths()), (1, vec![b"/".to_vec()]));
    assert!(source.open(&item).unwrap().is_some());
}
