//! Files of models on their way to this machine, for reports and for those who wait.

use std::collections::HashMap;
use std::time::Duration;

use flotilla_protocol::fleet::{FetchReport, FetchState};
use flotilla_protocol::{ModelName, Moment};
use flotilla_weights::FetchProgress;
use tokio::sync::watch;

/// How far the files of each model are for which somebody waits.
pub(crate) type FetchesUnderWay = watch::Receiver<HashMap<ModelName, FetchProgress>>;

/// All fetches of a worker.
#[derive(Debug, Default)]
pub(crate) struct Fetches {
    under_way: watch::Sender<HashMap<ModelName, FetchProgress>>,
    /// Those who wait for each.
    waiters: HashMap<ModelName, u32>,
    /// Those by order that ended lately, with their ends.
    ended: HashMap<ModelName, (Moment, FetchReport)>,
}

impl Fetches {
    /// For those who want to know.
    pub(crate) fn follow(&self) -> FetchesUnderWay {
        self.under_way.subscribe()
    }

    /// Somebody begins to wait for a model's files; what brings them tells how far it is.
    pub(crate) fn begin(&mut self, model: &ModelName) -> FetchProgress {
        *self.waiters.entry(model.clone()).or_default() += 1;
        let mut progress = FetchProgress::default();
        self.under_way.send_modify(|under_way| {
            progress = under_way.entry(model.clone()).or_default().clone();
        });
        progress
    }

    /// Somebody has stopped to wait.
    pub(crate) fn end(&mut self, model: &ModelName) {
        let waiters = self.waiters.get_mut(model).expect("who ends has begun");
        *waiters -= 1;
        if *waiters == 0 {
            self.waiters.remove(model);
            self.under_way.send_modify(|under_way| {
                under_way.remove(model);
            });
        }
    }

    /// Forgets how an earlier order ended.
    pub(crate) fn forget(&mut self, model: &ModelName) {
        self.ended.remove(model);
    }

    /// An order has ended: so many bytes are here, or why not.
    pub(crate) fn note(&mut self, now: Moment, model: &ModelName, end: Result<u64, String>) {
        let (bytes, bytes_total, state) = match end {
            Ok(bytes) => (bytes, Some(bytes), FetchState::Done),
            Err(reason) => (0, None, FetchState::Failed { reason }),
        };
        let report = FetchReport {
            model: model.clone(),
            bytes,
            bytes_total,
            state,
        };
        self.ended.retain(|_, (at, _)| now.since(*at) < TOLD_FOR);
        self.ended.insert(model.clone(), (now, report));
    }

    /// What is told of them: those that move bytes, and those by order that ended lately.
    pub(crate) fn reports(&self, now: Moment) -> Vec<FetchReport> {
        let under_way = self.under_way.borrow();
        let running = under_way.iter().filter_map(|(model, progress)| {
            let bytes_total = Some(progress.bytes_total()?);
            Some(FetchReport {
                model: model.clone(),
                bytes: progress.bytes(),
                bytes_total,
                state: FetchState::Running,
            })
        });
        let ended = self.ended.values().filter(|(at, _)| now.since(*at) < TOLD_FOR);
        let ended = ended.map(|(_, report)| report.clone());
        let ended = ended.filter(|report| !under_way.contains_key(&report.model));
        let mut reports: Vec<FetchReport> = running.chain(ended).collect();
        reports.sort_by(|a, b| a.model.cmp(&b.model));
        reports
    }
}

/// Long enough for whoever has ordered it to see the end in some report.
const TOLD_FOR: Duration = Duration::from_secs(60);
