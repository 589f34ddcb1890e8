//! A table on the terminal: columns as wide as they need, numbers to the right.

use core::fmt;

/// Head of a column, and whether it holds numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    pub head: &'static str,
    pub right: bool,
}

/// A column of words.
pub const fn left(head: &'static str) -> Column {
    Column { head, right: false }
}

/// A column of numbers.
pub const fn right(head: &'static str) -> Column {
    Column { head, right: true }
}

#[derive(Debug)]
pub struct Table {
    columns: &'static [Column],
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(columns: &'static [Column]) -> Self {
        Self {
            columns,
            rows: Vec::new(),
        }
    }

    /// Adds a row; cells beyond the columns are not shown.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    fn line<'a>(
        &self,
        f: &mut fmt::Formatter<'_>,
        widths: &[usize],
        cells: impl Iterator<Item = &'a str>,
    ) -> fmt::Result {
        let mut line = String::new();
        for ((cell, column), &width) in cells.zip(self.columns).zip(widths) {
            if !line.is_empty() {
                line.push_str("  ");
            }
            line += &match column.right {
                true => format!("{cell:>width$}"),
                false => format!("{cell:<width$}"),
            };
        }
        writeln!(f, "{}", line.trim_end())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths: Vec<usize> = self.columns.iter().map(|c| c.head.len()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        self.line(f, &widths, self.columns.iter().map(|c| c.head))?;
        for row in &self.rows {
            self.line(f, &widths, row.iter().map(String::as_str))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_need() {
        const COLUMNS: &[Column] = &[left("NAME"), right("N"), left("WHERE")];
        let mut t = Table::new(COLUMNS);
        t.row(vec!["a".into(), "100".into(), "x".into()]);
        t.row(vec!["longer".into(), "2".into(), String::new()]);
        assert_eq!(
            t.to_string(),
            "NAME      N  WHERE\na       100  x\nlonger    2\n"
        );
    }
}
