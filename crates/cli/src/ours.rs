//! What belongs to the backups themselves: a repository within what is backed up would grow with every snapshot, and a
//! restore over it would take away newer ones.

use std::fs;
use std::path::{Path, PathBuf};

use crate::context::Context;
use crate::location::Location;
use crate::mountinfo::{self, Mounted};
use crate::secret::{self, Origin};

/// The repository at hand and what is cached of repositories; and of what lies within `paths` the repository that was asked
/// for (a copy may stand in for it), the copies of the profile, and where snapshots are mounted. Whoever looks at a share whose
/// server is away waits for it: those elsewhere are left alone.
pub fn directories(ctx: &Context, at_hand: &Location, paths: &[PathBuf]) -> Vec<PathBuf> {
    let named = Location::named(ctx).ok().flatten();
    let copies = ctx.profile.copies.iter().filter_map(|copy| Location::parse(&copy.to).ok());
    let meant = named.unwrap_or_else(|| Location::default_of(ctx));
    let places: Vec<Location> = copies.chain([meant]).collect();
    let stores = places.iter().filter_map(Location::path).map(Path::to_path_buf);
    let mounts = mountinfo::all().into_iter().filter(shows_snapshots).map(|mounted| mounted.point);
    let real = paths.iter().filter_map(|path| path.canonicalize().ok()); // a symlink may lead to them
    let paths: Vec<PathBuf> = paths.iter().cloned().chain(real).collect();
    let is_within = |place: &PathBuf| paths.iter().any(|path| place.starts_with(path));
    let mut found: Vec<PathBuf> = stores.chain(mounts).filter(is_within).collect();
    let at_hand = at_hand.path().map(Path::to_path_buf).filter(|path| !found.contains(path));
    found.extend(at_hand);
    found.extend(caches(&ctx.cache_dir()));
    found
}

/// What no restore touches: these directories, and the keys that are here. One that a snapshot lacks would go with
/// `--delete`, and be saved only to where nothing but the key leads.
pub fn untouched(ctx: &Context, at_hand: &Location, target: &Path) -> Vec<PathBuf> {
    let mut paths = directories(ctx, at_hand, &[target.to_path_buf()]);
    paths.extend(entries(&ctx.environment.config_dir().join("keys")));
    if let Ok(Some(Origin::File(path))) = secret::named_key(ctx)
        && let Ok(path) = std::path::absolute(path)
    {
        paths.push(path);
    }
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
        let mut ctx = Context::of_profiles("[profile.default]\n");
        ctx.global.key_file = Some("/media/usb/kit.txt".into());
        let at_hand = Location::parse("s3://bucket").unwrap();
        let untouched = untouched(&ctx, &at_hand, Path::new("/media"));
        assert!(untouched.contains(&PathBuf::from("/media/usb/kit.txt")), "{untouched:?}");
    }

    #[test]
    fn a_copy_is_not_touched_where_a_symlink_leads_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        fs::create_dir(top.join("data")).unwrap();
        std::os::unix::fs::symlink("data", top.join("link")).unwrap();
        let copy = top.join("data/copy");
        let profile = format!("[profile.default]\n[[profile.default.copy]]\nto = \"{}\"\n", copy.display());
        let ctx = Context::of_profiles(&profile);
        let at_hand = Location::parse("s3://bucket").unwrap();
        assert!(untouched(&ctx, &at_hand, &top.join("link")).contains(&copy));
        assert!(!untouched(&ctx, &at_hand, &top.join("other")).contains(&copy));
    }
}
