//! The NATS side of the protocol, shared by every process of Flotilla and by the command line.
//!
//! * [`Connection`]: connects with the configured credentials and refuses a server that would lose work.
//! * [`Journal`]: appends that cannot interleave, and reads.
//! * [`Events`]: follows one request's answer and repairs gaps from the journal.
//! * [`Response`]: a whole answer as OpenAI's API has it.
//! * [`Catalog`]: the models, in their KV bucket.
//! * [`DeadLetters`]: what became of nothing, for operators to read, replay and remove.
//! * [`Foothold`]: leaves a server that is cut off from the others.
//! * [`Profiles`]: how fast each device kind serves them, in theirs.
//!
//! What async-nats reports is mapped to typed errors here, with the subject, and nowhere else.

mod answer;
mod bucket;
mod catalog;
mod connection;
mod dead;
mod events;
mod foothold;
mod journal;
mod profiles;
mod response;
mod submit;
mod version;

pub use answer::{Answer, AnswerBuilder};
pub use bucket::{is_missing_bucket, is_missing_stream, newest_entry};
pub use catalog::{Catalog, CatalogChange, CatalogError};
pub use connection::{ConnectError, Connection, ConnectionParts, Disconnected, Unanswered};
pub use dead::{DeadLetter, DeadLetters, DeadLettersError};
pub use events::{Delivered, Events, EventsError};
pub use foothold::Foothold;
pub use journal::{AppendError, Content, Entry, Journal, NewEntry, ReadError};
pub use profiles::{ProfileChange, Profiles, ProfilesError, StoredProfile};
pub use response::{Response, Shape};
pub use submit::{
    NewRequest, Silence, SubmitError, Submitted, is_full, new_request_id, new_request_id_of, submit,
    submit_to, submit_traced,
};
pub use version::{ServerVersion, VERSION_MIN};
