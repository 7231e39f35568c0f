//! Whether a store shows the newest snapshot. Only somebody who remembers one can tell: an older state of a whole store is a
//! valid repository.

use std::fmt;
use std::str::FromStr;

use anyhow::Result;
use backup_core::{Repository, Snapshot};
use keepwell_crypto::MemberId;

use crate::context::Context;
use crate::exit::{Complaint, Exit};

/// `WRITER/SEQ`: a snapshot that is known to exist, by its writer's name or id and the number of its commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    writer: String,
    seq: u64,
}

impl FromStr for Expected {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let split = text.rsplit_once('/').filter(|(writer, _)| !writer.is_empty());
        let parsed = split.and_then(|(writer, seq)| {
            Some(Self { writer: writer.to_owned(), seq: seq.parse().ok().filter(|_| is_plain(seq))? })
        });
        parsed.ok_or_else(|| format!("`{text}` is not WRITER/SEQ, as `keepwell show` says it"))
    }
}

fn is_plain(number: &str) -> bool {
    number.bytes().all(|b| b.is_ascii_digit())
}

/// As people note it, for [`Expected`].
pub fn witness(snapshot: &Snapshot) -> String {
    let (writer, seq) = snapshot.first_place();
    format!("{writer}/{seq}")
}

/// The newest snapshot that the store shows of a writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newest {
    writer: MemberId,
    seq: u64,
}

impl fmt::Display for Newest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.writer, self.seq)
    }
}

/// The newest snapshot that the store shows of the writer of one.
pub fn newest(snapshots: &[Snapshot], chosen: &Snapshot) -> Newest {
    let (writer, seq) = chosen.first_place();
    Newest { writer, seq: newest_of(snapshots, writer).unwrap_or(seq) }
}

fn newest_of(snapshots: &[Snapshot], writer: MemberId) -> Option<u64> {
    let places = snapshots.iter().map(Snapshot::first_place);
    places.filter(|(of, _)| *of == writer).map(|(_, seq)| seq).max()
}

/// Refuses a store whose newest snapshot of the writer is older than the one that is known; returns the newest.
pub fn check(repository: &Repository, snapshots: &[Snapshot], expected: &Expected) -> Result<Newest> {
    let writer = writer(repository, &expected.writer)?;
    let newest = newest_of(snapshots, writer);
    if let Some(seq) = newest.filter(|newest| *newest >= expected.seq) {
        return Ok(Newest { writer, seq });
    }
    let shown = newest.map_or_else(|| "none of it".to_owned(), |newest| format!("none newer than {newest}"));
    let message = format!(
        "the store shows less than is known of {}: {shown}, and {} is expected",
        expected.writer, expected.seq
    );
    Err(Complaint::new(Exit::Damage, message)
        .hint(
            "Somebody may have set the store back: look at a copy, or at the versions that the store keeps.",
        )
        .hint("A snapshot that was forgotten since is not shown either: `keepwell unforget` lists it.")
        .into())
}

fn writer(repository: &Repository, text: &str) -> Result<MemberId> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let chain = repository.chain();
    let mut named = chain.members().filter(|member| member.name == text).map(|member| member.id());
    match (named.next(), named.next()) {
        (Some(id), None) => Ok(id),
        (Some(_), Some(_)) => {
            Err(Complaint::usage(format!("several members are called `{text}`; give the id")).into())
        }
        (None, _) => Err(Complaint::usage(format!("no member is called `{text}`"))
            .hint("`keepwell key list` shows everybody, with names and ids.")
            .into()),
    }
}

/// Says how far the newest snapshot of the writer whose snapshot was restored can be relied on, after the
/// [check](check) of some writer.
pub fn say(ctx: &Context, newest: Newest, checked: Option<Newest>) {
    for line in said(newest, checked) {
        ctx.printer.say(line);
    }
}

fn said(newest: Newest, checked: Option<Newest>) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(checked) = checked {
        let whose = if checked.writer == newest.writer { "its writer" } else { "the expected writer" };
        lines.push(format!("The newest snapshot of {whose} here is {checked}: as new as expected."));
    }
    // What is known of one writer says nothing of another.
    if checked.is_none_or(|checked| checked.writer != newest.writer) {
        lines.push(format!(
            "The newest snapshot of its writer here is {newest}. Whether there was a newer one was not checked: see `--expect`."
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expected_is_a_writer_and_a_number() {
        let parsed: Expected = "web1/12".parse().unwrap();
        assert_eq!(parsed, Expected { writer: "web1".to_owned(), seq: 12 });
        assert_eq!("a/b/3".parse::<Expected>().unwrap().writer, "a/b");
        for wrong in
            ["", "12", "web1", "web1/", "/12", "web1/x", "web1/-1", "web1/+1", "web1/99999999999999999999999"]
        {
            assert!(wrong.parse::<Expected>().is_err(), "{wrong}");
        }
    }
    #[test]
    fn what_was_checked_of_one_writer_proves_nothing_of_another() {
        let newest = |id: u8, seq| Newest { writer: MemberId::from_bytes([id; 8]), seq };
        let (chosen, other) = (newest(1, 5), newest(2, 7));
        let proved = "The newest snapshot of its writer here is 0101010101010101/5: as new as expected.";
        assert_eq!(said(chosen, Some(chosen)), [proved]);
        let alone = said(chosen, None);
        assert!(
            alone.len() == 1
                && alone[0].starts_with("The newest snapshot of its writer here is 0101010101010101/5. ")
                && alone[0].contains("was not checked")
        );
        let [checked, unproved] = said(chosen, Some(other)).try_into().unwrap();
        assert_eq!(
            checked,
            "The newest snapshot of the expected writer here is 0202020202020202/7: as new as expected."
        );
        assert_eq!(unproved, alone[0]);
    }
}
