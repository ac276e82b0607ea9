//! Following the catalog: what this machine has of it is offered to others, one model after the other.

use std::collections::HashMap;
use std::time::Duration;

use flotilla_protocol::ModelName;
use flotilla_protocol::weights::Root;
use flotilla_weights::RelayError;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info};

use super::Weights;
use crate::error::chain;
use crate::watch::Change;

impl Weights {
    /// Takes in changes until the watch ends, and sweeps the relay from time to time.
    pub(super) async fn follow(self, mut changes: mpsc::Receiver<Change>) {
        self.offer_stored().await;
        let mut offered: HashMap<ModelName, Root> = HashMap::new();
        let mut sweeps = interval(SWEEP_EVERY);
        sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                change = changes.recv() => match change {
                    Some(change) => self.take_in(change, &mut offered).await,
                    None => return,
                },
                _ = sweeps.tick() => self.sweep().await,
            }
        }
    }

    async fn take_in(&self, change: Change, offered: &mut HashMap<ModelName, Root>) {
        let (before, now) = match change {
            Change::Put(entry) => {
                if entry.root.is_some() && offered.get(&entry.name).copied() == entry.root {
                    return;
                }
                let before = offered.remove(&entry.name);
                let now = self.identify(&entry).await;
                offered.extend(now.map(|root| (entry.name.clone(), root)));
                (before, now)
            }
            Change::Removed(model) => (offered.remove(&model), None),
        };
        if let Some(root) =
            before.filter(|root| Some(*root) != now && !offered.values().any(|other| other == root))
        {
            self.exports.let_go(root).await;
        }
    }

    /// Removes what ended copies left in the relay, if no other worker does it at the moment.
    async fn sweep(&self) {
        let (registry, relay) = (&self.importer.registry, &self.importer.receiver.relay);
        let turn = match registry.take_turn_to_sweep(&self.importer.identity.worker).await {
            Ok(turn) => turn,
            Err(error) => {
                debug!(error = chain(&error), "nobody knows whose turn it is to sweep");
                return;
            }
        };
        if !turn {
            return;
        }
        let claimed = async || {
            registry.copies().await.map_err(|error| RelayError::Read {
                subject: "claims".to_owned(),
                source: error.into(),
            })
        };
        match relay.sweep(claimed).await {
            Ok(swept) if swept.messages == 0 => {}
            Ok(swept) => info!(
                copies = swept.copies,
                messages = swept.messages,
                "the relay was swept"
            ),
            Err(error) => debug!(error = chain(&error), "the relay could not be swept"),
        }
    }
}

/// What a copy leaves behind when its worker dies is gone within two of these.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
