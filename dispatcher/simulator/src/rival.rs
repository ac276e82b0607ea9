//! Rival policies, re-implemented from what is published about them.
//!
//! Each decides as the rival would, defects that its authors or users describe included, and gets the same
//! fleet, the same messages and the same workers as the real dispatcher. Where a rival's behaviour is not
//! known, the choice that serves it better was made. What is modelled and what is not stands at the head of
//! each file.
//!
//! Workers take as much as they are given ([`crate::policy::Intake::Unbounded`]), as an inference server's
//! own queue does. A client whose deadline passes closes its connection: the server stops at once, and a
//! router that still holds the request learns of it.

mod aibrix;
mod departures;
mod least_request;
mod lru;
mod ollama;
mod placed;
mod push;
mod random_pod;
mod servers;
#[cfg(test)]
mod stage;

use flotilla_protocol::Moment;
use flotilla_protocol::assignment::Assignment;

use crate::policy::Arriving;

pub use aibrix::{Aibrix, Picker};
pub use least_request::LeastRequest;
pub use lru::Lru;
pub use ollama::{Ollama, for_ollama};
pub use push::Push;
pub use random_pod::RandomPod;
use servers::Servers;

/// The connection that a rival's router opens to a server: it ends with the client's own.
fn assignment(now: Moment, arriving: &Arriving) -> Assignment {
    let left = crate::policy::left(now, arriving.deadline);
    Assignment {
        deadline_in_ms: left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
        ..arriving.assignment(now)
    }
}
