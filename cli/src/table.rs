//! Tables of aligned columns.

use std::fmt;

/// Rows under a header. The last column is never padded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

/// A column's title and side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Column {
    title: &'static str,
    side: Side,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

/// A column of words.
pub(crate) const fn words(title: &'static str) -> Column {
    Column {
        title,
        side: Side::Left,
    }
}

/// A column of numbers.
pub(crate) const fn numbers(title: &'static str) -> Column {
    Column {
        title,
        side: Side::Right,
    }
}

impl Table {
    /// A table without rows.
    pub(crate) fn new(columns: impl IntoIterator<Item = Column>) -> Self {
        Self {
            columns: columns.into_iter().collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    ///
    /// # Panics
    /// When the row has more or fewer cells than the table has columns.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> = cells.into_iter().map(|cell| printable(&cell)).collect();
        assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        self.rows.push(cells);
    }

    fn widths(&self) -> Vec<usize> {
        let mut widths: Vec<usize> = self
            .columns
            .iter()
            .map(|column| column.title.chars().count())
            .collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        widths
    }

    fn write_row<'a>(
        &self,
        f: &mut fmt::Formatter<'_>,
        widths: &[usize],
        cells: impl Iterator<Item = &'a str>,
    ) -> fmt::Result {
        let mut line = String::new();
        for ((cell, column), &width) in cells.zip(&self.columns).zip(widths) {
            match column.side {
                Side::Left => line.push_str(&format!("{cell:<width$}  ")),
                Side::Right => line.push_str(&format!("{cell:>width$}  ")),
            }
        }
        writeln!(f, "{}", line.trim_end())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        self.write_row(f, &widths, self.columns.iter().map(|column| column.title))?;
        for row in &self.rows {
            self.write_row(f, &widths, row.iter().map(String::as_str))?;
        }
        Ok(())
    }
}

/// A cell that cannot move the cursor or break the line: names come from outside.
fn printable(cell: &str) -> String {
    cell.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// A value, or a dash where there is none.
pub(crate) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Bytes in the largest unit that leaves at least 1, with one decimal.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    // Precise enough for one decimal.
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A span of time in the unit that suits it.
pub(crate) fn span_ms(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        60_000..3_600_000 => format!("{} m {:02} s", ms / 60_000, ms % 60_000 / 1_000),
        _ => format!("{} h {:02} m", ms / 3_600_000, ms % 3_600_000 / 60_000),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new([words("MODEL"), numbers("LEASES"), words("STATE")]);
        table.row(["adder".into(), "2".into(), "ready".into()]);
        table.row(["a-longer-name".into(), "10".into(), String::new()]);
        assert_eq!(
            table.to_string(),
            "MODEL          LEASES  STATE\n\
             adder               2  ready\n\
             a-longer-name      10\n"
        );
    }

    #[test]
    fn control_characters_of_a_name_do_not_reach_the_terminal() {
        let mut table = Table::new([words("MODEL")]);
        table.row(["a\x1b[2Jb\n".into()]);
        assert_eq!(table.to_string(), "MODEL\na\u{fffd}[2Jb\u{fffd}\n");
    }

    #[test]
    fn sizes_and_spans_have_units_that_suit_them() {
        assert_eq!(
            [0, 1023, 1024, 1_583_296].map(bytes),
            ["0 B", "1023 B", "1.0 KiB", "1.5 MiB"]
        );
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        assert_eq!(
            [999, 1_000, 61_000, 3_660_000].map(span_ms),
            ["999 ms", "1.0 s", "1 m 01 s", "1 h 01 m"]
        );
    }

    proptest! {
        #[test]
        fn every_row_is_one_line_with_its_cells_in_order(cells in proptest::collection::vec("[a-z]{1,9}", 3)) {
            let mut table = Table::new([words("A"), numbers("B"), words("C")]);
            table.row(cells.clone());
            let text = table.to_string();
            let lines: Vec<&str> = text.lines().collect();
            prop_assert_eq!(lines.len(), 2);
            let found: Vec<&str> = lines[1].split_whitespace().collect();
            prop_assert_eq!(found, cells);
        }
    }
}
