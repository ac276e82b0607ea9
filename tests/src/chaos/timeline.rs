//! What all parts wrote, in one order.

use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Result;

use super::clients::Told;
use super::plan::{Part, Planned};
use crate::{Fleet, server_name};

/// What the run itself did, and when.
#[derive(Debug, Default)]
pub(super) struct Notes {
    lines: Vec<(SystemTime, String)>,
    /// Faults, as they happened.
    pub(super) faults: Vec<(SystemTime, Planned)>,
    /// Processes that ended without a fault of theirs, with their exit codes.
    pub(super) ended: Vec<(Part, i32)>,
}

impl Notes {
    pub(super) fn tell(&mut self, text: &str) {
        self.lines.push((SystemTime::now(), text.to_owned()));
    }

    /// Long pauses of answers, at the times at which they ended.
    pub(super) fn pauses(&mut self, told: &[Told]) {
        let long = told.iter().filter(|told| told.pause > PAUSE_WORTH_A_LINE);
        self.lines.extend(long.map(|told| {
            let text = format!(
                "request {} paused for {:.2} s",
                told.request,
                told.pause.as_secs_f64()
            );
            (told.paused_until, text)
        }));
    }

    pub(super) fn fault(&mut self, planned: Planned) {
        self.faults.push((SystemTime::now(), planned));
        self.tell(&format!("FAULT {planned}"));
    }

    pub(super) fn ended(&mut self, part: Part, code: i32) {
        self.ended.push((part, code));
        self.tell(&format!("{part} ended by itself with {code}"));
    }
}

/// The faults, one a line.
impl fmt::Display for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, planned) in &self.faults {
            writeln!(f, "  {} {planned}", humantime::format_rfc3339_millis(*at))?;
        }
        Ok(())
    }
}

/// One line of a log; lines without a time have that of the line before.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Line {
    pub(super) at: SystemTime,
    pub(super) part: String,
    pub(super) text: String,
}

/// The lines of the dispatchers and workers, each part's in order.
pub(super) fn lines_of_roles(fleet: &Fleet) -> Vec<Line> {
    let processes = fleet.dispatchers.iter().chain(&fleet.workers);
    processes
        .flat_map(|process| lines(process.name(), &process.log()))
        .collect()
}

/// Writes what everybody wrote as one file.
pub(super) fn write(path: &Path, fleet: &Fleet, notes: &Notes) -> Result<()> {
    let mut all = lines_of_roles(fleet);
    for (number, server) in fleet.cluster.servers.iter().enumerate() {
        all.extend(lines(&server_name(number), &server.log()));
    }
    all.extend(notes.lines.iter().map(|(at, text)| Line {
        at: *at,
        part: "chaos".to_owned(),
        text: text.clone(),
    }));
    // Stable, so that what one part wrote within one tick of its clock keeps its order.
    all.sort_by_key(|line| line.at);
    let mut file = BufWriter::new(File::create(path)?);
    for Line { at, part, text } in all {
        writeln!(file, "{} {part:>6} {text}", humantime::format_rfc3339_micros(at))?;
    }
    file.flush()?;
    Ok(())
}

fn lines(part: &str, log: &str) -> Vec<Line> {
    let mut at = SystemTime::UNIX_EPOCH;
    let lines = log.lines().map(|text| {
        let (found, text) = split_time(text).unwrap_or((at, text));
        at = found;
        let (part, text) = (part.to_owned(), text.trim().to_owned());
        Line { at, part, text }
    });
    lines.collect()
}

/// The time at a line's beginning, as our processes write it or as the server does, and the rest.
fn split_time(line: &str) -> Option<(SystemTime, &str)> {
    if line.starts_with('[') {
        let (_, rest) = line.split_once("] ")?;
        let (date, rest) = rest.split_once(' ')?;
        let (time, rest) = rest.split_once(' ')?;
        let written = format!("{}T{time}Z", date.replace('/', "-"));
        return Some((humantime::parse_rfc3339(&written).ok()?, rest));
    }
    let (time, rest) = line.split_once(' ')?;
    Some((humantime::parse_rfc3339(time).ok()?, rest))
}

/// A worker that dies makes an answer pause for about as long.
const PAUSE_WORTH_A_LINE: Duration = Duration::from_secs(4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_our_processes_and_of_the_server_have_one_clock() {
        let ours = lines(
            "d0",
            "2026-11-21T15:07:00.250000Z  INFO run: leads epoch=3\n  and more",
        );
        let theirs = lines("server", "[77] 2026/11/21 15:07:00.250000 [INF] Server is ready");
        assert_eq!(ours[0].at, theirs[0].at);
        assert_eq!(
            ours[1].at, ours[0].at,
            "a line without a time belongs to the one before"
        );
        assert_eq!(ours[0].text, "INFO run: leads epoch=3");
        assert_eq!(theirs[0].text, "[INF] Server is ready");
    }
}
