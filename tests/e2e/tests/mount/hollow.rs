//! Directories of holes that are filled as they are read.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::Cancel;
use backup_core::monitor::Monitor;
use keepwell_e2e::tree;
use keepwell_e2e::world::{self, back_up, snapshot_of};
use keepwell_e2e::{Dice, noise};
use keepwell_mount::{HollowFile, StandIn, Unmounted, fill_as_needed};
use tempfile::TempDir;

use crate::{Heard, MIB, in_a_directory};

/// A directory with the same files, each nothing but a hole.
fn hollow_copy(dir: &Path, snapshot_dir: &Path) -> (TempDir, Vec<HollowFile>) {
    let copy = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for (path, node) in tree::read(dir) {
        let to = copy.path().join(&path);
        match node.kind {
            "dir" => fs::create_dir(&to).unwrap(),
            _ => {
                File::create_new(&to).unwrap().set_len(node.size).unwrap();
                let key = world::key_of(&snapshot_dir.join(&path));
                files.push(HollowFile { path, key, size: node.size });
            }
        }
    }
    (copy, files)
}

/// Paths and contents.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Option<String>> {
    tree::read(dir).into_iter().map(|(path, node)| (path, node.content)).collect()
}

/// Does the same to two directories, whatever it is.
fn work_on(dirs: [&Path; 2], dice: &mut Dice) {
    let name = |n: u64| format!("{}/{n}", ["a", "b"][(n % 2) as usize]);
    let mut kept: Vec<[File; 2]> = Vec::new();
    for round in 0..400 {
        let (one, other) = (name(dice.roll(6)), name(dice.roll(12)));
        let (at, len) = (dice.roll(3 * MIB as u64), 1 + dice.roll(90_000) as usize);
        let at = if dice.roll(2) == 0 { at / 8192 * 8192 } else { at };
        let what = dice.roll(9);
        let mut seen = Vec::new();
        for (which, dir) in dirs.into_iter().enumerate() {
            let open = || File::options().read(true).write(true).open(dir.join(&one));
            let done = match what {
                0 | 1 => open().and_then(|file| file.write_all_at(&noise(round, len), at)),
                2 => open().and_then(|file| file.set_len(at)),
                3 if dice_is_rare(round) => fs::remove_file(dir.join(&one)),
                3 => fs::rename(dir.join(&one), dir.join(&other)),
                4 => fs::write(dir.join(&other), noise(round, len)),
                5 => open().map(|file| match which {
                    0 => kept.push([file.try_clone().unwrap(), file]),
                    _ => kept.last_mut().unwrap()[1] = file,
                }),
                _ => Ok(()),
            };
            let found = open().and_then(|file| {
                let mut found = vec![0; len];
                let n = file.read_at(&mut found, at)?;
                Ok((found[..n].to_vec(), file.metadata()?.len()))
            });
            seen.push((done.map_err(|e| e.kind()), found.map_err(|e| e.kind())));
        }
        assert!(seen[0] == seen[1], "round {round}, {what}: {:?}, {:?}", seen[0].0, seen[1].0);
        // What was opened stays what it was, also without a name.
        for [first, second] in &kept {
            let mut found = [vec![0; 5000], vec![0; 5000]];
            let n = first.read_at(&mut found[0], at).unwrap();
            assert_eq!(second.read_at(&mut found[1], at).unwrap(), n, "round {round}");
            assert!(found[0] == found[1], "round {round}");
            assert_eq!(first.metadata().unwrap().len(), second.metadata().unwrap().len());
        }
        if kept.len() > 8 {
            kept.remove(0);
        }
    }
}

fn dice_is_rare(round: u64) -> bool {
    round.is_multiple_of(5)
}

#[test]
fn a_directory_of_holes_is_the_full_one_to_who_works_in_it() {
    in_a_directory(async |_, repository, dir| {
        fs::create_dir(dir.join("a")).unwrap();
        fs::create_dir(dir.join("b")).unwrap();
        for n in 0..6 {
            let name = format!("{}/{n}", ["a", "b"][n % 2]);
            tree::put(dir, &name, n as u64, n * 700_001 + n * n * 8192);
        }
        tree::put(dir, "b/untouched", 7, 3 * MIB + 1);
        let snapshot = snapshot_of(&repository, &back_up(&repository, dir).await.unwrap()).await;
        let full = tempfile::tempdir().unwrap();
        let (hollow, files) = hollow_copy(dir, dir);
        for (path, _) in contents(dir).iter().filter(|(_, content)| content.is_none()) {
            fs::create_dir(full.path().join(path)).unwrap();
        }
        for file in &files {
            fs::copy(dir.join(&file.path), full.path().join(&file.path)).unwrap();
        }
        let most: u64 = files.iter().map(|file| file.size).sum();
        let stand_in = StandIn { seen: "control".into(), beneath: "control.incomplete".into() };
        fs::write(hollow.path().join("control.incomplete"), b"beneath").unwrap();
        fs::write(full.path().join("control"), b"beneath").unwrap();
        let tree = repository.tree(&snapshot).await.unwrap();
        let heard = Arc::new(Heard::default());
        let monitor = Arc::clone(&heard) as Arc<dyn Monitor>;
        let filling = fill_as_needed(&tree, hollow.path(), files, stand_in, monitor).await.unwrap();
        let missing = filling.missing_bytes();
        assert!(missing >= most && missing < most + 7 * 8192);
        let (one, other) = (hollow.path().to_owned(), full.path().to_owned());
        let work = move || {
            assert_eq!(fs::read(one.join("control")).unwrap(), b"beneath");
            assert!(!one.join("control.incomplete").exists());
            work_on([&one, &other], &mut Dice::new(3));
            for dir in [one, other] {
                // As a server renames what must replace nothing.
                fs::hard_link(dir.join("b/untouched"), dir.join("b/renamed")).unwrap();
                fs::remove_file(dir.join("b/untouched")).unwrap();
            }
        };
        tokio::task::spawn_blocking(work).await.unwrap();
        assert!((3 * MIB as u64..missing).contains(&filling.missing_bytes()));
        filling.fetch_all(Cancel::default()).await.unwrap();
        assert_eq!(filling.missing_bytes(), 0);
        assert_eq!(filling.unmount().await.unwrap(), Unmounted::Gone);
        assert!(!hollow.path().join("control").exists(), "nobody takes it for whole");
        fs::rename(hollow.path().join("control.incomplete"), hollow.path().join("control")).unwrap();
        assert_eq!(contents(full.path()), contents(hollow.path()));
        assert_eq!(*heard.0.lock().unwrap(), Vec::<String>::new());
    });
}
