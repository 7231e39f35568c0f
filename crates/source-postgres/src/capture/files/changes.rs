//! What changed since the last capture, as the server's WAL summaries tell it over SQL (17 and newer).

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::super::basis::Basis;
use super::super::page::{PAGE, SEGMENT_PAGES};
use super::super::place::Relation;
use crate::lsn::{Lsn, Timeline};
use crate::wire::{Answer, Client, PgError};

/// The tablespace that `base` is.
const DEFAULT_SPACE: u32 = 1663;
const FREE_SPACE_MAP: u8 = 1;
/// How often it is asked whether the server has summarized all.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// It is given up when so many questions in a row were answered alike: a minute.
const PATIENCE: u32 = 1200;
const ACTION: &str = "ask what changed since the last backup";

/// Blocks that changed, and where files were cut off.
#[derive(Debug, Default)]
pub(super) struct Changes {
    relations: HashMap<(u32, u32, u32, u8), Changed>,
    /// Databases that were made since, by tablespace and database.
    made: BTreeSet<(u32, u32)>,
}

#[derive(Debug, Default)]
struct Changed {
    /// The relation had no more blocks than that at some time.
    limit: Option<u32>,
    blocks: Vec<u32>,
}

/// A stretch of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stretch {
    /// Where it ends, in bytes.
    pub end: u64,
    /// Whether it is as the last capture has it.
    pub kept: bool,
}

/// Asks, when the server has made all summaries up to `start`, where this capture begins. `Err` with a reason when there is
/// no telling what changed.
pub(super) async fn ask(
    client: &mut Client,
    basis: &Basis,
    start: Lsn,
    timeline: Timeline,
) -> Result<Result<Changes, String>, PgError> {
    match try_to_ask(client, basis, start, timeline).await {
        Err(PgError::Server { error, .. }) => Ok(Err(error.to_string())),
        other => other,
    }
}

async fn try_to_ask(
    client: &mut Client,
    basis: &Basis,
    start: Lsn,
    timeline: Timeline,
) -> Result<Result<Changes, String>, PgError> {
    let origin = &basis.origin;
    let (Ok(from), Ok(stop)) = (origin.start.parse::<Lsn>(), origin.stop.parse::<Lsn>()) else {
        return Ok(Err("the last snapshot does not say where it begins".to_owned()));
    };
    if origin.timeline != timeline.get() {
        return Ok(Err(format!("the last snapshot is of timeline {}", origin.timeline)));
    }
    if stop > start {
        return Ok(Err(format!("the last snapshot ends at {stop}, and the server is at {start}")));
    }
    if !wait(client, start, timeline).await? {
        return Ok(Err(format!("the server has no WAL summaries up to {start}")));
    }
    if let Some(reason) = missing(client, (from, start), timeline).await? {
        return Ok(Err(reason));
    }
    let sql = format!(
        "COPY (SELECT DISTINCT c.reltablespace, c.reldatabase, c.relfilenode, c.relforknumber, c.relblocknumber, \
         c.is_limit_block FROM pg_available_wal_summaries() s, pg_wal_summary_contents(s.tli, s.start_lsn, s.end_lsn) c \
         WHERE s.tli = {timeline} AND s.end_lsn > '{from}' AND s.start_lsn < '{start}') TO STDOUT"
    );
    let Answer::CopyOut(_) = client.run(&sql, ACTION).await? else {
        return Err(PgError::Protocol("it did not copy its WAL summaries".to_owned()));
    };
    let mut changes = Changes::default();
    let mut copy = client.copy_out(ACTION);
    while let Some(lines) = copy.next().await? {
        let read =
            std::str::from_utf8(&lines).ok().and_then(|text| text.lines().try_for_each(|l| changes.add(l)));
        read.ok_or_else(|| PgError::Protocol("its WAL summaries cannot be read".to_owned()))?;
    }
    client.answer(ACTION).await?;
    // A server removes old summaries whenever it likes. One that is there now was there while they were read.
    if let Some(reason) = missing(client, (from, start), timeline).await? {
        return Ok(Err(reason));
    }
    changes.sort();
    Ok(Ok(changes))
}

/// Why the summaries that the server has do not tell all between two places, if they do not.
async fn missing(
    client: &mut Client,
    (from, to): (Lsn, Lsn),
    timeline: Timeline,
) -> Result<Option<String>, PgError> {
    let sql = format!(
        "SELECT start_lsn, end_lsn FROM pg_available_wal_summaries() WHERE tli = {timeline} \
         AND end_lsn > '{from}' AND start_lsn < '{to}' ORDER BY start_lsn"
    );
    let rows = client.query(&sql, ACTION).await?;
    let summary = |row| Some((rows.text(row, 0)?.parse().ok()?, rows.text(row, 1)?.parse().ok()?));
    let summaries: Option<Vec<(Lsn, Lsn)>> = (0..rows.rows.len()).map(summary).collect();
    let gap = gap(&summaries.unwrap_or_default(), from, to);
    Ok(gap.map(|gap| format!("the server has no WAL summary of {gap}")))
}

/// Waits until the server has summarized everything up to `start`. `false` if it does not get there.
async fn wait(client: &mut Client, start: Lsn, timeline: Timeline) -> Result<bool, PgError> {
    let sql = format!("SELECT max(end_lsn) AS end FROM pg_available_wal_summaries() WHERE tli = {timeline}");
    let (mut last, mut alike) = (None, 0);
    while alike < PATIENCE {
        let rows = client.query(&sql, ACTION).await?;
        let end: Option<Lsn> = rows.first("end").and_then(|text| text.parse().ok());
        if end.is_some_and(|end| end >= start) {
            return Ok(true);
        }
        alike = if end == last { alike + 1 } else { 0 };
        last = end;
        tokio::time::sleep(ASK_EVERY).await;
    }
    Ok(false)
}

/// What summaries, ordered by their begin, leave out between two places.
fn gap(summaries: &[(Lsn, Lsn)], from: Lsn, to: Lsn) -> Option<Lsn> {
    let mut covered = from;
    for (start, end) in summaries {
        if *start > covered {
            break;
        }
        covered = covered.max(*end);
    }
    (covered < to).then_some(covered)
}

/// The number that the server has for a fork.
fn fork(name: &str) -> u8 {
    let stem = name.split_once('.').map_or(name, |(stem, _)| stem);
    match stem.split_once('_').map_or("", |(_, fork)| fork) {
        "fsm" => FREE_SPACE_MAP,
        "vm" => 2,
        "init" => 3,
        _ => 0,
    }
}

impl Changes {
    /// Takes in a line of the answer.
    fn add(&mut self, line: &str) -> Option<()> {
        let mut words = line.split('\t');
        let mut number = || words.next()?.parse::<u32>().ok();
        let (space, database, file, fork, block) = (number()?, number()?, number()?, number()?, number()?);
        let is_limit = words.next()? == "t";
        if file == 0 {
            self.made.insert((space, database));
            return Some(());
        }
        let key = (space, database, file, u8::try_from(fork).ok()?);
        let changed = self.relations.entry(key).or_default();
        match is_limit {
            true => changed.limit = Some(changed.limit.map_or(block, |limit| limit.min(block))),
            false => changed.blocks.push(block),
        }
        Some(())
    }

    fn sort(&mut self) {
        self.relations.values_mut().for_each(|changed| changed.blocks.sort_unstable());
    }

    /// What of a file of `size` bytes is as the last capture has it, which had `before` bytes. `None` if all of it is to be
    /// read. Blocks beyond what the file was once cut off at are read whatever is known of them.
    pub fn stretches(
        &self,
        relation: Relation,
        name: &str,
        size: u64,
        before: Option<u64>,
    ) -> Option<Vec<Stretch>> {
        let space = if relation.tablespace == 0 { DEFAULT_SPACE } else { relation.tablespace };
        let (fork, page) = (fork(name), PAGE as u64);
        let total = u32::try_from(size / page).ok().filter(|total| *total <= SEGMENT_PAGES)?;
        // Free space maps are written without WAL.
        if fork == FREE_SPACE_MAP || self.made.contains(&(space, relation.database)) {
            return None;
        }
        let first = relation.segment.checked_mul(SEGMENT_PAGES)?;
        let changed = self.relations.get(&(space, relation.database, relation.file, fork));
        let limit = changed.and_then(|changed| changed.limit).unwrap_or(u32::MAX);
        // From here on all is read.
        let behind = u32::try_from(before? / page).ok()?.min(limit.saturating_sub(first)).min(total);
        let blocks = changed.map_or(&[][..], |changed| &changed.blocks);
        let begin = blocks.partition_point(|block| *block < first);
        let inside = blocks[begin..].iter().map(|block| block - first).take_while(|block| *block < behind);
        let mut stretches: Vec<Stretch> = Vec::new();
        let (mut at, mut read) = (0, 0);
        let mut push = |from: u32, to: u32, kept| {
            let end = u64::from(to) * page;
            match stretches.last_mut() {
                _ if to == from => {}
                Some(last) if last.kept == kept => last.end = end,
                _ => stretches.push(Stretch { end, kept }),
            }
        };
        for block in inside {
            // The same block may be named by a second line.
            if block < at {
                continue;
            }
            push(at, block, true);
            push(block, block + 1, false);
            (at, read) = (block + 1, read + 1);
        }
        push(at, behind, true);
        push(behind, total, false);
        read += total - behind;
        // To put nearly all of a file together is no gain.
        (u64::from(read) * 10 <= u64::from(total) * 9).then_some(stretches)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::super::basis::Origin;
    use super::*;
    use crate::testing::{greeted, message, row, socket};

    /// What a server tells that is at `0/200`; its summary may go while it is read.
    async fn told(goes: bool) -> Result<Changes, String> {
        let (_dir, listener, connect) = socket();
        tokio::spawn(async move {
            let (mut stream, mut is_gone) = (greeted(&listener).await, false);
            while let Ok(b'Q') = stream.read_u8().await {
                let mut body = vec![0; stream.read_u32().await.unwrap() as usize - 4];
                stream.read_exact(&mut body).await.unwrap();
                let answer = match String::from_utf8_lossy(&body) {
                    text if text.starts_with("SELECT max") => row(&[("end", "0/300")]),
                    text if text.starts_with("COPY") => {
                        is_gone = goes;
                        let line = message(b'd', b"1663\t5\t7\t0\t9\tf\n");
                        [message(b'H', &[0; 3]), line, message(b'c', b""), message(b'C', b"COPY 1\0")]
                            .concat()
                    }
                    _ if is_gone => message(b'C', b"SELECT 0\0"),
                    _ => row(&[("start_lsn", "0/80"), ("end_lsn", "0/300")]),
                };
                stream.write_all(&[answer, message(b'Z', b"I")].concat()).await.unwrap();
            }
        });
        let mut client = Client::connect(&connect).await.unwrap();
        let origin = Origin { start: "0/100".into(), stop: "0/180".into(), ..Origin::example() };
        let basis = Basis { origin, files: BTreeMap::new() };
        ask(&mut client, &basis, Lsn::new(0x200), Timeline::FIRST).await.unwrap()
    }

    #[tokio::test]
    async fn what_a_summary_told_that_is_gone_since_is_not_all() {
        let all = told(false).await.unwrap();
        assert_eq!(all.relations[&(DEFAULT_SPACE, 5, 7, 0)].blocks, [9]);
        assert_eq!(told(true).await.unwrap_err(), "the server has no WAL summary of 0/100");
    }

    fn changes(lines: &[&str]) -> Changes {
        let mut changes = Changes::default();
        lines.iter().for_each(|line| changes.add(&line.replace(' ', "\t")).unwrap());
        changes.sort();
        changes
    }

    /// `k3` for three blocks that are kept, `r1` for one that is read; `all` if everything is to be read.
    fn of(changes: &Changes, name: &str, segment: u32, blocks: u64, before: Option<u64>) -> String {
        let relation = Relation { tablespace: 0, database: 5, file: 7, segment };
        let page = PAGE as u64;
        let Some(stretches) = changes.stretches(relation, name, blocks * page, before.map(|b| b * page))
        else {
            return "all".to_owned();
        };
        let mut at = 0;
        let text = |stretch: &Stretch| {
            let blocks = (stretch.end - at) / page;
            at = stretch.end;
            format!("{}{blocks}", if stretch.kept { 'k' } else { 'r' })
        };
        stretches.iter().map(text).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn only_what_changed_is_read() {
        let some = changes(&[
            "1663 5 7 0 3 f",
            "1663 5 7 0 4 f",
            "1663 5 7 0 3 f",
            "1663 5 7 0 131073 f",
            "1663 6 7 0 1 f",
        ]);
        assert_eq!(of(&some, "7", 0, 10, Some(10)), "k3 r2 k5");
        assert_eq!(of(&some, "7", 0, 12, Some(10)), "k3 r2 k5 r2", "it grew");
        assert_eq!(of(&some, "7", 0, 4, Some(10)), "k3 r1", "it shrank");
        assert_eq!(of(&some, "7.1", 1, 10, Some(10)), "k1 r1 k8");
        assert_eq!(of(&some, "7_vm", 0, 2, Some(2)), "k2", "another fork");
        assert_eq!(of(&some, "7_fsm", 0, 2, Some(2)), "all");
        assert_eq!(of(&some, "7", 0, 10, None), "all", "the last capture does not have it");
        assert_eq!(of(&some, "7", 0, 2, Some(1)), "k1 r1");
        assert_eq!(of(&some, "7", 0, 0, Some(5)), "");
        assert_eq!(of(&changes(&["1663 5 7 0 0 f"]), "7", 0, 1, Some(1)), "all", "more than nine tenths");
    }

    #[test]
    fn what_was_cut_off_or_made_anew_is_read() {
        let cut = changes(&["1663 5 7 0 4 t", "1663 5 7 0 2 t", "1663 5 7 0 1 f", "1663 5 7 0 9 f"]);
        assert_eq!(of(&cut, "7", 0, 4, Some(10)), "k1 r3", "whatever the summaries say of blocks behind");
        assert_eq!(of(&cut, "7.1", 1, 10, Some(10)), "all");
        assert_eq!(
            of(&changes(&["1663 5 7 0 0 t"]), "7", 0, 10, Some(10)),
            "all",
            "a new file of the same name"
        );
        let made = changes(&["1663 5 0 0 0 t"]);
        assert_eq!(of(&made, "7", 0, 10, Some(10)), "all");
        assert_eq!(of(&changes(&["1664 5 0 0 0 t"]), "7", 0, 10, Some(10)), "k10");
    }

    #[test]
    fn a_hole_between_summaries_is_found() {
        let at = Lsn::new;
        let gap = |list: &[(u64, u64)]| {
            let list: Vec<_> = list.iter().map(|(start, end)| (at(*start), at(*end))).collect();
            gap(&list, at(10), at(40)).map(Lsn::get)
        };
        assert_eq!(gap(&[(5, 20), (20, 40)]), None);
        assert_eq!(gap(&[(5, 20), (15, 18), (20, 50)]), None);
        assert_eq!(gap(&[(5, 20), (21, 40)]), Some(20));
        assert_eq!(gap(&[(11, 40)]), Some(10));
        assert_eq!(gap(&[(5, 39)]), Some(39));
        assert_eq!(gap(&[]), Some(10));
    }

    #[test]
    fn lines_that_are_none_are_refused() {
        for line in
            ["", "1\t2\t3\t0\t5", "1\t2\t3\t0\tx\tf", "1\t2\t3\t300\t5\tf", "1\t2\t3\t0\t4294967296\tf"]
        {
            assert_eq!(Changes::default().add(line), None, "{line}");
        }
    }
}
