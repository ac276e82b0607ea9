//! How the queue and the fleet stand, as metrics.

use flotilla_dispatcher_core::{ModelOverview, Overview};
use flotilla_protocol::Class;
use flotilla_telemetry::Readings;

use super::{
    BOOKED, DEVICE_WORKERS, DEVICES, HELD, PROFILE_ALARM, PROFILE_FACTOR, QUEUE_GIVEN_UP, QUEUE_LATE,
    QUEUE_OLDEST, QUEUE_REQUESTS, QUEUE_SLACK, RESIDENT_WORKERS, RUNNING, VLLM_WAITING, WANTED, WORKERS,
};

/// Tells a scrape how everything stands.
pub(crate) fn publish(overview: &Overview, readings: &mut Readings) {
    readings.count(&WORKERS, &[], overview.workers as u64);
    readings.count(&HELD, &[], overview.held as u64);
    for model in &overview.models {
        publish_model(model, readings);
    }
    for kind in &overview.kinds {
        let device = [kind.kind.as_str()];
        readings.count(&DEVICE_WORKERS, &device, kind.workers as u64);
        readings.count(&DEVICES, &device, kind.devices as u64);
        readings.read(&BOOKED, &device, kind.booked);
        readings.count(&WANTED, &device, kind.wanted as u64);
    }
    for profile in &overview.profiles {
        let labels = [profile.model.as_str(), profile.kind.as_str()];
        readings.read(&PROFILE_FACTOR, &labels, profile.factor);
        readings.count(&PROFILE_ALARM, &labels, profile.is_alarming.into());
    }
}

fn publish_model(model: &ModelOverview, readings: &mut Readings) {
    let name = model.model.as_str();
    for (class, waiting) in Class::ALL.into_iter().zip(&model.waiting) {
        let labels = [name, class.as_str()];
        readings.count(&QUEUE_REQUESTS, &labels, waiting.count as u64);
        readings.read(&QUEUE_OLDEST, &labels, waiting.oldest.as_secs_f64());
        if let Some(slack_s) = waiting.slack_s {
            readings.read(&QUEUE_SLACK, &labels, slack_s);
        }
        readings.count(&VLLM_WAITING, &[name], waiting.count as u64);
    }
    readings.count(&QUEUE_GIVEN_UP, &[name], model.given_up as u64);
    readings.count(&QUEUE_LATE, &[name], model.late as u64);
    readings.count(&RUNNING, &[name], model.running as u64);
    readings.count(&RESIDENT_WORKERS, &[name], model.residents as u64);
}
