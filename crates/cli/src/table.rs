//! Tables of text for people.

use keepwell_catalog::readable;

use crate::printer::Printer;

/// Which side of a column its text keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// For words.
    Left,
    /// For numbers.
    Right,
}

/// Rows of cells under headings; columns are as wide as they must be.
#[derive(Debug)]
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row of as many cells as there are columns. What a terminal would obey is escaped: names come from others.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.into_iter().map(readable).collect());
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Prints it, the heading in bold.
    pub fn print(&self, printer: &Printer) {
        for (n, line) in self.lines().into_iter().enumerate() {
            printer.line(if n == 0 { printer.strong(&line) } else { line });
        }
    }

    /// The heading, then one line per row; no trailing blanks.
    pub fn lines(&self) -> Vec<String> {
        let heads: Vec<String> = self.columns.iter().map(|(head, _)| (*head).to_owned()).collect();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|at| self.rows.iter().chain([&heads]).map(|row| width(&row[at])).max().unwrap_or(0))
            .collect();
        std::iter::once(&heads).chain(&self.rows).map(|row| self.render(row, &widths)).collect()
    }

    fn render(&self, row: &[String], widths: &[usize]) -> String {
        let mut line = String::new();
        for ((cell, (_, align)), column) in row.iter().zip(&self.columns).zip(widths) {
            let pad = " ".repeat(column - width(cell));
            match align {
                Align::Left => line.push_str(&format!("{cell}{pad}  ")),
                Align::Right => line.push_str(&format!("{pad}{cell}  ")),
            }
        }
        line.truncate(line.trim_end().len());
        line
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&[("id", Align::Left), ("size", Align::Right)]);
        table.row(vec!["a".into(), "1,000".into()]);
        table.row(vec!["long".into(), "2".into()]);
        assert_eq!(table.lines(), ["id     size", "a     1,000", "long      2"]);
    }

    #[test]
    fn no_cell_speaks_to_the_terminal() {
        let mut table = Table::new(&[("host", Align::Left)]);
        table.row(vec!["\u{1b}[2Jweb\n".into()]);
        assert_eq!(table.lines(), ["host", "\\u{1b}[2Jweb\\n"]);
    }
}
