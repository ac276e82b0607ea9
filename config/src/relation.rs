//! Settings that must go together.

use crate::schema::Reader;
use crate::{Dispatcher, Nats, Worker, WorkerEngine};

/// Notes credentials that exclude each other or lack their other half.
pub(crate) fn check_nats(nats: &Nats, reader: &mut Reader<'_>) {
    if nats.user.is_some() != nats.password.is_some() {
        let (key, other) = match nats.user {
            Some(_) => ("nats.user", "nats.password"),
            None => ("nats.password", "nats.user"),
        };
        reader.conflict(key, other, "set both or neither");
    }
    let ways = [
        ("nats.user", nats.user.is_some()),
        ("nats.token", nats.token.is_some()),
        ("nats.nkey_seed_file", nats.nkey_seed_file.is_some()),
        ("nats.creds_file", nats.creds_file.is_some()),
    ];
    let mut chosen = ways.iter().filter(|(_, is_set)| *is_set);
    if let (Some((first, _)), Some((second, _))) = (chosen.next(), chosen.next()) {
        reader.conflict(second, first, "keep one way to log in and unset the other");
    }
    let tls = &nats.tls;
    if tls.cert_file.is_some() != tls.key_file.is_some() {
        let (key, other) = match tls.cert_file {
            Some(_) => ("nats.tls.cert_file", "nats.tls.key_file"),
            None => ("nats.tls.key_file", "nats.tls.cert_file"),
        };
        reader.conflict(key, other, "set both or neither");
    }
}

/// Notes limits that contradict each other.
pub(crate) fn check_dispatcher(dispatcher: &Dispatcher, reader: &mut Reader<'_>) {
    if dispatcher.prompt_bytes_max > dispatcher.request_bytes_max {
        reader.conflict(
            "dispatcher.prompt_bytes_max",
            "dispatcher.request_bytes_max",
            "a prompt is part of its request; make it at most as large",
        );
    }
    let predictor = &dispatcher.policy.predictor;
    if predictor.quantile_low > predictor.quantile_high {
        reader.conflict(
            "dispatcher.policy.predictor.quantile_low",
            "dispatcher.policy.predictor.quantile_high",
            "the low prediction is the lower one; make it at most as large",
        );
    }
    if predictor.slot > predictor.window {
        reader.conflict(
            "dispatcher.policy.predictor.slot_s",
            "dispatcher.policy.predictor.window_s",
            "the window moves by slots; make one at most as long",
        );
    }
}

/// Notes a worker that would be counted as lost between two of its reports.
pub(crate) fn check_reports(dispatcher: &Dispatcher, worker: &Worker, reader: &mut Reader<'_>) {
    if dispatcher.worker_lost_after < worker.report_interval * 2 {
        reader.conflict(
            "dispatcher.worker_lost_after_ms",
            "worker.report_interval_ms",
            "one report may be lost; make it at least twice the interval",
        );
    }
}

/// Notes a simulated engine that nobody told how fast it is.
pub(crate) fn check_worker(worker: &Worker, reader: &mut Reader<'_>) {
    if worker.engine == WorkerEngine::Simulated && worker.simulated.profile.is_none() {
        reader.conflict(
            "worker.engine",
            "worker.simulated.profile",
            "a simulated device takes its times from a profile; give a file",
        );
    }
}
