//! A hub of models, as its users see it: what a revision of a repository has, and how its files come onto a disk.
//!
//! [`Hub`] speaks the API of huggingface.co, which mirrors speak too. [`Hub::repository`] fixes a revision to a commit,
//! whose files never change; [`Hub::download`] brings those that loading reads into a folder and goes on where an
//! earlier attempt ended; [`Hub::outline`] makes a folder of the same files without the weights' bytes, which is all
//! that describing a model takes.
//!
//! `hf-hub`, the hub's own client, brings some 220 crates with it, as of 1.0, and keeps a cache of its own that knows no
//! bound. What is needed here are two requests, so they are made with reqwest alone.

mod client;
mod download;
mod error;
mod outline;
mod patience;
mod repository;
mod writing;

pub use client::Hub;
pub use error::HubError;
pub use repository::{HubFile, Repository};
