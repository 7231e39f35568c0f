//! Files that were cut off since the last capture, and what a server says of them.
//!
//! A server merges its WAL summaries in the order in which the directory lists them, and to hear where a file was cut off makes
//! it forget the blocks behind that, so also those that a later summary has told it before (17.11,
//! `basebackup_incremental.c` and `blkreftable.c`). And pages that were added since and never written stand in no summary: they
//! would be taken from the last capture, whatever that has there. So what was cut off is not built on.

use std::collections::HashMap;

use keepwell_catalog::MapKey;

use super::basis::{Basis, origin_of};
use super::page::{PAGE, SEGMENT_PAGES};
use super::place::Relation;
use crate::lsn::Lsn;
use crate::wire::{Client, PgError};

/// The tablespace that `base` is.
const DEFAULT_SPACE: u32 = 1663;
const ACTION: &str = "ask which files were cut off since the last backup";

/// Where relations were cut off, by tablespace, database, number and fork. Of number 0 is a database that was made anew.
#[derive(Debug, Default)]
pub(super) struct CutOff(HashMap<Fork, Limit>);

/// Tablespace, database, number and fork of a relation.
type Fork = (u32, u32, u32, u8);

#[derive(Debug, Clone, Copy)]
struct Limit {
    /// From this block on nothing of before is there any more.
    block: u32,
    /// Whether only the last summary tells it: nothing that the server knows came later.
    is_last: bool,
}

impl CutOff {
    /// Asks for all that is summarized from `from` on, up to `to` if that is given.
    pub async fn ask(client: &mut Client, from: Lsn, to: Option<Lsn>) -> Result<Self, PgError> {
        let (last, before) = match to {
            Some(to) => (format!("bool_and(s.end_lsn >= '{to}')"), format!("AND s.start_lsn < '{to}' ")),
            None => ("false".to_owned(), String::new()),
        };
        let sql = format!(
            "SELECT c.reltablespace, c.reldatabase, c.relfilenode, c.relforknumber, min(c.relblocknumber), {last} \
             FROM pg_available_wal_summaries() s, pg_wal_summary_contents(s.tli, s.start_lsn, s.end_lsn) c \
             WHERE s.end_lsn > '{from}' {before}AND c.is_limit_block GROUP BY 1, 2, 3, 4"
        );
        let rows = client.query(&sql, ACTION).await?;
        let odd = || PgError::Protocol("its WAL summaries cannot be read".to_owned());
        let mut limits = HashMap::new();
        for row in 0..rows.rows.len() {
            let number = |column| rows.text(row, column).and_then(|text| text.parse::<u32>().ok());
            let read = || {
                let key = (number(0)?, number(1)?, number(2)?, u8::try_from(number(3)?).ok()?);
                Some((key, Limit { block: number(4)?, is_last: rows.text(row, 5)? == "t" }))
            };
            let (key, limit) = read().ok_or_else(odd)?;
            limits.insert(key, limit);
        }
        Ok(Self(limits))
    }

    /// Where a file was cut off, counted from its own first block; `None` if it was not.
    fn of(&self, space: Option<u32>, path: &[String]) -> Option<Limit> {
        let relation = Relation::of(space, path)?;
        let space = if relation.tablespace == 0 { DEFAULT_SPACE } else { relation.tablespace };
        let get = |file, fork| self.0.get(&(space, relation.database, file, fork));
        let limit = get(relation.file, fork(path.last()?)).or_else(|| get(0, 0))?;
        let first = relation.segment.checked_mul(SEGMENT_PAGES)?;
        let block = limit.block.saturating_sub(first);
        (block < SEGMENT_PAGES).then_some(Limit { block, ..*limit })
    }

    fn of_key(&self, key: &MapKey) -> Option<Limit> {
        let (space, path) = origin_of(key)?;
        self.of(space, &path)
    }

    /// What can still be built on.
    pub fn without(&self, basis: &Basis) -> Basis {
        let stays = basis.files.iter().filter(|(key, _)| self.of_key(key).is_none());
        let files = stays.map(|(key, size)| (key.clone(), *size)).collect();
        Basis { origin: basis.origin.clone(), files }
    }

    /// A file that is built on and was cut off before the last summary began: the server may have forgotten blocks of it.
    /// One of which nothing stayed it sends whole, whatever it remembers.
    pub fn forgotten<'b>(&self, basis: &'b Basis) -> Option<&'b MapKey> {
        let is_forgotten = |limit: Limit| limit.block > 0 && !limit.is_last;
        basis.files.keys().find(|key| self.of_key(key).is_some_and(is_forgotten))
    }

    /// How many of the `size` bytes that the last capture has of a file may still be there.
    pub fn still_there(&self, space: Option<u32>, path: &[String], size: u64) -> u64 {
        self.of(space, path).map_or(size, |limit| size.min(u64::from(limit.block) * PAGE as u64))
    }
}

/// The number that the server has for a fork.
fn fork(name: &str) -> u8 {
    let stem = name.split_once('.').map_or(name, |(stem, _)| stem);
    match stem.split_once('_').map_or("", |(_, fork)| fork) {
        "fsm" => 1,
        "vm" => 2,
        "init" => 3,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::basis::Origin;
    use super::*;
    use crate::testing::{played, row};

    fn key(path: &str) -> MapKey {
        MapKey::from_components(path.split('/')).unwrap()
    }

    fn basis(paths: &[&str]) -> Basis {
        let origin = Origin { stop: "0/100".into(), time: 0, ..Origin::example() };
        Basis { origin, files: paths.iter().map(|path| (key(path), 1 << 20)).collect::<BTreeMap<_, _>>() }
    }

    fn limits(limits: &[(Fork, u32, bool)]) -> CutOff {
        let limit = |(key, block, is_last): &((u32, u32, u32, u8), u32, bool)| {
            (*key, Limit { block: *block, is_last: *is_last })
        };
        CutOff(limits.iter().map(limit).collect())
    }

    #[test]
    fn what_was_cut_off_is_not_built_on_and_what_lies_before_is() {
        let all = [
            "data/base/5/100",
            "data/base/5/100.1",
            "data/base/5/100.2",
            "data/base/5/100_init",
            "data/base/5/200",
            "data/base/6/300",
            "data/global/1262",
            "tablespaces/9/PG_17_202406281/5/100",
        ];
        let cut = limits(&[
            ((1663, 5, 100, 0), SEGMENT_PAGES + 7, false),
            ((1663, 6, 0, 0), 0, false),
            ((9, 5, 100, 0), 3, true),
        ]);
        let left: Vec<String> = cut.without(&basis(&all)).files.keys().map(MapKey::display_path).collect();
        let expected =
            basis(&["data/base/5/100", "data/base/5/100_init", "data/base/5/200", "data/global/1262"]);
        assert_eq!(left, expected.files.keys().map(MapKey::display_path).collect::<Vec<_>>());
        // What only the last summary tells is told in order.
        assert_eq!(cut.forgotten(&basis(&["data/base/5/200", "tablespaces/9/PG_17_202406281/5/100"])), None);
        assert_eq!(cut.forgotten(&basis(&all)), Some(&key("data/base/5/100.1")));
        // Of these nothing stayed.
        assert_eq!(cut.forgotten(&basis(&["data/base/5/100.2", "data/base/6/300"])), None);
        let there = |space, path: &str| {
            cut.still_there(space, &path.split('/').map(str::to_owned).collect::<Vec<_>>(), 1 << 20)
        };
        assert_eq!(there(None, "base/5/100"), 1 << 20);
        assert_eq!(there(None, "base/5/100.1"), 7 * PAGE as u64);
        assert_eq!((there(None, "base/5/100.2"), there(None, "base/6/300")), (0, 0));
        assert_eq!(there(Some(9), "PG_17_202406281/5/100"), 3 * PAGE as u64);
    }

    #[tokio::test]
    async fn limits_are_read_as_the_server_tells_them() {
        let columns = |last| [("a", "1663"), ("b", "5"), ("c", "100"), ("d", "0"), ("e", "7"), ("f", last)];
        for (last, is_last) in [("t", true), ("f", false)] {
            let answers = vec![("SELECT c.reltablespace", row(&columns(last)))];
            let (_dir, mut client) = played(answers).await;
            let cut = CutOff::ask(&mut client, Lsn::new(0x28), Some(Lsn::new(0x100))).await.unwrap();
            let limit = cut.of(None, &["base".to_owned(), "5".to_owned(), "100".to_owned()]).unwrap();
            assert_eq!((limit.block, limit.is_last), (7, is_last));
        }
    }
}
