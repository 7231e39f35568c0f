//! What belongs to the backups themselves: a repository within what is backed up would grow with every snapshot, and a
//! restore over it would take away newer ones.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::context::Context;
use crate::location::Location;
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
    let mounts = mounts(&fs::read("/proc/self/mountinfo").unwrap_or_default());
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

/// Where `keepwell mount` shows snapshots, by the table of the kernel: `36 35 98:0 /root /point options - type source …`.
fn mounts(table: &[u8]) -> Vec<PathBuf> {
    let point = |line: &[u8]| {
        let mut words = line.split(|byte| *byte == b' ');
        let point = words.nth(4)?;
        let mut words = words.skip_while(|word| *word != b"-".as_slice()).skip(1);
        let (kind, source) = (words.next()?, words.next()?);
        (kind.starts_with(b"fuse") && source == b"keepwell").then(|| unescaped(point))
    };
    table.split(|byte| *byte == b'\n').filter_map(point).collect()
}

/// A path of that table, in which a space is `\040`.
fn unescaped(word: &[u8]) -> PathBuf {
    let (mut path, mut rest) = (Vec::new(), word);
    while let Some((byte, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *byte == b'\\').and_then(|digits| str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        path.push(escaped.unwrap_or(*byte));
        rest = if escaped.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(path).into()
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
        let table = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            40 22 0:50 / /mnt/my\\040backups ro,noatime - fuse keepwell ro,user_id=0\n\
            41 22 0:51 / /mnt/b shared:7 master:1 - fuse.keepwell keepwell ro\n\
            42 22 0:52 / /mnt/other rw - fuse.sshfs host:/ rw\n\
            43 22\n";
        assert_eq!(mounts(table), [PathBuf::from("/mnt/my backups"), "/mnt/b".into()]);
    }

    #[test]
    fn the_key_that_is_named_is_not_touched() {
        let mut ctx = Context::of_profiles("[profile.default]\n");
        ctx.global.key_file = Some("/media/usb/kit.txt".into());
        let at_hand = Location::parse("s3://bucket").unwrap();
        let untouched = untouched(&ctx, &at_hand, Path::new("/media"));
        assert!(untouched.contains(&PathBuf::from("/media/usb/kit.txt")), "{untouched:?}");
    }
}
