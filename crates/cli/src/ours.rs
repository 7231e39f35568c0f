//! What belongs to the backups themselves: a repository within what is backed up would grow with every snapshot, and a
//! restore over it would take away newer ones.

mod keys;
mod within;

use std::fs;
use std::path::{Path, PathBuf};

use backup_core::Repository;

use self::within::Within;
use crate::context::Context;
use crate::location::Location;
use crate::mountinfo::{self, Mounted};

/// The repository at hand and what is cached of repositories; and of what lies within `paths` the repository that was asked
/// for (a copy may stand in for it), the one and the copies of the profile, the default one, and where snapshots are mounted.
pub fn directories(ctx: &Context, at_hand: &Location, paths: &[PathBuf]) -> Vec<PathBuf> {
    let mounted = mountinfo::all();
    let within = Within::new(paths, &mounted);
    let shown =
        mounted.iter().filter(|mounted| shows_snapshots(mounted)).map(|mounted| mounted.point.clone());
    let mut found: Vec<PathBuf> = Vec::new();
    let mut add = |path: PathBuf| {
        if !found.contains(&path) {
            found.push(path);
        }
    };
    stores(ctx, &within).into_iter().for_each(&mut add);
    shown.filter(|point| within.holds(point)).for_each(&mut add);
    if let Some(path) = at_hand.path() {
        add(path.to_path_buf());
    }
    found.extend(caches(&ctx.cache_dir()));
    found
}

fn stores(ctx: &Context, within: &Within<'_>) -> Vec<PathBuf> {
    let place = |text: &String| Location::parse(text).ok();
    let default = Location::default_of(ctx);
    let asked_for = Location::named(ctx).ok().flatten().unwrap_or_else(|| default.clone());
    let copies = ctx.profile.copies.iter().filter_map(|copy| place(&copy.to));
    let directory = |place: Location| place.path().map(Path::to_path_buf);
    let meant = copies.chain([asked_for]).filter_map(directory).filter(|path| within.holds(path));
    // Where another one is asked for. What is not there, a snapshot may bring.
    let beside = ctx.profile.repository.iter().filter_map(place).chain([default]).filter_map(directory);
    meant.chain(beside.filter(|path| within.holds(path) && path.exists())).collect()
}

/// What a capture leaves out: these directories, and the keys of owners if the credential is none of theirs. Whoever may read
/// the snapshot could take them out of it.
pub fn left_out(
    ctx: &Context,
    repository: &Repository,
    at_hand: &Location,
    paths: &[PathBuf],
) -> Vec<PathBuf> {
    let mut found = directories(ctx, at_hand, paths);
    if !repository.access().is_owner() {
        let mounted = mountinfo::all();
        found.extend(keys::of_owners(ctx, &Within::new(paths, &mounted), repository.id()));
    }
    found
}

/// What no restore touches: these directories, and the keys that are here. One that a snapshot lacks would go with
/// `--delete`, and be saved only to where nothing but the key leads.
pub fn untouched(ctx: &Context, at_hand: &Location, target: &Path) -> Vec<PathBuf> {
    let target = [target.to_path_buf()];
    let mut paths = directories(ctx, at_hand, &target);
    let mounted = mountinfo::all();
    paths.extend(keys::here(ctx, &Within::new(&target, &mounted)));
    paths
}

/// The caches of repositories. The directory that they lie in may hold other things: people name it.
fn caches(directory: &Path) -> Vec<PathBuf> {
    let is_cache = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    entries(directory).filter(is_cache).collect()
}

/// Whether it is what `keepwell mount` mounts.
fn shows_snapshots(mounted: &Mounted) -> bool {
    mounted.kind.starts_with(b"fuse") && mounted.source == b"keepwell"
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let absolute = std::path::absolute(directory).ok();
    let listed = absolute.and_then(|directory| fs::read_dir(directory).ok());
    listed.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_copies_and_caches_are_ours() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("266b231649925b4bff3912b469cdb550");
        for directory in [&cache, &dir.path().join("photos")] {
            fs::create_dir(directory).unwrap();
        }
        let profile = format!(
            "[profile.default]\nrepository = \"/srv/backup\"\ncache = \"{}\"\n[[profile.default.copy]]\nto = \"/mnt/copy\"\n\
             [[profile.default.copy]]\nto = \"s3://bucket/copy\"\n",
            dir.path().display()
        );
        let ctx = Context::of_profiles(&profile);
        let within = |path: &str| [PathBuf::from(path)];
        let at_hand = Location::parse("/mnt/copy").unwrap();
        let ours = directories(&ctx, &at_hand, &within("/srv"));
        assert_eq!(ours, ["/srv/backup".into(), PathBuf::from("/mnt/copy"), cache.clone()]);
        assert_eq!(directories(&ctx, &at_hand, &within("/home")), ["/mnt/copy".into(), cache.clone()]);
        let copies = directories(&ctx, &Location::parse("/srv/backup").unwrap(), &within("/mnt/copy"));
        assert_eq!(copies[0], PathBuf::from("/mnt/copy"));
        assert_eq!(directories(&ctx, &at_hand, &within("/mnt")), ["/mnt/copy".into(), cache], "once");
        let ctx = Context::of_profiles("[profile.default]\n");
        let ours = directories(&ctx, &Location::parse("s3://bucket").unwrap(), &within("/.local"));
        assert_eq!(ours[0], PathBuf::from("/.local/share/keepwell/repository"));
    }

    #[test]
    fn snapshots_that_are_mounted_are_ours() {
        for (kind, source, expected) in [
            ("fuse", "keepwell", true),
            ("fuse.keepwell", "keepwell", true),
            ("fuse.sshfs", "host:/", false),
            ("ext4", "keepwell", false),
        ] {
            let mounted = Mounted { point: "/mnt/b".into(), kind: kind.into(), source: source.into() };
            assert_eq!(shows_snapshots(&mounted), expected, "{mounted:?}");
        }
    }

    #[test]
    fn the_key_that_is_named_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let kit = dir.path().join("kit.txt");
        fs::write(&kit, "").unwrap();
        let mut ctx = Context::of_profiles("[profile.default]\n");
        ctx.global.key_file = Some(kit.clone());
        let at_hand = Location::parse("s3://bucket").unwrap();
        let untouched = untouched(&ctx, &at_hand, dir.path());
        assert!(untouched.contains(&kit), "{untouched:?}");
    }

    #[test]
    fn the_repository_of_the_profile_is_ours_also_where_another_one_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        let mut ctx =
            Context::of_profiles(&format!("[profile.default]\nrepository = \"{}\"\n", own.display()));
        ctx.global.repository = Some("s3://bucket".to_owned());
        let at_hand = Location::parse("s3://bucket").unwrap();
        let within = [dir.path().to_path_buf()];
        assert!(!directories(&ctx, &at_hand, &within).contains(&own), "a snapshot may bring it");
        fs::create_dir(&own).unwrap();
        assert!(directories(&ctx, &at_hand, &within).contains(&own));
        assert!(!directories(&ctx, &at_hand, &["/etc".into()]).contains(&own));
    }

    #[test]
    fn a_copy_is_not_touched_where_a_symlink_leads_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        fs::create_dir(top.join("data")).unwrap();
        std::os::unix::fs::symlink("data", top.join("link")).unwrap();
        for (copy, target) in [("data/copy", "link"), ("link/copy", "data"), ("link/copy", "link")] {
            let copy = top.join(copy);
            let profile =
                format!("[profile.default]\n[[profile.default.copy]]\nto = \"{}\"\n", copy.display());
            let ctx = Context::of_profiles(&profile);
            let at_hand = Location::parse("s3://bucket").unwrap();
            assert!(untouched(&ctx, &at_hand, &top.join(target)).contains(&copy), "{target}");
            assert!(!untouched(&ctx, &at_hand, &top.join("other")).contains(&copy), "{target}");
        }
    }
}
