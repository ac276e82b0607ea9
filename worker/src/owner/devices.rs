//! The engines of the worker's devices, and what they tell.

use flotilla_protocol::ModelName;
use flotilla_worker_core::kv::KvReport;
use flotilla_worker_core::ledger::DeviceIndex;
use futures_util::future::select_all;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::engine::Engine;

/// What runs each device, in the order of their indices.
pub(super) struct Devices {
    engines: Vec<Engine>,
    /// How the pools for keys and values stand.
    pools: Vec<watch::Receiver<KvReport>>,
    /// Ends with each engine of a device.
    ends: JoinSet<DeviceNews>,
    /// Ends with each engine of a model in parts.
    parts: JoinSet<ModelName>,
}

/// What an engine tells.
pub(super) enum DeviceNews {
    /// Its pool for keys and values stands like this.
    Pool { device: DeviceIndex, report: KvReport },
    /// The engine of this model in parts has ended.
    PartsEnded(ModelName),
    /// It has ended; by this fault, if it told one.
    Ended {
        device: DeviceIndex,
        fault: Option<String>,
    },
}

impl Devices {
    /// Takes engines, each with what gets its fault or is closed at its end.
    pub(super) fn new(started: Vec<(Engine, oneshot::Receiver<String>)>) -> Self {
        let (mut engines, mut ends) = (Vec::new(), JoinSet::new());
        for (index, (engine, ended)) in (0..).zip(started) {
            let device = DeviceIndex(index);
            engines.push(engine);
            ends.spawn(async move {
                let fault = ended.await.ok();
                DeviceNews::Ended { device, fault }
            });
        }
        Self {
            pools: engines.iter().map(Engine::kv).collect(),
            engines,
            ends,
            parts: JoinSet::new(),
        }
    }

    /// Watches for the end of the engine of a model in parts.
    pub(super) fn watch_parts(&mut self, model: ModelName, ended: oneshot::Receiver<String>) {
        self.parts.spawn(async move {
            // What broke it is told by its device.
            let _ = ended.await;
            model
        });
    }

    /// What runs a device.
    ///
    /// # Panics
    /// There is no such device.
    pub(super) fn engine(&self, device: DeviceIndex) -> Engine {
        self.engines[device.0 as usize].clone()
    }

    /// Whether any engine has not ended.
    pub(super) fn has_any(&self) -> bool {
        !self.ends.is_empty()
    }

    /// Waits for news. Cancelling loses nothing.
    pub(super) async fn next(&mut self) -> DeviceNews {
        let changes = (0..).zip(&mut self.pools).map(|(index, pool)| {
            Box::pin(async move {
                match pool.changed().await {
                    Ok(()) => DeviceNews::Pool {
                        device: DeviceIndex(index),
                        report: *pool.borrow_and_update(),
                    },
                    // Its engine is gone, which is told by itself.
                    Err(_) => std::future::pending().await,
                }
            })
        });
        tokio::select! {
            (news, ..) = select_all(changes) => news,
            Some(ended) = self.ends.join_next() => ended.expect(WAITS),
            Some(model) = self.parts.join_next() => DeviceNews::PartsEnded(model.expect(WAITS)),
        }
    }
}

const WAITS: &str = "who waits for an end neither panics nor is aborted";
