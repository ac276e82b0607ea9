//! What a dispatcher tells whether it leads or not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_nats::connection::State;
use flotilla_client::Connection;
use flotilla_protocol::Epoch;
use flotilla_telemetry::{Readings, Source};

use super::{EPOCH, LEADER, NATS_CONNECTED, NATS_CONNECTS, NATS_IN_BYTES, NATS_OUT_BYTES, TERMS};

/// Whether this dispatcher leads; written by its main task, read by scrapes.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    leads: AtomicBool,
    epoch: AtomicU64,
}

/// Leadership that ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Leads(Arc<Standing>);

impl Standing {
    /// It leads from now on.
    pub(crate) fn lead(self: &Arc<Self>, epoch: Epoch) -> Leads {
        TERMS.increment(&[], 1);
        self.epoch.store(epoch.0, Ordering::Relaxed);
        self.leads.store(true, Ordering::Relaxed);
        Leads(Arc::clone(self))
    }
}

impl Drop for Leads {
    fn drop(&mut self) {
        self.0.leads.store(false, Ordering::Relaxed);
    }
}

/// Answers scrapes for as long as it is left running.
pub(crate) async fn tell_standing(mut source: Source, connection: Connection, standing: Arc<Standing>) {
    loop {
        let ask = source.asked().await;
        let (connection, standing) = (connection.clone(), Arc::clone(&standing));
        ask.answer(move |readings| publish(readings, &connection, &standing));
    }
}

fn publish(readings: &mut Readings, connection: &Connection, standing: &Standing) {
    readings.count(&LEADER, &[], standing.leads.load(Ordering::Relaxed).into());
    readings.count(&EPOCH, &[], standing.epoch.load(Ordering::Relaxed));
    let is_up = connection.client.connection_state() == State::Connected;
    readings.count(&NATS_CONNECTED, &[], is_up.into());
    let traffic = connection.client.statistics();
    readings.count(&NATS_CONNECTS, &[], traffic.connects.load(Ordering::Relaxed));
    readings.count(&NATS_IN_BYTES, &[], traffic.in_bytes.load(Ordering::Relaxed));
    readings.count(&NATS_OUT_BYTES, &[], traffic.out_bytes.load(Ordering::Relaxed));
}
