//! What lives on a device's thread, or on that of a model in parts.

use std::ops::ControlFlow;
use std::sync::Arc;

use flotilla_protocol::ModelName;
use flotilla_worker_core::batch::Batch;
use flotilla_worker_core::kv;
use flotilla_worker_core::residency::Keep;
use flotilla_worker_engine::{CpuImage, CpuThreads};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::health::{self, Health, Round};
use super::model::EngineModel;
use super::pool::Pool;
use super::turns::SharedDevice;
use super::vectors::VectorsModel;
use super::{Command, EngineEnded, LoadedModel, RunEnd, VectorsEnd, end, turns, vectors};
use crate::error::chain;

pub(super) struct Thread {
    inbox: mpsc::Receiver<Command>,
    /// In the order of their arrival.
    models: Vec<Resident>,
    pool: Pool,
    health: Health,
    site: Site,
    /// What broke the device, as somebody else found out.
    fault: Option<String>,
}

/// What a thread runs its models on.
#[derive(Debug)]
pub(super) enum Site {
    /// A device of its own.
    Device(Arc<CpuThreads>),
    /// Devices of others, each in turns.
    Shared(Vec<SharedDevice>),
}

impl Site {
    /// Lets the devices be tried.
    ///
    /// # Errors
    /// What broke one of them.
    fn probe(&self) -> Result<(), String> {
        match self {
            Self::Device(threads) => health::probe(threads),
            Self::Shared(devices) => devices.iter().try_for_each(SharedDevice::probe),
        }
    }
}

/// A loaded model.
#[derive(Debug)]
struct Resident {
    name: ModelName,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Text(Box<EngineModel>),
    Vectors(Box<VectorsModel>),
}

impl Kind {
    fn new(name: &ModelName, loaded: LoadedModel) -> Self {
        match loaded {
            LoadedModel::Text(loaded) => Self::Text(Box::new(EngineModel::new(name, *loaded))),
            LoadedModel::Vectors(loaded) => Self::Vectors(Box::new(VectorsModel::new(name, *loaded))),
            LoadedModel::Simulated(_) => {
                unreachable!("who has this engine refuses simulated models when they are inspected")
            }
        }
    }
}

impl Resident {
    fn text(&mut self) -> Option<&mut EngineModel> {
        match &mut self.kind {
            Kind::Text(model) => Some(model),
            Kind::Vectors(_) => None,
        }
    }

    fn batch(&mut self) -> Option<&mut Batch> {
        self.text().map(EngineModel::batch)
    }
}

impl Thread {
    pub(super) fn new(inbox: mpsc::Receiver<Command>, pool: Pool, site: Site) -> Self {
        Self {
            inbox,
            models: Vec::new(),
            pool,
            health: Health::default(),
            site,
            fault: None,
        }
    }

    /// Runs until the worker ends.
    ///
    /// # Errors
    /// What broke the device, or one of those that it has turns on.
    pub(super) fn run(mut self) -> Result<(), String> {
        let mut has_work = false;
        while self.obey(has_work).is_continue() {
            if let Some(fault) = self.fault {
                return Err(fault);
            }
            has_work = false;
            for at in 0..self.models.len() {
                let round = self.advance(at);
                has_work |= round != Round::Idle;
                if round == Round::Lost {
                    return Err(EngineEnded.to_string());
                }
                self.health.note(round, || self.site.probe())?;
            }
            let batches = self.models.iter_mut().filter_map(Resident::batch);
            self.pool.tell(batches);
        }
        info!("the engine's thread ends");
        Ok(())
    }

    /// Carries out the commands that are there; with nothing to run it waits for one.
    fn obey(&mut self, has_work: bool) -> ControlFlow<()> {
        if !has_work {
            match self.inbox.blocking_recv() {
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

    /// Runs one step of a model.
    fn advance(&mut self, at: usize) -> Round {
        match &mut self.models[at].kind {
            Kind::Vectors(model) => return model.advance(),
            Kind::Text(model) => model.regulate(&mut self.pool.budget),
        }
        if kv::provide(&mut self.pool.budget, &mut self.models, at, Resident::batch) {
            self.change_memory();
        }
        let model = self.models[at].text();
        model.map_or(Round::Idle, |model| model.advance(&mut self.pool.budget))
    }

    /// Gives memory back that batches have given up, so that others can have it, and then gives it to these.
    fn change_memory(&mut self) {
        for model in self.models.iter_mut().filter_map(Resident::text) {
            model.unmap_memory();
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Install { model, loaded, done } => {
                self.unload(&model, Keep::Nowhere);
                let kind = Kind::new(&model, *loaded);
                self.models.push(Resident { name: model, kind });
                // Who asked and left finds the model loaded all the same.
                let _ = done.send(());
            }
            Command::Unload { model, keep, done } => {
                let images = self.unload(&model, keep);
                // As above; the images go with the answer.
                let _ = done.send(images);
            }
            Command::ResizeKv { pages } => {
                let batches = self.models.iter_mut().filter_map(Resident::batch);
                self.pool.resize(pages, batches);
                self.change_memory();
            }
            Command::Join { new } => match self.kind_mut(&new.model) {
                Some((Kind::Text(model), pool)) => model.join(*new, &mut pool.budget),
                // The model of that name became another kind of model since the lease was granted.
                Some((Kind::Vectors(_), _)) | None => end(&new.made, RunEnd::ModelGone),
            },
            Command::Embed { model, new } => match self.kind_mut(&model) {
                Some((Kind::Vectors(model), _)) => model.join(new),
                // As above.
                Some((Kind::Text(_), _)) | None => vectors::answer(new.reply, Err(VectorsEnd::ModelGone)),
            },
            Command::Leave { model, sequence } => {
                if let Some((Kind::Text(model), pool)) = self.kind_mut(&model) {
                    model.leave(sequence, &mut pool.budget);
                }
            }
            Command::StandAside { turn } => turns::stand_aside(turn),
            Command::Break { fault } => self.fault = Some(fault),
            Command::Drained => {}
        }
    }

    fn kind_mut(&mut self, model: &ModelName) -> Option<(&mut Kind, &mut Pool)> {
        let found = self.models.iter_mut().find(|resident| resident.name == *model);
        found.map(|resident| (&mut resident.kind, &mut self.pool))
    }

    /// Takes a model out, if it is there, with all its memory but the image that is to be kept.
    fn unload(&mut self, model: &ModelName, keep: Keep) -> Option<Vec<CpuImage>> {
        let at = self.models.iter().position(|resident| resident.name == *model)?;
        let taken_out = match self.models.remove(at).kind {
            Kind::Text(model) => {
                let decoder = model.close(&mut self.pool.budget);
                (keep == Keep::InHost).then(|| decoder.into_images())
            }
            Kind::Vectors(model) => (keep == Keep::InHost).then(|| {
                let image = model.into_encoder().into_image();
                image.map(|image| vec![image])
            }),
        };
        match taken_out? {
            Ok(images) => Some(images),
            Err(error) => {
                warn!(%model, error = chain(&error), "weights are not kept in host memory");
                None
            }
        }
    }
}
