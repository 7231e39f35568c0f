//! What is captured comes back the same, to the last bit that `rsync` and a second capture can see.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use crate::common::{self, allocated, capture, nasty_tree, restore, sparse_file, target};
use keepwell_catalog::EntryKind;
use proptest::collection::vec;
use proptest::prelude::*;

/// Fails if `rsync` would do anything to make `there` like `here`.
fn assert_rsync_sees_no_difference(here: &Path, there: &Path) {
    let compared = Command::new("rsync")
        .args(["-aHAXc", "--delete", "-n", "--itemize-changes", "--modify-window=-1"])
        .arg(format!("{}/", here.display()))
        .arg(format!("{}/", there.display()))
        .output();
    let output = compared.expect("rsync is installed");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(text, "");
    assert!(output.status.success());
}

#[test]
fn a_tree_with_one_of_everything_comes_back_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let tree = nasty_tree(dir.path());
    let captured = capture(&tree);
    let target = target(&dir.path().join("out"));
    restore(&target, &captured);
    assert_eq!(target.left_out(), Vec::<String>::new());
    let back = dir.path().join("out/tree");
    assert_rsync_sees_no_difference(&tree, &back);
    let again = capture(&back);
    for (before, after) in captured.iter().zip(&again) {
        assert_eq!(before, after, "{}", before.key);
    }
    assert_eq!(captured.len(), again.len());
    assert!(allocated(&back.join("sparse")) <= allocated(&tree.join("sparse")));
    assert_eq!(allocated(&back.join("all hole")), 0);
    target.sync().unwrap();
}

#[test]
fn restoring_twice_over_a_changed_tree_gives_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let tree = nasty_tree(dir.path());
    let captured = capture(&tree);
    let target = target(&dir.path().join("out"));
    restore(&target, &captured);
    let back = dir.path().join("out/tree");
    common::set_xattr(&back.join("big"), "user.extraneous", b"x");
    common::set_xattr(&back.join("sub dir"), "system.posix_acl_default", common::ACL);
    std::fs::write(back.join("empty"), "no more").unwrap();
    std::fs::remove_file(back.join("fifo")).unwrap();
    std::fs::write(back.join("fifo"), "a file").unwrap();
    std::fs::remove_file(back.join("z link")).unwrap();
    std::fs::write(back.join("z link"), "alone").unwrap();
    restore(&target, &captured);
    assert_rsync_sees_no_difference(&tree, &back);
}

#[test]
fn a_file_of_100_gib_with_five_bytes_takes_no_time_and_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    sparse_file(&tree.join("huge"), 100 << 30, &[(70 << 30, b"bytes")]);
    let captured = capture(&tree);
    let data: usize = captured[1].content.iter().filter_map(|(_, data)| data.as_ref()).map(Vec::len).sum();
    assert!(data <= 1 << 20, "{data}");
    restore(&target(&dir.path().join("out")), &captured);
    let back = dir.path().join("out/tree/huge");
    assert_eq!(std::fs::metadata(&back).unwrap().len(), 100 << 30);
    assert!(allocated(&back) <= 1 << 20);
    assert_eq!(capture(&dir.path().join("out/tree")), captured);
}

/// A thing in a random tree: its name, what it is, mode, time, attribute, content.
type Thing = (Vec<u8>, u8, u32, (i64, u32), Option<Vec<u8>>, Vec<u8>);

fn thing() -> impl Strategy<Value = Thing> {
    let name = vec(any::<u8>().prop_filter("no name has it", |byte| !matches!(byte, 0 | b'/')), 1..12);
    let time = (-2_000_000_000_i64..4_000_000_000, 0..1_000_000_000_u32);
    let attribute = proptest::option::of(vec(any::<u8>(), 0..400));
    (name, 0..6_u8, 0..=0o7777_u32, time, attribute, vec(any::<u8>(), 0..5_000))
}

fn plant(at: &Path, (name, what, mode, time, attribute, content): &Thing) {
    use std::os::unix::ffi::OsStrExt;
    let path = at.join(std::ffi::OsStr::from_bytes(name));
    if matches!(name.as_slice(), b"." | b"..") || std::fs::symlink_metadata(&path).is_ok() {
        return;
    }
    match what {
        0 => std::fs::create_dir(&path).unwrap(),
        1 => {
            return std::os::unix::fs::symlink(
                std::ffi::OsStr::from_bytes(&[name.as_slice(), b"x"].concat()),
                &path,
            )
            .unwrap();
        }
        2 => {
            let mut others = std::fs::read_dir(at).unwrap().filter_map(Result::ok);
            let file = others.find(|other| other.file_type().is_ok_and(|kind| kind.is_file()));
            return file.map_or((), |file| std::fs::hard_link(file.path(), &path).unwrap());
        }
        _ => std::fs::write(&path, content).unwrap(),
    }
    if let Some(value) = attribute {
        common::set_xattr(&path, "user.value", value);
    }
    common::set_mode(&path, if common::is_root() { *mode } else { *mode | 0o700 });
    common::set_time(&path, time.0, time.1.into());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_tree_comes_back_the_same(top in vec(thing(), 0..12), below in vec(thing(), 0..12)) {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("below")).unwrap();
        top.iter().for_each(|thing| plant(&tree, thing));
        below.iter().for_each(|thing| plant(&tree.join("below"), thing));
        let captured = capture(&tree);
        let target = target(&dir.path().join("out"));
        restore(&target, &captured);
        prop_assert_eq!(capture(&dir.path().join("out/tree")), captured);
        prop_assert_eq!(target.left_out(), Vec::<String>::new());
    }
}

#[test]
fn a_tree_a_thousand_levels_deep_comes_back_and_can_be_removed() {
    use backup_core::target::RestoreTarget;
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    let mut at = std::os::fd::OwnedFd::from(std::fs::File::open(&tree).unwrap());
    for level in 0..1_200 {
        use rustix::fs::{Mode, OFlags, mkdirat, openat};
        for name in [format!("directory {level}"), format!("sibling {level}")] {
            mkdirat(&at, name, Mode::RWXU).unwrap();
        }
        at = openat(&at, format!("directory {level}"), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
            .unwrap();
    }
    let captured = capture(&tree);
    assert_eq!(captured.len(), 1 + 2 * 1_200);
    let target = target(&dir.path().join("out"));
    restore(&target, &captured);
    let again = capture(&dir.path().join("out/tree"));
    assert!(again.iter().all(|found| found.entry.kind == EntryKind::Directory));
    assert_eq!(again, captured);
    target.remove(&common::key("tree")).unwrap();
    assert_eq!(target.list_dir(None).unwrap(), Vec::<Vec<u8>>::new());
}
