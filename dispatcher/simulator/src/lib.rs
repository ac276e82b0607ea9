//! A fleet on a virtual clock: what a policy would have made of a trace.
//!
//! The parts that decide are the real ones: [`flotilla_dispatcher_core::Dispatcher`] on one side,
//! [`flotilla_worker_core::worker::Desk`] and [`flotilla_worker_core::batch::Batch`] on the other. What stands
//! between them is simulated: the network is a constant latency, an engine is the step times of its profile,
//! and clients are a [`trace::Trace`]. Everything is a function of its arguments: the same trace, fleet and
//! policy give the same [`outcome::Outcome`] to the nanosecond.
//!
//! | module | holds |
//! |---|---|
//! | [`trace`] | who asks for what, and when; files and generators |
//! | [`fleet`] | devices, models and network |
//! | [`device`] | one worker with one device, out of the worker's own cores |
//! | [`policy`] | who decides: the real dispatcher, or a rival |
//! | [`rival`] | the rivals, each out of what is published about it |
//! | [`bound`] | what nobody can exceed |
//! | [`plot`] | pictures of a comparison |
//! | [`run`] | the clock and everything on its way |
//! | [`profiling`] | profiles of simulated devices, measured |
//! | [`outcome`] | what became of each request and device, and the figures of it |

pub mod bound;
pub mod device;
pub mod fleet;
pub mod outcome;
pub mod plot;
pub mod policy;
pub mod profiling;
mod random;
pub mod rival;
pub mod run;
pub mod trace;
