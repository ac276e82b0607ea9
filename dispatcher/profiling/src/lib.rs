//! What to measure next of a device, and the profile that the measurements make.
//!
//! [`Plan`] goes through a grid of request lengths. Of each cell it measures requests alone, then streams of them
//! at rates that it chooses by what it saw, until it knows the highest that the device bears. Whoever drives it
//! sends the requests of [`Plan::poll_point`], tells [`Plan::handle_point`] what they took, and takes the profile
//! from [`Plan::finish`]. It sends nothing itself and reads no clock, so that a real fleet and a simulated one are
//! measured by the same rules.
//!
//! # Figures of a point
//!
//! Arrivals are Poisson with a fixed seed. The first requests of a point fill the device and the last ones keep it
//! full until those between them have ended; only those between count. Of these, with `sent`, `started` (the
//! device took it), `first` and `end` of each:
//!
//! ```text
//! targets    percentile of  end - sent,  first - sent,  (end - first) / (output - 1)
//! growth     slope of (end - sent) against sent, by least squares, at least 0
//! followed   answered part / (1 + growth): the rate of ends over the rate of arrivals
//! passed     targets hold and followed >= 0.9 (without targets: >= 0.8)
//! e2e, ttft  mean of  end - started,  first - started: waiting for the device is the dispatcher's to foresee
//! ```
//!
//! A queue that grows makes every request wait longer than the one before: arrivals `dt` apart end `dt (1 + growth)`
//! apart. Unlike requests over wall time this does not take the time of the last answers for a lack of speed.
//!
//! # The answer of a cell
//!
//! * Alone, one after the other, requests have a rate of `1 / e2e`; it passes when their medians meet the targets.
//!   When it does not, the cell is infeasible: throughput 0, and the times of a request alone.
//! * With targets: the highest rate that passed, within the tolerance below one that did not, and the times there;
//!   but never more than the device ended a second when it was offered too much.
//! * Without: the rate of ends when the device is offered more than it can do, and the times there.

mod cell;
mod estimate;
mod fault;
mod grid;
mod limits;
mod measured;
mod objective;
mod plan;
mod point;
mod profile;
mod random;
mod search;
mod steps;

pub use cell::{CellAnswer, CellEnd};
pub use fault::{FinishError, GridFault, LimitsFault, ObjectiveFault, PointFault};
pub use grid::Grid;
pub use limits::Limits;
pub use measured::{Measurement, Outcome, RequestTimes};
pub use objective::{Objective, Targets};
pub use plan::{Plan, PointReport};
pub use point::{Offered, Point};
pub use profile::Device;
