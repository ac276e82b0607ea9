//! A simulated device: the batches are real, a step takes the time that a profile says, and tokens are made up.
//!
//! One task for a device, since it never computes: hundreds of devices need no more threads than one. It runs a
//! step of one of its models after the other, in the order of their names, as the engine's thread does.
//!
//! A step that follows another one begins when that one was due to end, not when its end was noticed, so that
//! late timers do not add up. A request that joined meanwhile was not there then: a step never begins before
//! the newest request of the device has joined. While a step runs, commands are carried out as they come; its
//! end is not moved by them.

mod drawing;
mod model;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use flotilla_protocol::ModelName;
use flotilla_worker_core::batch::Batch;
use flotilla_worker_core::kv;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

pub(crate) use drawing::Drawing;
use model::SimulatedRuns;

use super::pool::Pool;
use super::{Command, Engine, LoadedModel, RunEnd, VectorsEnd, end, vectors};
use crate::simulated::Timing;

/// A simulated model in device memory.
#[derive(Debug)]
pub(crate) struct LoadedSimulated {
    /// Its batch.
    pub(crate) batch: Batch,
    /// How fast it is.
    pub(crate) timing: Arc<Timing>,
    /// What it answers.
    pub(crate) drawing: Drawing,
}

impl Engine {
    /// Starts the task of a simulated device. The receiver is closed when the task ends, for whatever reason.
    pub(crate) fn start_simulated() -> (Self, oneshot::Receiver<String>) {
        let (handle, inbox, pool) = Self::with_inbox(Pool::new());
        let (alive, ended) = oneshot::channel();
        let device = Device {
            inbox,
            models: Vec::new(),
            pool,
            stepped: None,
            joined: None,
            is_late: false,
        };
        tokio::spawn(async move {
            // Dropped when the task ends, by a panic too: that is the notice.
            let _alive = alive;
            device.run().await;
        });
        (handle, ended)
    }
}

/// What lives in the task.
struct Device {
    inbox: mpsc::Receiver<Command>,
    /// By name.
    models: Vec<Resident>,
    pool: Pool,
    /// The model that had the last step.
    stepped: Option<ModelName>,
    /// When the newest request joined.
    joined: Option<Instant>,
    /// It was told that steps end late.
    is_late: bool,
}

/// A loaded model.
struct Resident {
    name: ModelName,
    runs: SimulatedRuns,
}

impl Resident {
    fn batch(&mut self) -> Option<&mut Batch> {
        Some(self.runs.batch())
    }
}

impl Device {
    async fn run(mut self) {
        // When the last step was due to end, if the next one can follow at once.
        let mut due: Option<Instant> = None;
        while self.obey(due.is_none()).await.is_continue() {
            let begun = self.begin();
            self.tell_kv();
            let Some((model, duration)) = begun else {
                due = None;
                continue;
            };
            let begins = match (due, self.joined) {
                (Some(due), Some(joined)) => due.max(joined),
                (Some(due), None) => due,
                (None, _) => Instant::now(),
            };
            let ends = begins + duration;
            if self.pass(ends).await.is_break() {
                break;
            }
            self.note_lateness(ends);
            if let Some(at) = self.place_of(&model) {
                self.models[at].runs.complete(&mut self.pool.budget);
            }
            self.stepped = Some(model);
            due = Some(ends);
        }
        info!("a simulated device ends");
    }

    /// Begins the step of the next model that has one.
    fn begin(&mut self) -> Option<(ModelName, Duration)> {
        let stepped = self.stepped.as_ref();
        let first = self.models.partition_point(|model| Some(&model.name) <= stepped);
        let count = self.models.len();
        (first..first + count).find_map(|place| self.begin_at(place % count))
    }

    fn begin_at(&mut self, at: usize) -> Option<(ModelName, Duration)> {
        self.models[at].runs.regulate(&mut self.pool.budget);
        kv::provide(&mut self.pool.budget, &mut self.models, at, Resident::batch);
        let Resident { name, runs } = &mut self.models[at];
        Some((name.clone(), runs.begin()?))
    }

    fn tell_kv(&mut self) {
        let batches = self.models.iter_mut().filter_map(Resident::batch);
        self.pool.tell(batches);
    }

    fn place_of(&self, model: &ModelName) -> Option<usize> {
        self.models
            .binary_search_by(|resident| resident.name.cmp(model))
            .ok()
    }

    fn unload(&mut self, model: &ModelName) {
        if let Some(at) = self.place_of(model) {
            self.models.remove(at).runs.close(&mut self.pool.budget);
        }
    }

    /// Carries out the commands that are there; with nothing to run it waits for one.
    async fn obey(&mut self, is_idle: bool) -> ControlFlow<()> {
        if is_idle {
            match self.inbox.recv().await {
                Some(command) => self.carry_out(command),
                None => return ControlFlow::Break(()),
            }
        }
        loop {
            match self.inbox.try_recv() {
                Ok(command) => self.carry_out(command),
                Err(mpsc::error::TryRecvError::Empty) => return ControlFlow::Continue(()),
                Err(mpsc::error::TryRecvError::Disconnected) => return ControlFlow::Break(()),
            }
        }
    }

    /// Lets time pass until a step ends.
    async fn pass(&mut self, ends: Instant) -> ControlFlow<()> {
        let end = sleep_until(ends);
        tokio::pin!(end);
        loop {
            tokio::select! {
                biased;
                () = &mut end => return ControlFlow::Continue(()),
                command = self.inbox.recv() => match command {
                    Some(command) => self.carry_out(command),
                    None => return ControlFlow::Break(()),
                },
            }
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Install { model, loaded, done } => {
                let LoadedModel::Simulated(loaded) = *loaded else {
                    unreachable!("who simulates its device opens every model as a simulated one")
                };
                self.unload(&model);
                let at = self.models.partition_point(|resident| resident.name < model);
                let runs = SimulatedRuns::new(&model, *loaded);
                self.models.insert(at, Resident { name: model, runs });
                // Who asked and left finds the model loaded all the same.
                let _ = done.send(());
            }
            Command::Unload { model, done, .. } => {
                self.unload(&model);
                // As above.
                let _ = done.send(None);
            }
            Command::ResizeKv { pages } => {
                let batches = self.models.iter_mut().filter_map(Resident::batch);
                self.pool.resize(pages, batches);
                self.tell_kv();
            }
            Command::Join { new } => match self.place_of(&new.model) {
                Some(at) => {
                    self.joined = Some(Instant::now());
                    self.models[at].runs.join(*new, &mut self.pool.budget);
                }
                None => end(&new.made, RunEnd::ModelGone),
            },
            Command::Embed { new, .. } => vectors::answer(new.reply, Err(VectorsEnd::ModelGone)),
            Command::Leave { model, sequence } => {
                if let Some(at) = self.place_of(&model) {
                    self.models[at].runs.leave(sequence, &mut self.pool.budget);
                }
            }
            Command::StandAside { .. } | Command::Break { .. } => {
                unreachable!("simulated models are never in parts")
            }
            Command::Drained => {}
        }
    }

    /// Says once that the machine is too slow to simulate so much: the times of answers mean little then.
    fn note_lateness(&mut self, due: Instant) {
        let late = due.elapsed();
        if late > LATE_MAX && !self.is_late {
            self.is_late = true;
            warn!(
                late_ms = late.as_millis(),
                "a simulated step ended late; this machine is too busy for so many devices"
            );
        }
    }
}

/// Steps take milliseconds to seconds, and timers are some milliseconds late at most where there is time left.
const LATE_MAX: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests;
