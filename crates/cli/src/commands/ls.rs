//! `keepwell ls`.

use std::ops::ControlFlow;

use anyhow::Result;
use backup_core::Depth;
use keepwell_catalog::{Entry, EntryKind, MapKey, readable};
use serde_json::{Value, json};

use crate::context::Context;
use crate::exit::Exit;
use crate::open;
use crate::select::{self, Filter, Part};
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell ls latest                 everything
  keepwell ls latest:/etc            what is in a directory
  keepwell ls latest:/etc -R -l      and below, with modes, owners, sizes and times";

/// List what is in a snapshot
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// SNAPSHOT lists everything, SNAPSHOT:/PATH one directory
    #[arg(value_name = "SNAPSHOT[:/PATH]", default_value = "latest")]
    source: String,
    /// Also what is below directories
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Modes, owners, sizes and times too
    #[arg(short, long)]
    long: bool,
    #[command(flatten)]
    filter: Filter,
}

/// Runs `ls`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let part = Part::parse(&args.source)?;
    let (opened, snapshots) = open::with_snapshots(ctx).await?;
    let snapshot = select::select(&snapshots, &args.filter, &part.name)?;
    let tree = opened.repository.tree(snapshot).await?;
    opened.progress.end();
    let depth = if args.recursive || part.path.is_none() { Depth::All } else { Depth::Children };
    let key = part.path.unwrap_or_else(MapKey::root);
    if let Some(entry) = tree.entry(&key).await?
        && entry.kind != EntryKind::Directory
    {
        print(ctx, &key, &entry, args.long);
        return Ok(Exit::Done);
    }
    tree.list(&key, depth, |key, entry| {
        print(ctx, key, entry, args.long);
        ControlFlow::Continue(())
    })
    .await?;
    Ok(Exit::Done)
}

fn print(ctx: &Context, key: &MapKey, entry: &Entry, long: bool) {
    if ctx.printer.is_json() {
        ctx.printer.json("entry", fields(key, entry));
    } else if long {
        ctx.printer.line(long_line(key, entry));
    } else {
        ctx.printer.line(format_args!("/{}", key.display_path()));
    }
}

/// As `ls -l` shows it.
pub fn long_line(key: &MapKey, entry: &Entry) -> String {
    let name = |name: &Option<std::sync::Arc<str>>, id: u32| {
        name.as_ref().map_or_else(|| id.to_string(), |name| readable(&**name))
    };
    let target = entry.link_target.as_ref().map(|to| format!(" -> {}", readable(to)));
    let target = target.or_else(|| entry.hard_link.as_ref().map(|to| format!(" = /{}", to.display_path())));
    format!(
        "{} {:<8} {:<8} {:>10} {} /{}{}",
        mode(entry),
        name(&entry.user, entry.uid),
        name(&entry.group, entry.gid),
        if entry.kind.has_content() { text::bytes(entry.size) } else { "-".to_owned() },
        text::time(nanoseconds(entry.mtime)),
        key.display_path(),
        target.unwrap_or_default()
    )
}

fn nanoseconds((seconds, nanoseconds): (i64, u32)) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds.into())
}

/// `drwxr-xr-x`, with `s`, `S`, `t` and `T` where they belong.
fn mode(entry: &Entry) -> String {
    let kind = match entry.kind {
        EntryKind::File | EntryKind::Object => '-',
        EntryKind::Directory => 'd',
        EntryKind::Symlink => 'l',
        EntryKind::Fifo => 'p',
        EntryKind::CharDevice => 'c',
        EntryKind::BlockDevice => 'b',
        EntryKind::Socket => 's',
        EntryKind::HardLink => 'h',
    };
    let mut text = String::from(kind);
    for (shift, special, marks) in [(6, 0o4000, ['s', 'S']), (3, 0o2000, ['s', 'S']), (0, 0o1000, ['t', 'T'])]
    {
        let bits = entry.mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (entry.mode & special != 0, bits & 1 != 0) {
            (true, executable) => marks[usize::from(!executable)],
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// The kind of an entry, for scripts.
pub fn kind_name(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::File => "file",
        EntryKind::Directory => "directory",
        EntryKind::Symlink => "symlink",
        EntryKind::Fifo => "fifo",
        EntryKind::CharDevice => "character_device",
        EntryKind::BlockDevice => "block_device",
        EntryKind::Socket => "socket",
        EntryKind::HardLink => "hard_link",
        EntryKind::Object => "object",
    }
}

/// An entry as scripts see it.
pub fn fields(key: &MapKey, entry: &Entry) -> Value {
    json!({
        "path": format!("/{}", key.display_path()),
        "kind": kind_name(entry.kind),
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "user": entry.user.as_deref(),
        "group": entry.group.as_deref(),
        "size": entry.size,
        "mtime": text::rfc3339(nanoseconds(entry.mtime)),
        "link_target": entry.link_target.as_ref().map(|t| String::from_utf8_lossy(t)),
        "hard_link": entry.hard_link.as_ref().map(|k| format!("/{}", k.display_path())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_link_leads_and_who_owns_it_cannot_speak_to_the_terminal() {
        let mut entry = Entry::new(EntryKind::Symlink);
        entry.link_target = Some(b"a\x1b]0;title\x07".to_vec());
        entry.user = Some("ro\rot".into());
        let line = long_line(&MapKey::from_components(["l"]).unwrap(), &entry);
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert!(line.ends_with("/l -> a\\u{1b}]0;title\\u{7}"), "{line}");
    }

    #[test]
    fn modes_look_as_in_ls() {
        for (kind, bits, text) in [
            (EntryKind::File, 0o644, "-rw-r--r--"),
            (EntryKind::File, 0o4755, "-rwsr-xr-x"),
            (EntryKind::File, 0o2640, "-rw-r-S---"),
            (EntryKind::Directory, 0o1777, "drwxrwxrwt"),
            (EntryKind::Directory, 0o1770, "drwxrwx--T"),
        ] {
            let mut entry = Entry::new(kind);
            entry.mode = bits;
            assert_eq!(mode(&entry), text);
        }
    }
}
