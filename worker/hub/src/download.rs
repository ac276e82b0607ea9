//! The files of a repository, into a folder.

use std::path::Path;

use flotilla_protocol::hub::HubModel;
use flotilla_weights::FetchProgress;
use futures_util::stream::{StreamExt, TryStreamExt, iter};
use tokio::task::spawn_blocking;
use tracing::warn;

use crate::client::{Hub, Try};
use crate::error::{HubError, Interruption};
use crate::patience::{Advance, Patience};
use crate::repository::{HubFile, Repository};
use crate::writing::{ComingFile, is_whole};

impl Hub {
    /// Brings all files into a folder, several at once. A file has its name when it is whole and its hash, where the
    /// hub tells one, was compared; a download that is cut off, or dropped, goes on where it was.
    ///
    /// # Errors
    /// [`HubError`]. What came stays for the next attempt.
    pub async fn download(
        &self,
        repository: &Repository,
        folder: &Path,
        progress: &FetchProgress,
    ) -> Result<(), HubError> {
        progress.begin(repository.bytes());
        let downloads = repository.files.clone().into_iter().map(|file| async move {
            self.download_file(&repository.model, &file, folder, progress)
                .await
        });
        let downloads = iter(downloads).buffer_unordered(FILES_AT_ONCE);
        downloads.try_collect::<()>().await
    }

    async fn download_file(
        &self,
        model: &HubModel,
        file: &HubFile,
        folder: &Path,
        progress: &FetchProgress,
    ) -> Result<(), HubError> {
        let (whole, bytes, is_hashed) = (folder.join(&file.path), file.bytes, file.sha256.is_some());
        let opened = blocking(move || match is_whole(&whole, bytes) {
            true => Ok(None),
            false => ComingFile::open(whole, is_hashed, bytes).map(Some),
        });
        let Some(mut coming) = opened.await? else {
            progress.add(bytes);
            return Ok(());
        };
        progress.add(coming.bytes());
        for _ in 0..DIFFERENT_MAX {
            coming = self.fill(model, file, coming, progress).await?;
            let sha256 = file.sha256;
            coming = match blocking(move || coming.finish(sha256)).await? {
                Ok(()) => return Ok(()),
                Err(coming) => coming,
            };
            progress.take_back(bytes);
            warn!(%model, path = file.path, "a file came with other bytes than the hub lists");
        }
        Err(HubError::OtherBytes {
            model: model.clone(),
            path: file.path.clone(),
        })
    }

    /// Brings the rest of a file.
    async fn fill(
        &self,
        model: &HubModel,
        file: &HubFile,
        coming: ComingFile,
        progress: &FetchProgress,
    ) -> Result<ComingFile, HubError> {
        let (mut coming, mut patience) = (coming, Patience::new(model, &file.path));
        loop {
            let before = coming.bytes();
            let (part, because) = self.fill_once(model, file, coming, progress).await?;
            let advance = match part.bytes() > before {
                true => Advance::Some,
                false => Advance::None,
            };
            match because {
                None => return Ok(part),
                Some(because) => patience.pause(advance, because).await?,
            }
            coming = part;
        }
    }

    /// One request for the rest of a file, and why it did not bring all of it.
    async fn fill_once(
        &self,
        model: &HubModel,
        file: &HubFile,
        mut part: ComingFile,
        progress: &FetchProgress,
    ) -> Result<(ComingFile, Option<Interruption>), HubError> {
        if part.bytes() == file.bytes {
            return Ok((part, None));
        }
        let (began, mut response) = match self.open(model, file, part.bytes()).await? {
            Try::Done(opened) => opened,
            Try::Again(because) => return Ok((part, Some(because))),
        };
        if began != part.bytes() {
            // A hub that sends no parts begins anew.
            progress.take_back(part.bytes());
            part = blocking(move || part.restart().map(|()| part)).await?;
        }
        let mut left = file.bytes - part.bytes();
        let writer = part.write();
        let mut because = None;
        while left > 0 {
            let mut chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(error) => {
                    because = Some(error.without_url().into());
                    break;
                }
            };
            chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            let bytes = chunk.len() as u64;
            if !writer.push(chunk).await {
                break;
            }
            left -= bytes;
            progress.add(bytes);
        }
        let part = writer.end().await?;
        let (bytes, expected) = (part.bytes(), file.bytes);
        let short = (bytes < expected).then_some(Interruption::Short { bytes, expected });
        Ok((part, because.or(short).filter(|_| bytes < expected)))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HubError> + Send + 'static,
) -> Result<T, HubError> {
    spawn_blocking(work).await.expect("work on files does not panic")
}

/// One connection to the hub's storage gives some 50 to 100 MB/s; more at once are many for who else uses the network.
const FILES_AT_ONCE: usize = 4;
/// How often a file may come with other bytes than its own.
const DIFFERENT_MAX: usize = 2;
