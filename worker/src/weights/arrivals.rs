//! Roots on their way here: one import for each, however many models and orders want it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flotilla_protocol::weights::Root;
use flotilla_weights::{Announcer, Arrival};
use tokio_util::task::AbortOnDropHandle;

use super::Weights;

/// The imports under way. Clones share them.
///
/// One that was begun goes on to its end, whether or not anybody waits for it any more: what has come is of use to the
/// next one who wants it. It has time limits of its own, and ends with the worker.
#[derive(Debug, Clone, Default)]
pub(super) struct Arrivals {
    /// Looked up by whoever wants a root and by its import when it ends, which are tasks of their own; held for
    /// nothing else, so no task of its own with a channel.
    under_way: Arc<Mutex<HashMap<Root, UnderWay>>>,
}

#[derive(Debug)]
struct UnderWay {
    arrival: Arrival,
    _task: AbortOnDropHandle<()>,
}

impl Weights {
    /// A root that is on its way, or begins to be.
    pub(super) fn arrival(&self, root: Root) -> Arrival {
        let mut under_way = self.arrivals.lock();
        // What broke has not taken itself out.
        if let Some(found) = under_way.get(&root).filter(|found| found.arrival.is_under_way()) {
            return found.arrival.clone();
        }
        let (arrival, announcer) = Arrival::begin(root);
        let task = tokio::spawn(self.clone().bring(root, announcer));
        let begun = UnderWay {
            arrival: arrival.clone(),
            _task: AbortOnDropHandle::new(task),
        };
        under_way.insert(root, begun);
        arrival
    }

    async fn bring(self, root: Root, announcer: Announcer) {
        let imported = self.importer.import_telling(root, &announcer).await;
        if let Ok(imported) = &imported {
            self.exports.hold(Arc::clone(imported.model.files())).await;
        }
        announcer.end(imported.map(|imported| imported.model));
        // The last thing it does, as its task goes with it.
        self.arrivals.lock().remove(&root);
    }
}

impl Arrivals {
    fn lock(&self) -> MutexGuard<'_, HashMap<Root, UnderWay>> {
        // Nothing that happens under the lock can be left half done.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
