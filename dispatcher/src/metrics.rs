//! The dispatcher's metrics: names, help, buckets. Where they are counted is in the modules below.

mod counted;
mod jetstream;
mod observed;
mod overview;
mod server_state;
mod standing;

use flotilla_dispatcher_core::Stats;
use flotilla_protocol::Class;
use flotilla_protocol::admin::Reconciliation;
use flotilla_telemetry::{Buckets, SECONDS, catalogue};

pub(crate) use counted::Counted;
pub use jetstream::METRICS as JETSTREAM_METRICS;
pub(crate) use observed::Observed;
pub(crate) use overview::publish;
pub(crate) use server_state::tell_server_state;
pub(crate) use standing::{Standing, tell_standing};

/// What one input to the core costs.
const DECISION: Buckets = Buckets {
    upper: &[
        1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.1, 1.0,
    ],
    reason: "a decision takes tens of microseconds, the longest part of a review a few milliseconds; what is above is a fault",
};

/// Time to spare.
const SLACK: Buckets = Buckets {
    upper: &[-600.0, -60.0, -10.0, -1.0, -0.1, 0.0, 0.1, 1.0, 10.0, 60.0, 600.0],
    reason: "on both sides of 0, where a target is missed, by decades of seconds",
};

/// What came over what was expected.
const RATIO: Buckets = Buckets {
    upper: &[
        0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.11, 1.25, 1.5, 2.0, 4.0, 10.0,
    ],
    reason: "fine around 1, where an expectation is right; 4 is where corrections take a value for an outlier",
};

/// Lets everything be there from the beginning whose labels are known then.
pub(crate) fn register() {
    let mut counted = Counted::default();
    counted.add(Stats::default());
    counted.add_account(&Reconciliation::default());
    for class in Class::ALL {
        DISPATCH_SLACK.register(&[class.as_str()]);
    }
}

catalogue! {
    LEADER: gauge "flotilla_dispatcher_leader" []
        "1 while this dispatcher leads, 0 while it stands by.";
    EPOCH: gauge "flotilla_dispatcher_epoch" []
        "The term that this dispatcher leads, or led last; 0 if it never did.";
    TERMS: counter "flotilla_dispatcher_terms_total" []
        "Terms that this dispatcher began to lead.";
    NATS_CONNECTED: gauge "flotilla_dispatcher_nats_connected" []
        "1 while the connection to NATS is up.";
    NATS_CONNECTS: total "flotilla_dispatcher_nats_connects_total" []
        "Times that the connection to NATS was made, the first one included.";
    NATS_IN_BYTES: total "flotilla_dispatcher_nats_received_bytes_total" []
        "Bytes received from NATS.";
    NATS_OUT_BYTES: total "flotilla_dispatcher_nats_sent_bytes_total" []
        "Bytes sent to NATS.";

    QUEUE_REQUESTS: gauge "flotilla_dispatcher_queue_requests" ["model", "class"]
        "Requests that wait for a worker.";
    QUEUE_OLDEST: level "flotilla_dispatcher_queue_oldest_seconds" ["model", "class"]
        "Time since the publish of the oldest request that waits; 0 when none does.";
    QUEUE_SLACK: level "flotilla_dispatcher_queue_slack_seconds" ["model", "class"]
        "Time until the first of the waiting requests that can be in time has to start; absent when there is none.";
    QUEUE_GIVEN_UP: gauge "flotilla_dispatcher_queue_given_up_requests" ["model"]
        "Waiting requests that were given up so that more of the others are in time.";
    QUEUE_LATE: gauge "flotilla_dispatcher_queue_late_requests" ["model"]
        "Waiting requests that cannot be in time any more.";
    RUNNING: gauge "flotilla_dispatcher_running_requests" ["model"]
        "Requests on workers.";
    HELD: gauge "flotilla_dispatcher_held_requests" []
        "Requests that the dispatcher answers for, wherever they stand.";
    RESIDENT_WORKERS: gauge "flotilla_dispatcher_model_workers" ["model"]
        "Workers on which a model is ready.";

    ASSIGNED_WAIT: histogram(SECONDS) "flotilla_dispatcher_wait_seconds" ["model", "class"]
        "Time from the publish of a request to its being given to a worker.";
    DISPATCH_SLACK: histogram(SLACK) "flotilla_dispatcher_dispatch_slack_seconds" ["class"]
        "Time that a request with a target has to spare when it is given to a worker, as forecast; negative when it will be late.";
    DECISION_SECONDS: histogram(DECISION) "flotilla_dispatcher_decision_seconds" []
        "Time that the dispatcher takes for one thing that happens, with all decisions that follow.";
    ANSWER_SECONDS: histogram(SECONDS) "flotilla_dispatcher_answer_seconds" ["model", "class"]
        "Time from the publish of a request to the end of its answer.";
    ANSWERS: counter "flotilla_dispatcher_answers_total" ["model", "class", "outcome"]
        "Requests with a complete answer: in time (met), too late (missed), or without a target for its end (none); missed counts those ended without an answer as well. SLO attainment is met over met and missed; goodput is the rate of met and none.";
    ANSWER_TOKENS: counter "flotilla_dispatcher_answer_tokens_total" ["model", "class", "outcome"]
        "Tokens of these answers.";
    LENGTH_RATIO: histogram(RATIO) "flotilla_dispatcher_predicted_length_ratio" ["model"]
        "Tokens of an answer over those that its device was booked for.";
    FORECAST_RATIO: histogram(RATIO) "flotilla_dispatcher_forecast_time_ratio" ["model"]
        "Time of an answer on its device over what was forecast when it was given to it.";
    PROFILE_FACTOR: level "flotilla_dispatcher_profile_drift_ratio" ["model", "device"]
        "What the times of a profile are multiplied with, by what requests really took; 1 is a profile that is right.";
    PROFILE_ALARM: level "flotilla_dispatcher_profile_alarm" ["model", "device"]
        "1 for a profile that has been off by so much for so long that somebody should measure again.";

    WORKERS: gauge "flotilla_dispatcher_workers" []
        "Workers that report.";
    DEVICE_WORKERS: gauge "flotilla_dispatcher_device_workers" ["device"]
        "Workers with devices of a kind.";
    DEVICES: gauge "flotilla_dispatcher_devices" ["device"]
        "Devices of a kind.";
    BOOKED: gauge "flotilla_dispatcher_booked_devices" ["device"]
        "What is booked of the devices of a kind, in devices.";
    WANTED: gauge "flotilla_dispatcher_workers_wanted" ["device"]
        "Workers with devices of a kind that the requests of the last minute and those that wait want: the signal for an autoscaler. Without any worker the kind is unknown.";

    MESSAGES: counter "flotilla_dispatcher_messages_total" ["outcome"]
        "Messages of the request stream: taken, redelivered (held already), duplicate (another one stands for the request), turned_away (too many are held), rejected (not valid).";
    ASSIGNMENTS: counter "flotilla_dispatcher_assignments_total" ["outcome"]
        "Assignments: sent, refused by the worker, or unanswered.";
    COLD_ASSIGNMENTS: counter "flotilla_dispatcher_assignments_cold_total" []
        "Assignments to a worker that has to load the model first.";
    VICTIMS: counter "flotilla_dispatcher_victims_total" []
        "Models named to make room with these.";
    ATTEMPTS: counter "flotilla_dispatcher_attempts_total" ["outcome"]
        "Attempts that came to something unusual: adopted (found running and taken over), fenced (a newer one wrote the journal), handed_back (by a worker that drains or lost its model), done_lost (the end was told by a report alone).";
    REQUESTS_ENDED: counter "flotilla_dispatcher_ended_requests_total" ["reason"]
        "Requests ended by the dispatcher itself: cancelled, deadline, unloadable (no worker can load the model), dead (a dead letter was written), broken (the journal cannot be continued; a dead letter as well).";
    STRIKES: counter "flotilla_dispatcher_strikes_total" []
        "Attempts that ended with the death of their worker while the request ran alone on it, or with a panic over the request.";
    SUSPECTS: counter "flotilla_dispatcher_suspects_total" ["outcome"]
        "Requests that were on a worker when it died: suspected, cleared (another one was found to be to blame), alone (given to a worker of their own).";
    SUSPECTS_WAITING: gauge "flotilla_dispatcher_suspect_requests" []
        "Requests that wait for a worker of their own; these are not among those of the queue.";
    UNACCOUNTED: gauge "flotilla_dispatcher_unaccounted_messages" []
        "Messages in the request stream that are neither held nor still to be delivered: on their way, or stuck.";
    GONE: gauge "flotilla_dispatcher_gone_messages" []
        "Messages that are held and gone from the stream: their requests are lost if the dispatcher ends before they do.";
    LOST: gauge "flotilla_dispatcher_lost_requests" []
        "Requests that were begun, have no end, and whose messages are gone: nobody will answer them.";
    RECONCILIATIONS: counter "flotilla_dispatcher_reconciliations_total" ["outcome"]
        "Comparisons of the streams with what is held: done, or failed.";
    INTERFERENCES: counter "flotilla_dispatcher_interferences_total" ["reason"]
        "What became of messages and requests without us: stuck (nobody answered for a message, which was got out of the stream), max_deliveries (the server gave a message up), terminated (somebody else took a message out), lost (a request that nobody can answer), ended_unacked (a request had an end and its message was there still).";
    PROMISES_BROKEN: counter "flotilla_dispatcher_targets_lost_total" ["reason"]
        "Waiting requests found to be late, or given_up for others.";
    WORKER_EVENTS: counter "flotilla_dispatcher_worker_events_total" ["reason"]
        "Workers lost (silent for too long), restarted (back as another process), turned_away (beyond the limit of the fleet).";
    STALE_REPORTS: counter "flotilla_dispatcher_reports_stale_total" []
        "Reports that were overtaken by a newer one.";
    RESERVATIONS: counter "flotilla_dispatcher_reservations_total" []
        "Devices kept for a request that fits nowhere.";
    PREFETCHES: counter "flotilla_dispatcher_prefetches_total" []
        "Times that a worker was asked to prefetch a model.";
    REPRICINGS: counter "flotilla_dispatcher_repricings_total" []
        "Times that the waiting requests of a model were priced anew.";
    PROMPTS_ESTIMATED: counter "flotilla_dispatcher_prompts_estimated_total" []
        "Prompts whose tokens were estimated, as the model's tokenizer is not at hand.";
    JOURNAL_READS: counter "flotilla_dispatcher_journal_reads_total" []
        "Journals read to find out how an attempt ended.";
    ACKED: counter "flotilla_dispatcher_acked_messages_total" []
        "Messages acknowledged, as the journals of their requests are terminal.";

    VLLM_WAITING: gauge "vllm:num_requests_waiting" ["model_name"]
        "Requests that wait for a worker; workers add those that wait for their model.";
}
