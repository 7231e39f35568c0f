//! Names of snapshots as people write them.
//!
//! `latest`, an id or the start of one, `tag:NAME`, `host:NAME`, `dataset:NAME`, or a time (`2026-11-20`,
//! `2026-11-20T12:00`: the newest of then). `~N` at the end goes N snapshots further back, of those with the tag, host or
//! dataset that is named. `NAME:/PATH` names a part.

use anyhow::Result;
use backup_core::{Repository, Snapshot, SnapshotState};
use clap::Args;
use keepwell_catalog::{MapKey, readable};

use crate::context::Context;
use crate::exit::Complaint;
use crate::text;

/// Fewer digits of an id are likely to be a mistake.
const ID_DIGITS_MIN: usize = 4;

/// Dataset and tag of what was backed up only because a restore was about to change it.
pub use backup_core::SAFETY_DATASET as SAFETY;

/// Which snapshots count.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Which snapshots")]
pub struct Filter {
    /// Only of this host
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
    /// Only of this dataset
    #[arg(long, value_name = "NAME")]
    pub dataset: Option<String>,
    /// Only with this tag; repeated: with all of them
    #[arg(long, value_name = "TAG")]
    pub tag: Vec<String>,
}

impl Filter {
    /// Whether anything is asked for.
    pub fn is_set(&self) -> bool {
        self.host.is_some() || self.dataset.is_some() || !self.tag.is_empty()
    }

    /// Whether a snapshot counts. One whose manifest cannot be read does only when nothing is asked for.
    pub fn accepts(&self, snapshot: &Snapshot) -> bool {
        if self.host.is_none() && self.dataset.is_none() && self.tag.is_empty() {
            return true;
        }
        let SnapshotState::Readable(manifest) = &snapshot.state else { return false };
        self.host.as_ref().is_none_or(|host| *host == manifest.host)
            && self.dataset.as_ref().is_none_or(|dataset| *dataset == manifest.dataset)
            && self.tag.iter().all(|tag| manifest.tags.contains(tag))
    }
}

/// `NAME[:/PATH]` taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The name of the snapshot.
    pub name: String,
    /// The path within, if one is given and it is not `/`.
    pub path: Option<MapKey>,
}

impl Part {
    /// Takes `NAME[:/PATH]` apart.
    pub fn parse(text: &str) -> Result<Self> {
        let value_from =
            ["tag:", "host:", "dataset:"].iter().find(|p| text.starts_with(**p)).map_or(0, |p| p.len());
        // A dataset may itself begin with a slash.
        let from = text.len().min(value_from + 1);
        let from = (from..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
        match text[from..].find(":/") {
            Some(at) => {
                let path = path_key(&text[from + at + 1..])?;
                let path = (path != MapKey::root()).then_some(path);
                Ok(Self { name: text[..from + at].to_owned(), path })
            }
            None => Ok(Self { name: text.to_owned(), path: None }),
        }
    }
}

/// The key of an absolute path. `.` and doubled slashes vanish; `..` is refused.
pub fn path_key(path: impl AsRef<[u8]>) -> Result<MapKey> {
    let path = path.as_ref();
    let names: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|n| !matches!(*n, b"" | b".")).collect();
    if names.contains(&&b".."[..]) {
        return Err(Complaint::usage(format!("`{}` has a `..`", readable(path))).into());
    }
    MapKey::from_components(names)
        .map_err(|e| Complaint::usage(format!("`{}` is no path: {e}", readable(path))).into())
}

/// The snapshot that a name means, of those that the filter lets through. `snapshots` are oldest first.
///
/// Safety snapshots count only for who asks for them: what `latest` means must not change because of a restore.
pub fn select<'s>(snapshots: &'s [Snapshot], filter: &Filter, name: &str) -> Result<&'s Snapshot> {
    let (base, back) = steps_back(name)?;
    let by_place = base == "latest" || base.starts_with("host:") || text::parse_time(base).is_some();
    let everyday = by_place && filter.dataset.is_none() && filter.tag.is_empty();
    let counts = |s: &&Snapshot| filter.accepts(s) && !(everyday && is_safety(s));
    let counted: Vec<&Snapshot> = snapshots.iter().filter(counts).collect();
    let missing = |why: String| backup_core::Error::NoSuchSnapshot(why).into();
    if counted.is_empty() {
        let why =
            if snapshots.is_empty() { "the repository has no snapshots" } else { "no snapshot matches" };
        return Err(missing(why.to_owned()));
    }
    let meant = up_to(&counted, base)?;
    let at = meant.len().checked_sub(back).and_then(|number| number.checked_sub(1));
    at.map(|at| meant[at])
        .ok_or_else(|| missing(format!("`{name}` goes back further than the {} that there are", meant.len())))
}

/// The snapshots that names mean, in their order; one that several of them mean comes once.
pub fn select_all<'s>(
    snapshots: &'s [Snapshot],
    filter: &Filter,
    names: &[String],
) -> Result<Vec<&'s Snapshot>> {
    let mut chosen: Vec<&Snapshot> = Vec::new();
    for name in names {
        let snapshot = select(snapshots, filter, name)?;
        if !chosen.iter().any(|one| one.id == snapshot.id) {
            chosen.push(snapshot);
        }
    }
    Ok(chosen)
}

/// Whether the content of a snapshot can be read; if not, says why it is passed over.
pub fn is_readable(ctx: &Context, repository: &Repository, snapshot: &Snapshot) -> bool {
    let why = match &snapshot.state {
        SnapshotState::Readable(manifest) if repository.is_erased(manifest.domain) => {
            "lies in an erased domain"
        }
        SnapshotState::Readable(_) => return true,
        SnapshotState::Sealed => "cannot be decrypted with this key",
        SnapshotState::Damaged(_) => "is damaged",
    };
    ctx.printer.warn(format_args!("snapshot {} {why}: it is passed over", snapshot.short()));
    false
}

fn is_safety(snapshot: &Snapshot) -> bool {
    matches!(&snapshot.state, SnapshotState::Readable(manifest) if manifest.dataset == SAFETY)
}

/// `latest~2` is two before `latest`.
fn steps_back(name: &str) -> Result<(&str, usize)> {
    match name.rsplit_once('~') {
        Some((base, "")) => Ok((base, 1)),
        Some((base, steps)) => match steps.parse() {
            Ok(steps) => Ok((base, steps)),
            Err(_) => Err(Complaint::usage(format!("`{steps}` after `~` is no number")).into()),
        },
        None => Ok((name, 0)),
    }
}

/// The snapshots among which a name counts back, oldest first; the last of them is the one that it means.
fn up_to<'s>(counted: &[&'s Snapshot], base: &str) -> Result<Vec<&'s Snapshot>> {
    let none = |what: String| anyhow::Error::from(backup_core::Error::NoSuchSnapshot(what));
    if base == "latest" {
        return Ok(counted.to_vec());
    }
    for (prefix, what) in [("tag:", "tag"), ("host:", "host"), ("dataset:", "dataset")] {
        if let Some(value) = base.strip_prefix(prefix) {
            let mut filter = Filter::default();
            match what {
                "tag" => filter.tag.push(value.to_owned()),
                "host" => filter.host = Some(value.to_owned()),
                _ => filter.dataset = Some(value.to_owned()),
            }
            let fitting: Vec<&'s Snapshot> = counted.iter().copied().filter(|s| filter.accepts(s)).collect();
            return match fitting.is_empty() {
                true => Err(none(format!("no snapshot has the {what} `{value}`"))),
                false => Ok(fitting),
            };
        }
    }
    if let Some(moment) = text::parse_time(base) {
        let at = counted.iter().rposition(|s| taken(s) <= moment);
        let at = at.ok_or_else(|| none(format!("no snapshot is as old as `{base}`")))?;
        return Ok(counted[..=at].to_vec());
    }
    Ok(counted[..=by_id(counted, base)?].to_vec())
}

fn by_id(counted: &[&Snapshot], base: &str) -> Result<usize> {
    let is_id = base.len() >= ID_DIGITS_MIN && base.bytes().all(|b| b.is_ascii_hexdigit());
    let digits = base.to_ascii_lowercase();
    let matches = |s: &Snapshot| is_id && s.id.to_string().starts_with(&digits);
    let mut fitting = (0..counted.len()).filter(|at| matches(counted[*at]));
    match (fitting.next(), fitting.count()) {
        (Some(at), 0) => Ok(at),
        (Some(_), more) => Err(Complaint::usage(format!("`{base}` matches {} snapshots", more + 1))
            .hint("Give more digits of the id; `keepwell snapshots --json` shows all of them.")
            .into()),
        (None, _) => Err(unknown(base)),
    }
}

/// A year and a dash, as no id has.
fn is_like_a_time(base: &str) -> bool {
    base.split_once('-').is_some_and(|(year, _)| year.len() == 4 && year.bytes().all(|b| b.is_ascii_digit()))
}

fn unknown(base: &str) -> anyhow::Error {
    let message = format!("there is no snapshot `{base}`");
    if is_like_a_time(base) {
        return Complaint::failed(format!("{message}, and it is no time"))
            .hint("Write `2026-11-20`, `2026-11-20T12:00` or `2026-11-20T12:00:00Z`.")
            .into();
    }
    match base.split_once(':') {
        // As people write paths; a time has colons as well.
        Some((name, path)) if !base.contains('-') && !path.is_empty() => Complaint::failed(message)
            .hint(format!(
                "Write the whole path, from `/` on: `{name}:/…/{path}`. `keepwell ls {name}` shows it."
            ))
            .into(),
        _ => backup_core::Error::NoSuchSnapshot(message).into(),
    }
}

/// When a snapshot was taken, as far as the credential can tell; nanoseconds since 1970.
pub fn taken(snapshot: &Snapshot) -> i64 {
    match &snapshot.state {
        SnapshotState::Readable(manifest) => manifest.capture_end,
        _ => snapshot.commit.capture.unwrap_or(snapshot.commit.time),
    }
}

#[cfg(test)]
mod tests {
    use backup_core::BackupOptions;
    use keepwell_storage::Memory;

    use super::*;
    use crate::testing;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_name_counts_back_among_those_that_it_means() {
        let repository = testing::repository(&Memory::new()).await;
        let dir = tempfile::tempdir().unwrap();
        for (dataset, tag) in [("a", "x"), ("b", "x"), ("a", "y"), ("c", "x")] {
            let (dataset, tags, host) = (dataset.to_owned(), vec![tag.to_owned()], "h".to_owned());
            let options = BackupOptions { dataset, tags, host, ..BackupOptions::default() };
            testing::back_up(&repository, dir.path(), options).await;
        }
        let snapshots = repository.snapshots().await.unwrap();
        let found = |name: &str| select(&snapshots, &Filter::default(), name).map(|snapshot| snapshot.id);
        for (name, at) in [
            ("latest~1", 2),
            ("dataset:a", 2),
            ("dataset:a~1", 0),
            ("tag:x~1", 1),
            ("tag:x~2", 0),
            ("host:h~3", 0),
        ] {
            assert_eq!(found(name).unwrap(), snapshots[at].id, "{name}");
        }
        for name in ["dataset:a~2", "tag:z", "latest~4", "latest~18446744073709551615"] {
            assert!(found(name).is_err(), "{name}");
        }
        for (name, hint) in [
            ("latest:notes/a", "Write the whole path, from `/` on: `latest:/…/notes/a`."),
            ("1a2b3c4d", "`keepwell snapshots` lists what there is."),
            ("2026-11-20T12:0x", "Write `2026-11-20`, `2026-11-20T12:00`"),
            ("2026-13-45", "Write `2026-11-20`, `2026-11-20T12:00`"),
        ] {
            let hints = crate::exit::hints_of(&found(name).unwrap_err());
            assert!(hints.len() == 1 && hints[0].starts_with(hint), "{name}: {hints:?}");
        }
    }

    #[test]
    fn a_path_is_split_off_at_the_first_colon_slash() {
        for (given, name, path) in [
            ("latest", "latest", None),
            ("latest:/", "latest", None),
            ("latest:/etc/x", "latest", Some("etc/x")),
            ("latest~1:/a:/b", "latest~1", Some("a:/b")),
            ("2026-11-20T12:00", "2026-11-20T12:00", None),
            ("2026-11-20T12:00:/etc", "2026-11-20T12:00", Some("etc")),
            ("tag:weekly:/etc", "tag:weekly", Some("etc")),
            ("dataset:/home", "dataset:/home", None),
            ("dataset:/home:/home/me", "dataset:/home", Some("home/me")),
        ] {
            let part = Part::parse(given).unwrap();
            assert_eq!(
                (part.name.as_str(), part.path.map(|p| p.display_path())),
                (name, path.map(str::to_owned)),
                "{given}"
            );
        }
        assert!(Part::parse("latest:/a/../b").is_err());
    }

    #[test]
    fn an_id_of_digits_alone_is_no_time() {
        for id in ["20431105", "2043110512", "20261120T120000Z"] {
            assert_eq!(text::parse_time(id), None, "{id}");
        }
        assert!(text::parse_time("2043-11-05").is_some());
    }

    #[test]
    fn steps_back_are_counted() {
        assert_eq!(steps_back("latest~2").unwrap(), ("latest", 2));
        assert_eq!(steps_back("latest~").unwrap(), ("latest", 1));
        assert_eq!(steps_back("1a2b").unwrap(), ("1a2b", 0));
        assert!(steps_back("latest~x").is_err());
    }
}
