//! What was measured, what was aimed at, and how both are shown.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::commands::bench::Outcome;
use crate::table::{Table, numbers, words};

/// What takes time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Measure {
    Tcp,
    TcpRelay,
    DiskWrite,
    DiskRead,
    Blake3,
    StockPut,
    StockGet,
    StockPutGet,
    StockFiles,
    Put,
    Get,
    CopyDisk,
    CopyMemory,
    CopyFour,
    ReadyAfterCopy,
    ReadyWhileCopied,
    FirstTokenAfterCopy,
    FirstTokenWhileCopied,
    FirstSegment,
    VerifiedAfterSender,
    DoneAfterSender,
    DoneAfterSenderMemory,
    /// The 99th percentile of one answer.
    TokenGapIdle,
    TokenGapSending,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Count {
    /// How often each segment went into the relay for four receivers.
    UploadsForFour,
    /// The part of the model that comes again after a receiver was stopped in the middle.
    Resumed,
    /// The 99th percentile of the time between tokens of a worker that sends, over that of one that does not.
    TokenGapP99,
    /// The same of the median.
    TokenGapMedian,
    /// MiB/s that it sent meanwhile.
    SentBesideTokens,
}

/// All rounds of everything.
#[derive(Debug, Default)]
pub(super) struct Samples {
    seconds: BTreeMap<Measure, Vec<f64>>,
    counts: BTreeMap<Count, Vec<f64>>,
}

/// The figures of `flotilla bench weights`.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    model_bytes: u64,
    segments: usize,
    rounds: u16,
    measures: Vec<Row>,
    targets: Vec<Target>,
}

#[derive(Debug, Serialize)]
struct Row {
    measure: &'static str,
    /// Of all rounds.
    best_s: f64,
    median_s: f64,
    /// The model's bytes over the best, in gigabytes (10^9) a second, where they were moved.
    gb_per_s: Option<f64>,
    /// Their speed over that of TCP through one relay.
    vs_tcp_relay: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Target {
    target: &'static str,
    wanted: String,
    measured: f64,
    met: bool,
}

impl Measure {
    const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP over loopback",
            Self::TcpRelay => "TCP through one relay",
            Self::DiskWrite => "disk: write and sync",
            Self::DiskRead => "disk: read",
            Self::Blake3 => "BLAKE3, one core",
            Self::StockPut => "stock put",
            Self::StockGet => "stock get",
            Self::StockPutGet => "stock put, then get",
            Self::StockFiles => "stock put, then get, file to file",
            Self::Put => "put of all segments",
            Self::Get => "verified get of all segments",
            Self::CopyDisk => "copy 1 to 1, store on disk",
            Self::CopyMemory => "copy 1 to 1, store in memory",
            Self::CopyFour => "copy 1 to 4",
            Self::ReadyAfterCopy => "ask to model ready, loaded after the copy",
            Self::ReadyWhileCopied => "ask to model ready, placed while it is copied",
            Self::FirstTokenAfterCopy => "ask to first token, loaded after the copy",
            Self::FirstTokenWhileCopied => "ask to first token, placed while it is copied",
            Self::FirstSegment => "ask to first verified segment",
            Self::VerifiedAfterSender => "last segment verified after the sender's last put",
            Self::DoneAfterSender => "receiver done after the sender's last put, disk",
            Self::DoneAfterSenderMemory => "receiver done after the sender's last put, memory",
            Self::TokenGapIdle => "between tokens, p99 of an answer",
            Self::TokenGapSending => "the same while weights are sent",
        }
    }

    const fn moves_the_model(self) -> bool {
        !matches!(
            self,
            Self::FirstTokenAfterCopy
                | Self::FirstTokenWhileCopied
                | Self::FirstSegment
                | Self::VerifiedAfterSender
                | Self::DoneAfterSender
                | Self::DoneAfterSenderMemory
                | Self::TokenGapIdle
                | Self::TokenGapSending
        )
    }
}

impl Samples {
    /// What something took in one round.
    pub(super) fn add(&mut self, measure: Measure, seconds: f64) {
        self.seconds.entry(measure).or_default().push(seconds);
    }

    /// What was counted in one round.
    pub(super) fn count(&mut self, count: Count, found: f64) {
        self.counts.entry(count).or_default().push(found);
    }

    fn best(&self, measure: Measure) -> Option<f64> {
        self.seconds.get(&measure)?.iter().copied().min_by(f64::total_cmp)
    }

    fn most(&self, count: Count) -> Option<f64> {
        self.counts.get(&count)?.iter().copied().max_by(f64::total_cmp)
    }

    /// How many times as fast as the second the first is, by the best of each.
    fn speed_over(&self, measure: Measure, other: Measure) -> Option<f64> {
        Some(self.best(other)? / self.best(measure)?)
    }

    /// Everything, with ratios and targets. Times count by their best round, counts by their worst.
    pub(super) fn figures(&self, model_bytes: u64, segments: usize, rounds: u16) -> Figures {
        Figures {
            model_bytes,
            segments,
            rounds,
            measures: self.rows(model_bytes),
            targets: self.targets(),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "bytes stay far below 2^52")]
    fn rows(&self, model_bytes: u64) -> Vec<Row> {
        let row = |(measure, seconds): (&Measure, &Vec<f64>)| {
            let mut seconds = seconds.clone();
            seconds.sort_by(f64::total_cmp);
            let moves = measure.moves_the_model();
            Row {
                measure: measure.name(),
                best_s: seconds[0],
                median_s: seconds[seconds.len() / 2],
                gb_per_s: moves.then_some(model_bytes as f64 / seconds[0] / 1e9),
                vs_tcp_relay: self.speed_over(*measure, Measure::TcpRelay).filter(|_| moves),
            }
        };
        self.seconds.iter().map(row).collect()
    }

    /// The ratios that targets are set for, and some that tell what they are made of.
    pub(super) fn ratios(&self) -> Map<String, Value> {
        let ratios = [
            (
                "put_vs_tcp_relay",
                self.speed_over(Measure::Put, Measure::TcpRelay),
            ),
            (
                "get_vs_tcp_relay",
                self.speed_over(Measure::Get, Measure::TcpRelay),
            ),
            (
                "copy_to_disk_vs_stock_put_get",
                self.speed_over(Measure::CopyDisk, Measure::StockPutGet),
            ),
            (
                "copy_to_disk_vs_stock_files",
                self.speed_over(Measure::CopyDisk, Measure::StockFiles),
            ),
            (
                "copy_to_memory_vs_stock_put_get",
                self.speed_over(Measure::CopyMemory, Measure::StockPutGet),
            ),
            (
                "copy_to_disk_vs_disk_write",
                self.speed_over(Measure::CopyDisk, Measure::DiskWrite),
            ),
            (
                "ready_while_copied_vs_after_copy",
                self.speed_over(Measure::ReadyWhileCopied, Measure::ReadyAfterCopy),
            ),
            (
                "first_token_while_copied_vs_after_copy",
                self.speed_over(Measure::FirstTokenWhileCopied, Measure::FirstTokenAfterCopy),
            ),
            (
                "copy_to_four_vs_one",
                self.speed_over(Measure::CopyFour, Measure::CopyMemory),
            ),
            ("token_gap_p99_sending_vs_idle", self.most(Count::TokenGapP99)),
            (
                "token_gap_median_sending_vs_idle",
                self.most(Count::TokenGapMedian),
            ),
            ("mib_per_s_sent_beside_tokens", self.most(Count::SentBesideTokens)),
        ];
        let known = ratios
            .into_iter()
            .filter_map(|(name, ratio)| Some((name.to_owned(), json!(ratio?))));
        known.collect()
    }

    fn targets(&self) -> Vec<Target> {
        let at_least = |target, wanted: f64, measured: Option<f64>| {
            measured.map(|measured| Target {
                target,
                wanted: format!(">= {wanted}"),
                measured,
                met: measured >= wanted,
            })
        };
        let at_most = |target, wanted: f64, measured: Option<f64>| {
            measured.map(|measured| Target {
                target,
                wanted: format!("<= {wanted}"),
                measured,
                met: measured <= wanted,
            })
        };
        let targets = [
            at_least(
                "put over TCP through one relay",
                0.6,
                self.speed_over(Measure::Put, Measure::TcpRelay),
            ),
            at_least(
                "verified get over the same",
                0.45,
                self.speed_over(Measure::Get, Measure::TcpRelay),
            ),
            at_least(
                "copy 1 to 1 to disk over stock put, then get",
                3.0,
                self.speed_over(Measure::CopyDisk, Measure::StockPutGet),
            ),
            at_most(
                "receiver done after its sender, s",
                0.3,
                self.best(Measure::DoneAfterSender),
            ),
            at_most(
                "first segment verified after the ask, s",
                0.1,
                self.best(Measure::FirstSegment),
            ),
            at_most(
                "uploads of each segment for 4 receivers",
                1.0,
                self.most(Count::UploadsForFour),
            ),
            at_most(
                "part that comes again after a stop at half",
                0.55,
                self.most(Count::Resumed),
            ),
            at_most(
                "p99 between tokens while sending, over idle",
                1.1,
                self.most(Count::TokenGapP99),
            ),
        ];
        targets.into_iter().flatten().collect()
    }
}

/// The measures, the targets, and the machine.
pub(crate) fn tables(outcome: &Outcome<Figures>) -> Vec<Table> {
    let figures = &outcome.figures;
    vec![
        measures(&figures.measures),
        targets(&figures.targets),
        circumstances(outcome),
    ]
}

fn measures(rows: &[Row]) -> Table {
    let mut table = Table::new([
        words("MEASURE"),
        numbers("BEST, S"),
        numbers("MEDIAN, S"),
        numbers("GB/S"),
        numbers("VS TCP RELAY"),
    ]);
    let shown = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
    };
    for row in rows {
        table.row([
            row.measure.to_owned(),
            shown(Some(row.best_s), 3),
            shown(Some(row.median_s), 3),
            shown(row.gb_per_s, 2),
            shown(row.vs_tcp_relay, 2),
        ]);
    }
    table
}

fn targets(targets: &[Target]) -> Table {
    let mut table = Table::new([words("TARGET"), numbers("WANTED"), numbers("MEASURED"), words("")]);
    for target in targets {
        let met = if target.met { "met" } else { "missed" };
        table.row([
            target.target.to_owned(),
            target.wanted.clone(),
            format!("{:.3}", target.measured),
            met.to_owned(),
        ]);
    }
    table
}

fn circumstances(outcome: &Outcome<Figures>) -> Table {
    let mut table = Table::new([words("FIGURE"), words("VALUE")]);
    for (name, ratio) in &outcome.ratios {
        table.row([
            name.clone(),
            ratio
                .as_f64()
                .map_or_else(String::new, |ratio| format!("{ratio:.2}")),
        ]);
    }
    let figures = &outcome.figures;
    let rest = [
        ("model_mib", (figures.model_bytes >> 20).to_string()),
        ("segments", figures.segments.to_string()),
        ("rounds", figures.rounds.to_string()),
        ("machine", outcome.machine.clone()),
        ("commit", outcome.commit.clone().unwrap_or_else(|| "-".to_owned())),
    ];
    for (name, value) in rest {
        table.row([name.to_owned(), value]);
    }
    table
}
