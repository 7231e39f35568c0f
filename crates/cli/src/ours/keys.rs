//! The key files that are here.

use std::path::{Path, PathBuf};

use keepwell_crypto::RepositoryId;
use keepwell_crypto::keyfile::KeyFile;

use super::entries;
use super::within::Within;
use crate::context::Context;
use crate::known::Known;
use crate::secret::{self, Origin};

/// The one in use and those in their default place; and of what lies there, those that options, environment, profiles and
/// the list of known repositories name.
pub fn here(ctx: &Context, within: &Within<'_>) -> Vec<PathBuf> {
    let used = match secret::named_key(ctx) {
        Ok(Some(Origin::File(path))) => std::path::absolute(path).ok(),
        _ => None,
    };
    let directory = ctx.environment.config_dir().join("keys");
    let named = named(ctx).into_iter().filter(|path| within.holds(path));
    let mut found: Vec<PathBuf> =
        used.into_iter().chain(entries(&directory)).chain(named).filter(|path| path.exists()).collect();
    found.sort();
    found.dedup();
    found
}

/// Of these, the ones with an owner's keys to a repository, as far as that shows without a passphrase.
pub fn of_owners(ctx: &Context, within: &Within<'_>, repository: RepositoryId) -> Vec<PathBuf> {
    let is_owners = |path: &PathBuf| {
        // A pipe can be read only once.
        let text = path.is_file().then(|| Origin::File(path.clone()).read().ok()).flatten();
        let key = text.and_then(|text| KeyFile::parse(text.expose()).ok());
        key.is_some_and(|key| key.repository == repository && key.owner.is_some())
    };
    here(ctx, within).into_iter().filter(is_owners).collect()
}

/// All that are named anywhere, by absolute paths.
fn named(ctx: &Context) -> Vec<PathBuf> {
    let first = [&ctx.global.key_file, &ctx.environment.key_file].into_iter().flatten();
    let profiles = std::iter::once(&ctx.profile).chain(&ctx.other_profiles);
    let of_profiles = profiles.flat_map(|profile| {
        let copies = profile.copies.iter().filter_map(|copy| copy.key_file.as_ref());
        profile.key_file.iter().chain(copies)
    });
    let known = Known::load(ctx).unwrap_or_default();
    let paths = first.chain(of_profiles).map(PathBuf::as_path).chain(known.key_files());
    paths.filter_map(|path: &Path| std::path::absolute(path).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn keys_that_are_not_in_use_are_found_where_they_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let (owner, other) = (testing::created().key_file().clone(), testing::created().key_file().clone());
        let member = KeyFile { owner: None, ..owner.clone() };
        for (name, key) in [("member", &member), ("other", &other), ("owner", &owner)] {
            secret::write_private(&top.join(name), &key.to_toml()).unwrap();
        }
        let shown = top.display();
        let mut ctx = Context::of_profiles(&format!(
            "[profile.default]\nkey-file = \"{shown}/owner\"\n[profile.gone]\nkey-file = \"{shown}/gone\"\n\
             [[profile.gone.copy]]\nto = \"/srv/copy\"\nkey-file = \"{shown}/other\"\n"
        ));
        ctx.global.key_file = Some(top.join("member"));
        let within = Within::new(std::slice::from_ref(&top), &[]);
        assert_eq!(here(&ctx, &within), ["member", "other", "owner"].map(|name| top.join(name)));
        assert_eq!(of_owners(&ctx, &within, owner.repository), [top.join("owner")]);
        let elsewhere = Within::new(&["/nonexistent".into()], &[]);
        assert_eq!(here(&ctx, &elsewhere), [top.join("member")], "only what is in use is looked at there");
    }
}
