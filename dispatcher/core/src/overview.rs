//! How the queue and the fleet stand, for metrics.

use std::time::Duration;

use flotilla_protocol::{Class, ModelName};

/// How everything stands at a moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Overview {
    /// Every model of the catalog that was ever asked for in this term.
    pub models: Vec<ModelOverview>,
    /// Every kind of device in the fleet. While there is none, one called `unknown` says what is wanted.
    pub kinds: Vec<KindOverview>,
    /// Every profile that was compared with what requests really took.
    pub profiles: Vec<ProfileOverview>,
    /// Workers that report.
    pub workers: usize,
    /// Requests that the dispatcher answers for, wherever they stand.
    pub held: usize,
}

/// One model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelOverview {
    /// The model.
    pub model: ModelName,
    /// Who waits, in the order of [`Class::ALL`].
    pub waiting: [Waiting; Class::ALL.len()],
    /// Requests that wait, of both classes, and were given up so that more of the others are in time.
    pub given_up: usize,
    /// Requests that wait, of both classes, and cannot be in time any more.
    pub late: usize,
    /// Requests on workers.
    pub running: usize,
    /// Workers on which it is ready.
    pub residents: usize,
}

/// The waiting requests of a class.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Waiting {
    /// How many.
    pub count: usize,
    /// Time since the publish of the oldest.
    pub oldest: Duration,
    /// Seconds until the first of them has to start to be in time; `None` when none can be.
    pub slack_s: Option<f64>,
}

/// One kind of device.
#[derive(Debug, Clone, PartialEq)]
pub struct KindOverview {
    /// Its name.
    pub kind: String,
    /// Workers with such devices.
    pub workers: usize,
    /// Devices.
    pub devices: usize,
    /// What is booked of them, in devices.
    pub booked: f64,
    /// Workers with such devices that the requests of this moment want.
    pub wanted: usize,
}

/// One profile.
#[derive(Debug, Clone, PartialEq)]
pub struct ProfileOverview {
    /// Its model.
    pub model: ModelName,
    /// Its kind of device.
    pub kind: String,
    /// What its times are multiplied with, by what requests really took.
    pub factor: f64,
    /// Whether it has been off by so much for so long that somebody should measure again.
    pub is_alarming: bool,
}
