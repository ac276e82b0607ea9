//! What workers say to each other when weights travel: who holds which model, who sends it, what is there
//! already. The weights themselves are objects of the relay bucket.

mod digest;
mod set;

use std::fmt;
use std::num::ParseIntError;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::WorkerId;

pub use digest::{DigestError, Root, SegmentId};
pub use set::{SegmentSet, SegmentSetError};

/// A worker's word that it holds all bytes of a root, in the KV bucket `holders` under `<root>.<worker>`;
/// refreshed, and gone by itself when the worker is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// Who holds it.
    pub worker: WorkerId,
    /// Which start of the worker this is: a question for another one is refused.
    pub incarnation: u64,
    /// The machine, as the machine itself knows it: two workers of one machine need no network between them.
    pub machine: String,
    /// Where the files are on that machine.
    pub folder: PathBuf,
    /// Copies that the worker sends at the moment.
    pub sends: u32,
}

/// Who sends a root, in the KV bucket `claims` under the root: there is one sender at a time. It expires unless its
/// sender renews it, and a sender that cannot renew it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Who sends.
    pub sender: WorkerId,
    /// Which start of the sender.
    pub incarnation: u64,
    /// The copy that it sends.
    pub generation: Generation,
}

/// Names one time that a root is sent: random, chosen by whoever takes the claim. What carries another one than the
/// claim's belongs to nobody any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Generation {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

/// Names one attempt of one worker to receive a root: random, so that a worker that starts again is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReceiverId(pub u64);

/// Asks a holder for a root; the answer is a [`CopyReply`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyAsk {
    /// What is wanted.
    pub root: Root,
    /// Which start of the holder is asked.
    pub incarnation: u64,
}

/// What a holder says to a [`CopyAsk`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyReply {
    /// It sends, from now on, under this generation; the manifest is in the relay.
    Sends {
        /// The copy.
        generation: Generation,
    },
    /// Somebody else sends the root already: ask there.
    SentBy {
        /// The sender.
        sender: WorkerId,
        /// Which start of it.
        incarnation: u64,
    },
    /// It will not.
    Refuses {
        /// Why.
        reason: CopyRefusal,
    },
}

/// Why a holder does not send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyRefusal {
    /// It has no such root, or not any more.
    NotHeld,
    /// The question was for an earlier start of the worker.
    OtherIncarnation,
    /// It sends as many roots as it may.
    Busy,
    /// It is about to exit.
    Draining,
    /// The relay cannot be written to.
    RelayUnavailable,
}

/// What the sender of a copy tells all its receivers: often, and whole, so that one that is lost costs nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyNews {
    /// The copy.
    pub generation: Generation,
    /// What lies in the relay at the moment.
    pub stored: SegmentSet,
    /// Whether the sender has ended, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<CopyEnd>,
}

/// Why a sender has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyEnd {
    /// Nobody needs anything any more.
    Done,
    /// The relay took nothing for too long: it is full of other things, or out of reach.
    RelayUnavailable,
    /// The files cannot be read any more, or are not those of the root.
    SourceLost,
    /// The worker is about to exit.
    Draining,
    /// Another worker has the claim.
    Superseded,
}

/// What a receiver tells the sender: often, and whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyHave {
    /// Who.
    pub receiver: ReceiverId,
    /// Segments that it has and has verified.
    pub have: SegmentSet,
    /// Segments that lie in the relay by what the sender says, and that it has looked for there and not found since it
    /// last told; of no segments at all when there are none.
    #[serde(default, skip_serializing_if = "SegmentSet::is_none")]
    pub missing: SegmentSet,
    /// Whether it goes on receiving; `false` takes it off the sender's list.
    pub stays: bool,
}
