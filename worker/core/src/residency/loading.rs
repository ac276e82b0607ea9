//! Loads under way: watched for their progress, ended when nobody waits any more.
//!
//! A load belongs to the model, so one request that leaves does not end it; the last one does, unless an order
//! stands. What was cancelled holds its pages until the caller says that it has ended. Who wants the model
//! meanwhile waits for its next load, or for this one if it ended before the word came.

use std::time::Duration;

use flotilla_protocol::fleet::LoadSource;
use flotilla_protocol::request::KeepAlive;
use flotilla_protocol::{ModelName, Moment};
use serde::{Deserialize, Serialize};

use super::fault::{LoadFailure, ModelFault};
use super::model::{Ready, State};
use super::shard::Home;
use super::{Action, LoadStall, RETRY_MIN, Residency, UnloadReason, Unloadable};

/// A load under way.
#[derive(Debug)]
pub(super) struct Loading {
    pub(super) home: Home,
    pub(super) stay: Stay,
    course: Course,
    watch: Watch,
}

/// What happens when a load ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stay {
    /// The model stays by its keep-alive.
    ByKeepAlive,
    /// It was ordered out meanwhile.
    LeaveWhenLoaded(UnloadReason),
}

#[derive(Debug)]
enum Course {
    Wanted,
    /// It was told to end because nobody waited.
    Cancelled,
    /// It was told to end because it did not advance. Nobody waits for it.
    Stalled {
        fault: ModelFault,
        retry_at: Moment,
    },
}

/// How far a load is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadProgress {
    /// Bytes of the weights that have been placed.
    pub placed_bytes: u64,
    /// The files that they come from.
    pub files: LoadFiles,
}

/// Where the files of a load are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadFiles {
    /// On their way from another worker. The copy has time limits of its own, which count the tries of several
    /// workers, and ends the load when it fails.
    OnTheirWay,
    /// All here, since then.
    Here(Moment),
}

/// How a load advances.
#[derive(Debug)]
struct Watch {
    /// The newest moment at which enough had come since the one before, and all bytes then.
    since: Moment,
    bytes_then: u64,
    bytes: u64,
}

impl Watch {
    /// Counts time and bytes from here on.
    fn begin(&mut self, since: Moment) {
        (self.since, self.bytes_then) = (since, self.bytes);
    }
}

impl Loading {
    pub(super) fn new(now: Moment, home: Home) -> Self {
        Self {
            home,
            stay: Stay::ByKeepAlive,
            course: Course::Wanted,
            watch: Watch {
                since: now,
                bytes_then: 0,
                bytes: 0,
            },
        }
    }

    /// Whether it was told to end.
    pub(super) fn is_ending(&self) -> bool {
        !matches!(self.course, Course::Wanted)
    }

    /// When it counts as stalled.
    pub(super) fn stalls_at(&self, limit: Option<LoadStall>) -> Option<Moment> {
        match self.course {
            Course::Wanted | Course::Cancelled => limit.map(|limit| self.watch.since + limit.window),
            Course::Stalled { .. } => None,
        }
    }

    /// Why who wants the model now is refused.
    pub(super) fn unloadable(&self, now: Moment) -> Option<Unloadable> {
        match &self.course {
            Course::Wanted | Course::Cancelled => None,
            Course::Stalled { fault, retry_at } => Some(Unloadable {
                fault: fault.clone(),
                retry_in: retry_at.since(now).max(RETRY_MIN),
            }),
        }
    }
}

impl Residency {
    /// A model's load is this far. One that is not under way has ended meanwhile.
    pub fn handle_load_progress(&mut self, now: Moment, model: &ModelName, progress: LoadProgress) {
        let Some(limit) = self.settings.load_stall else {
            return;
        };
        let entry = self.models.get_mut(model);
        let Some(State::Loading(loading)) = entry.map(|entry| &mut entry.state) else {
            return;
        };
        let (is_ending, watch) = (loading.is_ending(), &mut loading.watch);
        watch.bytes = progress.placed_bytes;
        if watch.bytes.saturating_sub(watch.bytes_then) >= limit.bytes_min {
            watch.begin(now);
        }
        // What was told to end waits for no files.
        match progress.files {
            LoadFiles::OnTheirWay if !is_ending => watch.begin(now),
            LoadFiles::Here(since) if !is_ending && since > watch.since => watch.begin(since),
            LoadFiles::OnTheirWay | LoadFiles::Here(_) => {}
        }
    }

    /// A load ended, after this much time.
    ///
    /// # Panics
    /// When none was under way.
    pub fn handle_loaded(
        &mut self,
        now: Moment,
        model: &ModelName,
        result: Result<(), LoadFailure>,
        load_time: Duration,
    ) {
        let ticket = self.next_ticket();
        let entry = self.model_mut(model);
        let state = std::mem::replace(&mut entry.state, State::Absent);
        let State::Loading(loading) = state else {
            panic!("a load of {model} is under way: {state:?}");
        };
        let source = self.host.end_load(model);
        match result {
            // What was loaded is lost with any of its devices.
            Ok(())
                if loading
                    .home
                    .devices()
                    .any(|device| self.device_faults.contains_key(&device)) =>
            {
                self.give_up_home(model, loading.home);
            }
            Ok(()) => {
                let entry = self.model_mut(model);
                entry.failures = 0;
                entry.load_time = Some(load_time);
                entry.loaded_from = Some(source);
                if source == LoadSource::Origin {
                    entry.origin_load_time = Some(load_time);
                }
                let ready = Ready::new(loading.home, ticket, KeepAlive::Ms(0));
                self.open(now, model, ready, loading.stay);
            }
            Err(failure) => {
                self.release(loading.home);
                match (loading.course, failure) {
                    // An order that came meanwhile tries again at once.
                    (Course::Stalled { .. }, _) if self.model_mut(model).is_wanted() => {}
                    (Course::Stalled { fault, retry_at }, _) => {
                        self.model_mut(model).state = State::Failed { fault, retry_at };
                    }
                    (Course::Wanted | Course::Cancelled, LoadFailure::Cancelled) => {}
                    (Course::Wanted | Course::Cancelled, LoadFailure::Broken(unusable)) => {
                        self.fail(now, model, unusable.into());
                    }
                }
            }
        }
        self.advance(now, model);
        self.settle(now);
    }

    /// Ends a load that nobody waits for; its pages come back when it has ended.
    pub(super) fn cancel_load(&mut self, now: Moment, model: &ModelName) {
        if let State::Loading(loading) = &mut self.model_mut(model).state {
            loading.course = Course::Cancelled;
            loading.watch.since = now;
            let model = model.clone();
            self.actions.push_back(Action::CancelLoad { model });
        }
    }

    /// Gives a load up that has not advanced for too long: everyone who waits learns it at once, though its pages
    /// come back only when it has ended.
    pub(super) fn give_up_load(&mut self, now: Moment, model: &ModelName) {
        let Some(LoadStall { window, .. }) = self.settings.load_stall else {
            return;
        };
        let State::Loading(loading) = &self.model_mut(model).state else {
            return;
        };
        let (placed_bytes, was_told) = (loading.watch.bytes, loading.is_ending());
        let fault = ModelFault::Stalled { placed_bytes, window };
        let retry_at = self.refuse_waiters(now, model, &fault);
        if let State::Loading(loading) = &mut self.model_mut(model).state {
            loading.course = Course::Stalled { fault, retry_at };
        }
        if !was_told {
            let model = model.clone();
            self.actions.push_back(Action::CancelLoad { model });
        }
    }
}
