//! Which repository is opened when the one that is asked for cannot be.

use std::path::Path;

use super::*;
use crate::exit::exit_of;
use crate::testing;

/// A repository without snapshots at a place, and the file with its key.
async fn made(dir: &Path, name: &str) -> PathBuf {
    let ctx = Context::of_profiles("");
    let place = Location::parse(dir.join(name).to_str().unwrap()).unwrap();
    let store = place.create(&ctx).await.unwrap();
    let key = testing::make(&*store).await;
    let file = dir.join(format!("{name}.key"));
    secret::write_private(&file, &key.to_toml()).unwrap();
    file
}

/// With a profile whose repository is `own`, with copies at `gone` and `copy`.
fn context(dir: &Path, key_file: Option<&Path>) -> Context {
    let shown = dir.display();
    let key_file = key_file.map_or_else(String::new, |file| format!("key-file = \"{}\"", file.display()));
    let mut ctx = Context::of_profiles(&format!(
        "[profile.default]\nrepository = \"{shown}/own\"\n{key_file}\n\
         [[profile.default.copy]]\nto = \"{shown}/gone\"\n[[profile.default.copy]]\nto = \"{shown}/copy\"\n"
    ));
    ctx.global.no_cache = true;
    ctx
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_the_profile_stands_in_for_no_other_repository() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let key_file = made(dir, "copy").await;
    let copy = Location::parse(dir.join("copy").to_str().unwrap()).unwrap();
    let named = |name: &str| Some(dir.join(name).display().to_string());
    let mut ctx = context(dir, Some(&key_file));
    for repository in [None, named("own"), named("gone")] {
        ctx.global.repository = repository;
        assert_eq!(for_reading(&ctx).await.unwrap().location, copy, "{:?}", ctx.global.repository);
    }
    for (option, variable) in [(named("elsewhere"), None), (None, named("elsewhere"))] {
        (ctx.global.repository, ctx.environment.repository) = (option, variable);
        let error = with_snapshots(&ctx).await.unwrap_err();
        assert_eq!(exit_of(&error), Exit::NoRepository, "{error:?}");
        assert!(error.to_string().contains("elsewhere"), "{error}");
        let key = secret::load_key(&ctx, &Origin::File(key_file.clone())).unwrap();
        assert!(Fallback::new(&ctx, &key, &copy).is_none(), "its objects do not come from there either");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_read_once_however_many_places_are_tried() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let key_file = made(dir, "copy").await;
    for place in ["own", "gone"] {
        // Damaged there, which shows only after the key was read.
        std::fs::create_dir(dir.join(place)).unwrap();
        std::fs::copy(dir.join("copy/keepwell.json"), dir.join(place).join("keepwell.json")).unwrap();
    }
    let reads = dir.join("reads");
    let mut ctx = context(dir, None);
    ctx.global.key_command = Some(format!("echo >> '{}'; cat '{}'", reads.display(), key_file.display()));
    let opened = for_reading(&ctx).await.unwrap();
    assert_eq!(opened.location.path(), Some(dir.join("copy").as_path()));
    assert_eq!(std::fs::read(&reads).unwrap(), b"\n");
}
