//! Everything that the command line prints: results to standard output, the rest to standard error.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;
use thiserror::Error;

use crate::table::Table;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Tables and lines for people.
    Text,
    /// JSON for programs.
    Json,
}

impl Format {
    /// As `--json` says.
    pub(crate) fn new(json: bool) -> Self {
        if json { Self::Json } else { Self::Text }
    }

    /// Prints a value: as pretty JSON, or as the tables that `table` makes of it.
    pub(crate) fn print<T: Serialize>(
        self,
        value: &T,
        tables: impl FnOnce(&T) -> Vec<Table>,
    ) -> anyhow::Result<()> {
        match self {
            Self::Json => line(serde_json::to_string_pretty(value)?),
            Self::Text => {
                let texts: Vec<String> = tables(value).iter().map(ToString::to_string).collect();
                text(&texts.join("\n"))
            }
        }
    }

    /// Prints one line: a value as compact JSON, or the sentence.
    pub(crate) fn print_line<T: Serialize>(self, value: &T, sentence: impl Display) -> anyhow::Result<()> {
        match self {
            Self::Json => line(serde_json::to_string(value)?),
            Self::Text => line(sentence),
        }
    }
}

/// Nobody reads standard output any more.
#[derive(Debug, Error)]
#[error("standard output is closed")]
pub(crate) struct OutputClosed(#[source] io::Error);

/// Writes a line to standard output.
pub(crate) fn line(content: impl Display) -> anyhow::Result<()> {
    text(&format!("{content}\n"))
}

/// Writes text to standard output as it is, at once.
pub(crate) fn text(content: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(content.as_bytes())
        .and_then(|()| out.flush())
        .map_err(OutputClosed)?;
    Ok(())
}

/// Writes a line to standard error.
pub(crate) fn note(content: &str) {
    raw_note(&format!("{content}\n"));
}

/// Asks for input on standard error, without ending the line.
pub(crate) fn prompt(content: &str) {
    raw_note(content);
}

/// One line of a terminal that is written over again and again; nothing where there is no terminal.
#[derive(Debug)]
pub(crate) struct StatusLine {
    is_terminal: bool,
    is_shown: bool,
}

impl StatusLine {
    /// On standard error.
    pub(crate) fn new() -> Self {
        Self {
            is_terminal: io::stderr().is_terminal(),
            is_shown: false,
        }
    }

    /// Shows this instead of what was there.
    pub(crate) fn show(&mut self, content: &str) {
        if self.is_terminal {
            raw_note(&format!("{START_OVER}{content}"));
            self.is_shown = true;
        }
    }

    /// Leaves an empty line behind.
    pub(crate) fn clear(&mut self) {
        if std::mem::take(&mut self.is_shown) {
            raw_note(START_OVER);
        }
    }
}

/// Colours a word for standard output; leaves it alone where that is no terminal or `NO_COLOR` is set.
pub(crate) fn coloured(word: &str, colour: Colour) -> String {
    let wanted = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    match wanted {
        true => format!("\x1b[{}m{word}\x1b[0m", colour.code()),
        false => word.to_owned(),
    }
}

/// A colour of the terminal's own palette.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colour {
    /// All is well.
    Green,
    /// Look here.
    Yellow,
    /// Mend this.
    Red,
}

impl Colour {
    fn code(self) -> u8 {
        match self {
            Self::Red => 31,
            Self::Green => 32,
            Self::Yellow => 33,
        }
    }
}

/// Standard error is where failures are told: one to write there has no other place to go.
fn raw_note(content: &str) {
    let mut out = io::stderr().lock();
    drop(out.write_all(content.as_bytes()));
    drop(out.flush());
}

/// Carriage return, erase the line.
const START_OVER: &str = "\r\x1b[2K";
