//! A root on its way here: which of its bytes were compared and lie in its files by now.
//!
//! The files of a model that is received are in its folder from the beginning, with their full length and without
//! their bytes. So whoever wants to go on with them before all is there opens them, and asks an [`Arrival`] before
//! each read: it waits for segments that were compared and written, and for nothing else.

mod coming;
mod waiting;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flotilla_protocol::weights::{Root, SegmentSet};
use flotilla_weights_core::Manifest;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::Instant;

use self::coming::Coming;
pub use self::waiting::{ComingFiles, WaitError};
use crate::import::ImportError;
use crate::progress::FetchProgress;
use crate::store::StoredModel;

/// A root on its way, as those see it who want it. Clones share it.
#[derive(Debug, Clone)]
pub struct Arrival {
    root: Root,
    state: watch::Receiver<State>,
    progress: FetchProgress,
}

/// Who tells how far a root is. Clones share it; when all are gone without a word of the end, the arrival has broken.
#[derive(Debug, Clone)]
pub struct Announcer {
    state: Arc<watch::Sender<State>>,
    progress: FetchProgress,
}

#[derive(Debug)]
enum State {
    /// Nobody has told what it is made of.
    Wanted,
    /// Some of its segments are there.
    Coming(Coming),
    /// It is here, or what is missing does not come any more.
    Ended {
        result: Result<Arc<StoredModel>, Arc<ImportError>>,
        at: Instant,
    },
}

/// Why what is missing of a root does not come.
#[derive(Debug, Clone, Error)]
pub enum ArrivalError {
    /// Nobody sends it, or it cannot be kept.
    #[error(transparent)]
    Import(Arc<ImportError>),
    /// A bug in what brought it.
    #[error("what brought {root} here broke")]
    Broke {
        /// The root.
        root: Root,
    },
}

impl Arrival {
    /// Of a root about which nothing is known yet.
    #[must_use]
    pub fn begin(root: Root) -> (Self, Announcer) {
        let (sender, state) = watch::channel(State::Wanted);
        let progress = FetchProgress::default();
        let announcer = Announcer {
            state: Arc::new(sender),
            progress: progress.clone(),
        };
        let arrival = Self {
            root,
            state,
            progress,
        };
        (arrival, announcer)
    }

    /// Which.
    #[must_use]
    pub const fn root(&self) -> Root {
        self.root
    }

    /// How many of its bytes are there.
    #[must_use]
    pub const fn progress(&self) -> &FetchProgress {
        &self.progress
    }

    /// Whether more of it may come.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        // Nobody is left to tell the end of one that broke.
        self.state.has_changed().is_ok() && self.ended_at().is_none()
    }

    /// When its end was told.
    #[must_use]
    pub fn ended_at(&self) -> Option<Instant> {
        match &*self.state.borrow() {
            State::Wanted | State::Coming(_) => None,
            State::Ended { at, .. } => Some(*at),
        }
    }

    /// Where its files lie now; `None` before anything is known, and after a failure. The folder gets another name
    /// when the model is whole. What was opened before stays open.
    #[must_use]
    pub fn folder(&self) -> Option<PathBuf> {
        match &*self.state.borrow() {
            State::Coming(coming) => Some(coming.folder().to_owned()),
            State::Ended {
                result: Ok(model), ..
            } => Some(model.files().folder().to_owned()),
            State::Wanted | State::Ended { result: Err(_), .. } => None,
        }
    }

    /// Waits for the next news of it, of which several may be one; `false` when there is no more.
    pub async fn news(&mut self) -> bool {
        self.state.changed().await.is_ok()
    }

    /// Waits until everything but weights is there: configuration, tokenizer, templates. The headers of files of
    /// weights are weights here, and come first of these.
    ///
    /// # Errors
    /// [`ArrivalError`].
    pub async fn described(&self) -> Result<(), ArrivalError> {
        self.until(Coming::is_described).await
    }

    /// Waits until bytes of a file may be read; it is named by its path in the model's folder. Of a file that the
    /// manifest does not list they may be when the model is whole.
    ///
    /// # Errors
    /// [`ArrivalError`]: they are not there and do not come.
    pub async fn there(&self, file: &Path, bytes: Range<u64>) -> Result<(), ArrivalError> {
        self.until(|coming| coming.has(file, &bytes)).await
    }

    /// Which place among all segments the last one has that these bytes are in: what has a smaller one comes about
    /// earlier. All are equal when nothing is on its way.
    #[must_use]
    pub fn turn(&self, file: &Path, bytes: Range<u64>) -> usize {
        match &*self.state.borrow() {
            State::Coming(coming) => coming.turn(file, &bytes),
            State::Wanted | State::Ended { .. } => 0,
        }
    }

    /// Waits until all of it is there and the store has it.
    ///
    /// # Errors
    /// [`ArrivalError`].
    pub async fn whole(&self) -> Result<Arc<StoredModel>, ArrivalError> {
        self.until(|_| false).await?;
        match &*self.state.borrow() {
            State::Ended {
                result: Ok(model), ..
            } => Ok(Arc::clone(model)),
            State::Wanted | State::Coming(_) | State::Ended { result: Err(_), .. } => {
                unreachable!("it was waited for the end, which is the last state, and was a good one")
            }
        }
    }

    /// Waits for as much of it as `is_enough`, or all.
    async fn until(&self, is_enough: impl Fn(&Coming) -> bool) -> Result<(), ArrivalError> {
        let mut state = self.state.clone();
        let reached = state.wait_for(|state| match state {
            State::Wanted => false,
            State::Coming(coming) => is_enough(coming),
            State::Ended { .. } => true,
        });
        match &*reached
            .await
            .map_err(|_| ArrivalError::Broke { root: self.root })?
        {
            State::Ended {
                result: Err(error), ..
            } => Err(ArrivalError::Import(Arc::clone(error))),
            State::Wanted | State::Coming(_) | State::Ended { result: Ok(_), .. } => Ok(()),
        }
    }
}

impl ArrivalError {
    /// What ended the import, if it was not a bug.
    #[must_use]
    pub fn import(&self) -> Option<&ImportError> {
        match self {
            Self::Import(error) => Some(error),
            Self::Broke { .. } => None,
        }
    }
}

impl Announcer {
    /// For who does not want to know.
    #[must_use]
    pub fn unheard(root: Root) -> Self {
        Arrival::begin(root).1
    }

    /// These segments are in the files of this folder, the others will be.
    pub(crate) fn begin(&self, manifest: &Arc<Manifest>, folder: &Path, have: &SegmentSet) {
        self.progress.begin(manifest.bytes());
        self.progress.add(manifest.bytes_of(have));
        let coming = Coming::new(Arc::clone(manifest), folder.to_owned(), have.clone());
        self.state.send_replace(State::Coming(coming));
    }

    /// A segment was compared and is in its file.
    pub(crate) fn verified(&self, segment: usize, bytes: u64) {
        self.progress.add(bytes);
        self.state.send_if_modified(|state| match state {
            State::Coming(coming) => coming.insert(segment),
            State::Wanted | State::Ended { .. } => false,
        });
    }

    /// Nothing more comes: all of it is there, or why not.
    pub fn end(self, result: Result<StoredModel, ImportError>) {
        let result = result.map(Arc::new).map_err(Arc::new);
        let at = Instant::now();
        self.state.send_replace(State::Ended { result, at });
    }
}
