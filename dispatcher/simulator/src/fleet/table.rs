//! One table of a fleet file: reads its keys one by one, and then knows which ones nobody asked for.

use std::ops::Range;

use toml_edit::{Item, TableLike};

use super::fault::{FleetFault, FleetProblem};

/// Keeps every fault, with its line.
#[derive(Debug)]
pub(super) struct Faults<'a> {
    text: &'a str,
    faults: Vec<FleetFault>,
}

impl<'a> Faults<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let faults = Vec::new();
        Self { text, faults }
    }

    pub(super) fn push(&mut self, at: Option<Range<usize>>, key: String, problem: FleetProblem) {
        let line = self.line(at);
        self.faults.push(FleetFault { line, key, problem });
    }

    /// As [`Self::push`], at a line that is known.
    pub(super) fn push_at(&mut self, line: usize, key: String, problem: FleetProblem) {
        self.faults.push(FleetFault { line, key, problem });
    }

    /// The line of a place, from 1; the first one when the place is not known.
    pub(super) fn line(&self, at: Option<Range<usize>>) -> usize {
        let before = self
            .text
            .as_bytes()
            .iter()
            .take(at.map_or(0, |range| range.start));
        before.filter(|byte| **byte == b'\n').count() + 1
    }

    /// A value as it is written, on one line; of what has no place of its own, its kind.
    fn found(&self, value: &Item) -> String {
        let written = value.span().and_then(|span| self.text.get(span));
        let written = written.unwrap_or(value.type_name());
        written
            .chars()
            .take(FOUND_CHARS_MAX)
            .collect::<String>()
            .replace('\n', " ")
    }

    pub(super) fn into_sorted(mut self) -> Vec<FleetFault> {
        self.faults.sort_by_key(|fault| fault.line);
        self.faults
    }
}

/// A table that is being read.
pub(super) struct TableReader<'t> {
    path: String,
    table: &'t dyn TableLike,
    span: Option<Range<usize>>,
    asked: Vec<&'static str>,
}

/// A value and where it stands.
pub(super) struct Found<T> {
    pub(super) value: T,
    pub(super) key: String,
    pub(super) span: Option<Range<usize>>,
}

impl<'t> TableReader<'t> {
    /// `path` is the table's place, such as `devices[0]`, or empty for the whole file.
    pub(super) fn new(path: String, table: &'t dyn TableLike, span: Option<Range<usize>>) -> Self {
        Self {
            path,
            table,
            span,
            asked: Vec::new(),
        }
    }

    /// The item of a key, if it is there.
    fn item(&mut self, key: &'static str) -> Option<Found<&'t Item>> {
        self.asked.push(key);
        let value = self.table.get(key)?;
        let span = self.table.key(key).and_then(toml_edit::Key::span);
        let key = self.dotted(key);
        Some(Found { value, key, span })
    }

    /// The value of a key as `read` takes it; a fault when it does not.
    pub(super) fn optional<T>(
        &mut self,
        faults: &mut Faults<'_>,
        key: &'static str,
        expected: &'static str,
        read: impl FnOnce(&Item) -> Option<T>,
    ) -> Option<Found<T>> {
        let Found { value, key, span } = self.item(key)?;
        let Some(value) = read(value) else {
            let found = faults.found(value);
            faults.push(span, key, FleetProblem::Value { found, expected });
            return None;
        };
        Some(Found { value, key, span })
    }

    /// As [`Self::optional`], and a fault when the key is not there.
    pub(super) fn required<T>(
        &mut self,
        faults: &mut Faults<'_>,
        key: &'static str,
        expected: &'static str,
        read: impl FnOnce(&Item) -> Option<T>,
    ) -> Option<Found<T>> {
        if self.table.get(key).is_none() {
            self.asked.push(key);
            faults.push(
                self.span.clone(),
                self.dotted(key),
                FleetProblem::Missing { expected },
            );
            return None;
        }
        self.optional(faults, key, expected, read)
    }

    /// The table of a key, if it is there.
    pub(super) fn table(&mut self, faults: &mut Faults<'_>, key: &'static str) -> Option<TableReader<'t>> {
        let Found { value, key, span } = self.item(key)?;
        let Some(table) = value.as_table_like() else {
            let (found, expected) = (faults.found(value), "a table");
            faults.push(span, key, FleetProblem::Value { found, expected });
            return None;
        };
        Some(TableReader::new(key, table, span))
    }

    /// Faults of the keys that nobody asked for. Last.
    pub(super) fn finish(self, faults: &mut Faults<'_>) {
        for (key, _) in self.table.iter().filter(|(key, _)| !self.asked.contains(key)) {
            let nearest = self.asked.iter().copied();
            let nearest = nearest.min_by_key(|known| strsim::damerau_levenshtein(known, key));
            let span = self.table.key(key).and_then(toml_edit::Key::span);
            let nearest = nearest.expect("every table has keys");
            faults.push(span, self.dotted(key), FleetProblem::UnknownKey { nearest });
        }
    }

    fn dotted(&self, key: &str) -> String {
        match self.path.as_str() {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }
}

/// A text that is not empty.
pub(super) fn text(item: &Item) -> Option<String> {
    item.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

/// A whole number of a range.
pub(super) fn whole(least: u64, most: u64) -> impl Fn(&Item) -> Option<u64> {
    move |item| {
        let number = u64::try_from(item.as_integer()?).ok()?;
        (least..=most).contains(&number).then_some(number)
    }
}

/// A whole number from 1 that fits 32 bits.
pub(super) fn count(item: &Item) -> Option<u32> {
    u32::try_from(item.as_integer()?).ok().filter(|count| *count > 0)
}

/// A number that is not below 0.
pub(super) fn number(item: &Item) -> Option<f64> {
    let whole = item.as_integer().and_then(|whole| i32::try_from(whole).ok());
    let number = item.as_float().or(whole.map(f64::from))?;
    (number.is_finite() && number >= 0.0).then_some(number)
}

/// A number above 0.
pub(super) fn above_zero(item: &Item) -> Option<f64> {
    number(item).filter(|number| *number > 0.0)
}

/// Bytes, from 1: a whole number, or a text such as `"4GiB"`.
pub(super) fn bytes(item: &Item) -> Option<u64> {
    let bytes = match item.as_str() {
        Some(text) => bytes_of(text)?,
        None => u64::try_from(item.as_integer()?).ok()?,
    };
    (bytes > 0).then_some(bytes)
}

fn bytes_of(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// Of a value that is wrong, what is told of it.
const FOUND_CHARS_MAX: usize = 60;
