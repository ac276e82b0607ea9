//! Weights on disk and on their way to other workers.
//!
//! [`ModelFiles`] are the files of a model with their manifest, wherever they lie; [`Store`] is the bounded place
//! on disk for those that came from elsewhere. What is read here is compared with its hash before anybody sees it,
//! and what is written before it counts.

mod arrival;
mod background;
mod buffers;
mod claims;
mod error;
mod export;
mod files;
mod folder;
mod import;
mod known;
mod lock;
mod make;
mod metrics;
mod progress;
mod rate;
mod receive;
mod relay;
mod send;
mod store;

pub use arrival::{Announcer, Arrival, ArrivalError, ComingFiles, WaitError};
pub use background::give_way;
pub use buffers::{Buffer, Buffers};
pub use claims::{CLAIMS, HOLDERS, HeldClaim, HeldDownload, Registry, RegistryError};
pub use error::FilesError;
pub use export::{Exports, Identity};
pub use files::ModelFiles;
pub use folder::{CONFIG, WEIGHTS_INDEX, chosen_files, wants_index};
pub use import::{HolderFailure, ImportError, Imported, Importer};
pub use known::KnownManifests;
pub use make::{MakeError, make_manifest};
pub use metrics::{METRICS, RelayBytes, WEIGHTS_BYTES};
pub use progress::FetchProgress;
pub use rate::RateCap;
pub use receive::{Listening, ReceiveError, Received, Receiver};
pub use relay::{BUCKET, CopyName, CopyObject, LiveChunks, Part, Relay, RelayError, Swept, stream_name};
pub use send::{Sender, Sent};
pub use store::{ComingModel, PartialModel, Store, StoreError, StoredModel, StoredState, Unsynced};
