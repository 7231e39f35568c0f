//! What belongs to the backups themselves: a repository within what is backed up would grow with every snapshot, and a
//! restore over it would take away newer ones.

use std::fs;
use std::path::{Path, PathBuf};

use crate::context::Context;
use crate::location::Location;
use crate::secret::{self, Origin};

/// The repository at hand and the one that was asked for (a copy may stand in for it), the copies of the profile, and what is
/// cached of repositories.
pub fn directories(ctx: &Context, at_hand: &Location) -> Vec<PathBuf> {
    let named = Location::named(ctx).ok().flatten();
    let copies = ctx.profile.copies.iter().filter_map(|copy| Location::parse(&copy.to).ok());
    let meant = named.unwrap_or_else(|| Location::default_of(ctx));
    let places: Vec<Location> = copies.chain([meant, at_hand.clone()]).collect();
    let stores = places.iter().filter_map(Location::path).map(Path::to_path_buf);
    stores.chain(caches(&ctx.cache_dir())).collect()
}

/// What no restore touches: these directories, and the keys that are here. One that a snapshot lacks would go with
/// `--delete`, and be saved only to where nothing but the key leads.
pub fn untouched(ctx: &Context, at_hand: &Location) -> Vec<PathBuf> {
    let mut paths = directories(ctx, at_hand);
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
        let ours = directories(&ctx, &Location::parse("/mnt/copy").unwrap());
        assert_eq!(ours, ["/mnt/copy".into(), "/srv/backup".into(), "/mnt/copy".into(), cache]);
        let ctx = Context::of_profiles("[profile.default]\n");
        let ours = directories(&ctx, &Location::parse("s3://bucket").unwrap());
        assert_eq!(ours, [PathBuf::from("/.local/share/keepwell/repository")]);
    }

    #[test]
    fn the_key_that_is_named_is_not_touched() {
        let mut ctx = Context::of_profiles("[profile.default]\n");
        ctx.global.key_file = Some("/media/usb/kit.txt".into());
        let untouched = untouched(&ctx, &Location::parse("s3://bucket").unwrap());
        assert!(untouched.contains(&PathBuf::from("/media/usb/kit.txt")), "{untouched:?}");
    }
}
