//! The snapshot of what stands in the target, taken before a restore changes it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use backup_core::env::SystemClock;
use backup_core::{BackupOptions, Tree};
use keepwell_crypto::SnapshotId;
use keepwell_crypto::trust::Roles;
use keepwell_source_files::{FileOptions, FileSource};
use serde_json::json;

use super::mounts;
use super::place::Scope;
use crate::context::Context;
use crate::exit::Complaint;
use crate::open::Opened;
use crate::ours;
use crate::select::SAFETY;
use crate::text;

/// `forget` leaves a safety snapshot alone for this long.
const KEPT_NANOSECONDS: i64 = 14 * 24 * 3600 * 1_000_000_000;

/// A safety snapshot.
#[derive(Debug)]
pub struct Saved {
    snapshot: SnapshotId,
    /// What was saved, and whether it was a directory.
    paths: Vec<(PathBuf, bool)>,
}

/// Backs up what stands where the restore will write. `None` when nothing does. With the tree that is restored, file
/// systems that it leaves as they are are left out.
pub async fn back_up(
    ctx: &Context,
    opened: &Opened,
    tree: Option<&Tree>,
    scopes: &[Scope],
    restored: &str,
) -> Result<Option<Saved>> {
    let standing = |scope: &Scope| -> Vec<PathBuf> {
        scope.captured.iter().filter_map(|path| standing(&scope.target, path)).collect()
    };
    let mut paths: Vec<PathBuf> = scopes.iter().flat_map(standing).collect();
    paths.sort();
    paths.dedup();
    if paths.is_empty() {
        return Ok(None);
    }
    let roles = opened.repository.access().roles();
    if !roles.is_some_and(|roles| roles.intersects(Roles::WRITER | Roles::KEEPER)) {
        return Err(Complaint::failed("this credential cannot back up what stands in the target")
            .hint("Restore into an empty directory, or say `--no-safety-snapshot`.")
            .into());
    }
    let excludes = match tree {
        Some(tree) => mounts::untouched(tree, scopes, &paths).await?,
        None => Vec::new(),
    };
    let options = FileOptions { paths: paths.clone(), excludes, ..FileOptions::default() };
    let source = FileSource::new(&options, Arc::new(SystemClock)).map_err(backup_core::Error::from)?;
    let source = source.without(&ours::left_out(ctx, &opened.repository, &opened.location, &paths));
    let options = BackupOptions {
        dataset: SAFETY.to_owned(),
        host: ctx.host(),
        tags: vec![SAFETY.to_owned()],
        description: format!("before the restore of {restored}"),
        time_zone: jiff::tz::TimeZone::system().iana_name().unwrap_or("UTC").to_owned(),
        keep_until: Some(ctx.now().saturating_add(KEPT_NANOSECONDS)),
        program: concat!("keepwell ", env!("CARGO_PKG_VERSION")).to_owned(),
        ..BackupOptions::default()
    };
    ctx.interrupt.ends_by_itself();
    let report = opened.repository.backup(Arc::new(source), options).await;
    let report = report.context("back up what stands in the target (nothing was restored)")?;
    if report.problem_count > 0 {
        return Err(Complaint::failed("what stands in the target could not be backed up completely")
            .hint("Nothing was restored. Look at the warnings, or say `--no-safety-snapshot`.")
            .into());
    }
    let with_kind = |path: PathBuf| {
        let is_directory = path.is_dir() && !path.is_symlink();
        (path, is_directory)
    };
    Ok(Some(Saved { snapshot: report.snapshot, paths: paths.into_iter().map(with_kind).collect() }))
}

/// What the restore of a captured path changes first: what stands there, or what is no directory and stands on the way
/// there from the target. The target itself may be reached by a symlink.
fn standing(target: &Path, captured: &Path) -> Option<PathBuf> {
    let Ok(below) = captured.strip_prefix(target) else {
        return captured.symlink_metadata().is_ok().then(|| captured.to_path_buf());
    };
    let mut at = target.canonicalize().ok()?;
    for name in below.components() {
        at.push(name);
        if !at.symlink_metadata().ok()?.is_dir() {
            break;
        }
    }
    Some(at)
}

/// Says which commands bring back what was there.
pub fn say_how_to_undo(ctx: &Context, saved: &Saved) {
    let id = &saved.snapshot.to_string()[..8];
    ctx.printer.say(format_args!("What was there before is in snapshot {id}, kept for 14 days. To undo:"));
    let commands = undo(id, &saved.paths);
    for command in &commands {
        ctx.printer.say(format_args!("  {command}"));
    }
    let paths: Vec<_> = saved.paths.iter().map(|(path, _)| path.to_string_lossy()).collect();
    let fields = json!({ "snapshot": saved.snapshot.to_string(), "paths": paths, "undo": commands });
    ctx.printer.json("safety_snapshot", fields);
}

/// One command for each path, or one for all of them if the name of one cannot stand in a command.
fn undo(id: &str, paths: &[(PathBuf, bool)]) -> Vec<String> {
    let one = |(path, is_directory): &(PathBuf, bool)| {
        let target = if *is_directory { path } else { path.parent().unwrap_or(path) };
        let (source, target) = (format!("{id}:{}", path.to_str()?), text::shell_word(target.to_str()?));
        Some(format!("keepwell restore {} --target {target} --delete", text::shell_word(&source)))
    };
    let commands: Option<Vec<String>> = paths.iter().map(one).collect();
    commands.unwrap_or_else(|| vec![format!("keepwell restore {id} --target / --delete")])
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_stands_in_the_way_is_what_changes_first() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(target.join("real/deep")).unwrap();
        std::fs::write(target.join("file"), "x").unwrap();
        symlink("real", target.join("link")).unwrap();
        symlink(&target, target.join("again")).unwrap();
        let found = |path: &str| standing(&target, &target.join(path));
        for (captured, first) in [
            ("real/deep", Some("real/deep")),
            ("real/none", None),
            ("file/a/b", Some("file")),
            ("link/deep", Some("link")),
            ("link", Some("link")),
        ] {
            assert_eq!(found(captured), first.map(|path| target.join(path)), "{captured}");
        }
        assert_eq!(standing(&target, &target), Some(target.clone()));
        let by_link = target.join("again");
        assert_eq!(standing(&by_link, &by_link.join("real")), Some(target.join("real")));
    }

    #[test]
    fn commands_that_undo_can_be_given_to_a_shell() {
        let paths = [("/t/my files".into(), true), ("/t/a;b".into(), false)];
        assert_eq!(
            undo("1a2b3c4d", &paths),
            [
                "keepwell restore '1a2b3c4d:/t/my files' --target '/t/my files' --delete",
                "keepwell restore '1a2b3c4d:/t/a;b' --target /t --delete",
            ]
        );
        let odd = std::ffi::OsString::from_vec(b"/t/\xff".to_vec());
        assert_eq!(
            undo("1a2b3c4d", &[(odd.into(), true)]),
            ["keepwell restore 1a2b3c4d --target / --delete"]
        );
    }
}
