//! How weights travel from one worker to others, as decisions without I/O and clock.
//!
//! A model's files are cut into segments ([`cut()`]), which a [`Manifest`] lists in the order in which a load
//! wants them; its hash, the root, is the model's revision. [`Sending`] decides what a sender puts into the relay
//! next and what it deletes, [`Receiving`] what a receiver repairs and when it gives its sender up. They leave to
//! their shell the files, the hashing, the relay and the messages.

mod cut;
mod manifest;
mod order;
mod receiving;
mod sending;

pub use cut::{FileLayout, Piece, SEGMENT_BYTES_MAX, cut};
pub use manifest::{Manifest, ManifestError, ManifestFile, Segment};
pub use receiving::{Receiving, ReceivingAction, ReceivingEnd, ReceivingSettings};
pub use sending::{Sending, SendingAction, SendingSettings};
