//! What the parts of Flotilla say to each other: ids, subjects, messages and their encodings.
//!
//! No I/O and no clock. Messages between our own processes travel as MessagePack with named fields, so
//! that a field can be added without breaking a peer that is one version older; what a client writes
//! and reads travels as JSON or MessagePack, as its `Content-Type` says. `testdata/golden` holds one
//! encoded sample of every message: a change of the wire format cannot pass unseen.

pub mod admin;
pub mod assignment;
pub mod catalog;
pub mod codec;
pub mod event;
pub mod fleet;
pub mod headers;
pub mod hub;
pub mod ids;
pub mod profile;
pub mod request;
pub mod subject;
pub mod time;
pub mod trace;
pub mod weights;

pub use codec::{DecodeError, Encoding};
pub use ids::{
    Attempt, Class, Epoch, IdError, ModelName, Namespace, Owner, RequestId, Strikes, Tenant, WorkerId,
};
pub use time::Moment;
pub use trace::TraceParent;
