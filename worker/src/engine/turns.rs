//! Turns of a model in parts on devices whose threads belong to others.
//!
//! Such a model has a thread of its own, which plans its steps and runs its stages, one device after the other. It
//! asks each device's thread for a turn, gets it between two steps of that device's own models, and the device's
//! thread stands aside until the turn is over: so a device never works on two things at once, and everybody's work
//! there goes on in between.
//!
//! Nobody waits in a circle, however many models share devices in whatever order. Who has a turn waits for no other:
//! it computes one stage and gives the turn back, and what the stage leaves has left the device by then. A device's
//! thread waits only for who has its turn. And who waits for a turn has none. A thread that ends, by a panic too,
//! gives its turn back, and one that waits for the turn of a device that has ended learns it.

use std::convert::Infallible;
use std::sync::Arc;

use flotilla_worker_engine::{CpuBackend, CpuThreads, DecoderModel, Step, StepError, StepOutput};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use super::health;
use super::{Command, EngineEnded};

/// A device as others use it, in turn with its own models.
#[derive(Debug, Clone)]
pub(crate) struct SharedDevice {
    pub(super) commands: mpsc::Sender<Command>,
    /// What its operations run on.
    pub(crate) threads: Arc<CpuThreads>,
}

/// The device's thread stands aside until this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _held: oneshot::Sender<Infallible>,
}

/// Why a step of a model in parts gave nothing.
#[derive(Debug, Error)]
pub(super) enum StepFault {
    /// The step itself.
    #[error(transparent)]
    Step(#[from] StepError),
    /// One of its devices is gone, and the model with it.
    #[error("a device of the model is gone")]
    Lost(#[from] EngineEnded),
}

impl SharedDevice {
    /// Waits for a turn.
    fn take_turn(&self) -> Result<Turn, EngineEnded> {
        let (turn, given) = oneshot::channel();
        let asked = self.commands.blocking_send(Command::StandAside { turn });
        asked.map_err(|_| EngineEnded)?;
        given.blocking_recv().map_err(|_| EngineEnded)
    }

    /// Lets the device be tried in a turn; when it is broken, its thread learns it.
    pub(super) fn probe(&self) -> Result<(), String> {
        let gone = |ended: EngineEnded| ended.to_string();
        let turn = self.take_turn().map_err(gone)?;
        let result = health::probe(&self.threads);
        drop(turn);
        if let Err(fault) = &result {
            let fault = fault.clone();
            if let Err(error) = self.commands.blocking_send(Command::Break { fault }) {
                debug!(%error, "a device ended before it was told that it is broken");
            }
        }
        result
    }
}

/// Stands aside for who asked, if it still wants to.
pub(super) fn stand_aside(turn: oneshot::Sender<Turn>) {
    let (held, over) = oneshot::channel();
    if turn.send(Turn { _held: held }).is_ok() {
        // Nothing is ever sent: it ends when the turn is dropped.
        let _ = over.blocking_recv();
    }
}

/// Runs a step of a model in parts, each of its stages in a turn on its device.
pub(super) fn run_in_turns<'m>(
    decoder: &'m mut DecoderModel<CpuBackend>,
    devices: &[SharedDevice],
    step: &Step<'_>,
) -> Result<StepOutput<'m>, StepFault> {
    let mut staged = decoder.begin(step)?;
    let (last, others) = devices.split_last().expect("a model in parts has devices");
    for device in others {
        let _turn = device.take_turn()?;
        staged.run_stage()?;
    }
    let _turn = last.take_turn()?;
    staged.run_stage()?;
    Ok(staged.wait()?)
}
