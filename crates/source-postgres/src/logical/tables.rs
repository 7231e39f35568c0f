//! Tables of a dump: where they lie, what copies them out, and what was counted.

use super::describe::{DATA, Table};
use super::names::{component, ident, literal, qualified};
use super::tally::Counted;

/// The components of the directory of a table.
pub(super) fn table_path(database: &[&str; 2], table: &Table) -> Vec<String> {
    let own = [DATA.to_owned(), component(&table.schema), component(&table.name)];
    database.iter().map(|name| (*name).to_owned()).chain(own).collect()
}

/// The name of a part, by its number from 1 on.
pub(super) fn part_name(number: usize) -> String {
    format!("{number:04}")
}

/// The columns of a table, quoted.
pub(super) fn columns(table: &Table) -> String {
    table.columns.iter().map(|name| ident(name)).collect::<Vec<_>>().join(", ")
}

/// What copies a table out: one command, or several that each have a range of its pages.
pub(super) fn copies(table: &Table, pages: u64, part_pages: u64) -> Vec<String> {
    let (name, columns) = (qualified(&table.schema, &table.name), columns(table));
    let copy = |condition: &str| format!("COPY (SELECT {columns} FROM ONLY {name}{condition}) TO STDOUT");
    if let Some(condition) = &table.condition {
        return vec![copy(&format!(" {condition}"))];
    }
    if pages <= part_pages + part_pages / 2 {
        return vec![copy("")];
    }
    let tid = |page: u64| literal(&format!("({page},0)"));
    let starts: Vec<u64> = (0..pages.div_ceil(part_pages)).map(|part| part * part_pages).collect();
    let range = |(at, start): (usize, &u64)| match starts.get(at + 1) {
        Some(end) => copy(&format!(" WHERE ctid >= {}::tid AND ctid < {}::tid", tid(*start), tid(*end))),
        // Rows that are seen may lie behind what was the end a moment ago.
        None => copy(&format!(" WHERE ctid >= {}::tid", tid(*start))),
    };
    starts.iter().enumerate().map(range).collect()
}

/// Puts what was counted to the tables.
pub(super) fn settle(tables: &mut [Table], counted: &[(usize, Counted)]) {
    let mut sums = vec![None::<Counted>; tables.len()];
    for (at, part) in counted {
        sums[*at].get_or_insert_with(Counted::default).add(*part);
    }
    for (table, sum) in tables.iter_mut().zip(sums) {
        if let Some(sum) = sum {
            (table.rows, table.hash, table.bytes) = (Some(sum.rows), Some(sum.hash()), sum.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        Table {
            oid: 1,
            schema: "s".into(),
            name: "t".into(),
            columns: vec!["a".into(), "B".into()],
            rows: None,
            hash: None,
            bytes: 0,
            parts: 0,
            condition: None,
            root: None,
        }
    }

    #[test]
    fn ranges_of_pages_cover_a_table_once() {
        let whole = "COPY (SELECT \"a\", \"B\" FROM ONLY \"s\".\"t\") TO STDOUT";
        assert_eq!(copies(&table(), 15, 10), [whole]);
        let from = "COPY (SELECT \"a\", \"B\" FROM ONLY \"s\".\"t\" WHERE ctid >= ";
        assert_eq!(
            copies(&table(), 21, 10),
            [
                format!("{from}'(0,0)'::tid AND ctid < '(10,0)'::tid) TO STDOUT"),
                format!("{from}'(10,0)'::tid AND ctid < '(20,0)'::tid) TO STDOUT"),
                format!("{from}'(20,0)'::tid) TO STDOUT"),
            ]
        );
        let own = Table { condition: Some("WHERE a > 1".into()), ..table() };
        assert_eq!(copies(&own, 99, 10), [whole.replace(") TO", " WHERE a > 1) TO")]);
    }
}
