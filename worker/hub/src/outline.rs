//! A model's folder without its weights: everything that describing it takes.

use std::path::Path;

use flotilla_protocol::hub::HubModel;
use futures_util::stream::{StreamExt, TryStreamExt, iter};
use tokio::fs;
use tokio::io::AsyncWriteExt;

use crate::client::Hub;
use crate::error::HubError;
use crate::repository::{HubFile, Repository, is_weights};

impl Hub {
    /// Writes all files of a repository into a folder, of weights their headers only; behind them is a hole of the
    /// weights' length, which takes no room.
    ///
    /// # Errors
    /// [`HubError`].
    pub async fn outline(&self, repository: &Repository, folder: &Path) -> Result<(), HubError> {
        let files = repository
            .files
            .clone()
            .into_iter()
            .map(|file| async move { self.outline_file(&repository.model, &file, folder).await });
        iter(files)
            .buffer_unordered(FILES_AT_ONCE)
            .try_collect::<()>()
            .await
    }

    async fn outline_file(&self, model: &HubModel, file: &HubFile, folder: &Path) -> Result<(), HubError> {
        let path = folder.join(&file.path);
        let inside = path.parent().expect("a file lies in a folder");
        fs::create_dir_all(inside)
            .await
            .map_err(HubError::io("make", inside))?;
        let mut out = fs::File::create(&path)
            .await
            .map_err(HubError::io("make", &path))?;
        let head = match is_weights(file) {
            true => self.head(model, file).await?,
            false => self.read(model, file, 0, file.bytes).await?.into(),
        };
        out.write_all(&head).await.map_err(HubError::io("write", &path))?;
        out.flush().await.map_err(HubError::io("write", &path))?;
        out.set_len(file.bytes)
            .await
            .map_err(HubError::io("set the length of", &path))
    }

    /// What a file of weights begins with, up to the end of its header.
    async fn head(&self, model: &HubModel, file: &HubFile) -> Result<Vec<u8>, HubError> {
        let first = file.bytes.min(HEAD_GUESS_BYTES);
        let mut head: Vec<u8> = self.read(model, file, 0, first).await?.into();
        let Some(length) = head.first_chunk::<8>() else {
            return Ok(head);
        };
        // A length that is out of reason is told by who reads the header.
        let end = u64::from_le_bytes(*length).saturating_add(8).min(file.bytes);
        if end > first && end <= HEADER_BYTES_MAX {
            head.extend(self.read(model, file, first, end).await?);
        }
        Ok(head)
    }
}

/// More would only be requests at the hub's gate.
const FILES_AT_ONCE: usize = 4;
/// Most headers are shorter: some hundred bytes a tensor.
const HEAD_GUESS_BYTES: u64 = 64 << 10;
/// The format's own limit.
const HEADER_BYTES_MAX: u64 = 100_000_000;
