//! A step's sequences on their way to the device.

use super::stage::Stage;
use crate::backend::{Backend, BatchView, DeviceError, Span};
use crate::step::{SequenceStep, Step};
use crate::{AllowedTokens, BLOCK_TOKENS};

impl<B: Backend> Stage<B> {
    /// Uploads all inputs of a checked step to their places in the workspace: tokens for the embeddings, what draws
    /// need for the output layer, and what all layers need.
    pub(super) fn upload_inputs(&mut self, step: &Step<'_>) -> Result<BatchView, DeviceError> {
        let workspace = *self.plan.workspace();
        if self.plan.is_first() {
            self.staging
                .extend(step.sequences.iter().flat_map(|sequence| sequence.tokens));
            self.upload_staging(workspace.tokens)?;
        }
        self.staging.extend(step.sequences.iter().flat_map(positions));
        let positions = self.upload_staging(workspace.positions)?;
        self.staging.push(0);
        self.staging.extend(ends(step.sequences).map(index_u32));
        let starts = self.upload_staging(workspace.starts)?;
        if self.plan.is_last() {
            self.upload_draws(step)?;
        }
        let (tables, table_blocks) = self.upload_tables(step)?;
        Ok(BatchView {
            sequences: step.sequences.len(),
            positions,
            starts,
            tables,
            table_blocks,
        })
    }

    /// Uploads which rows draw a token, and how.
    fn upload_draws(&mut self, step: &Step<'_>) -> Result<(), DeviceError> {
        let workspace = *self.plan.workspace();
        let with_ends = step.sequences.iter().zip(ends(step.sequences));
        let drawing = with_ends.filter(|(sequence, _)| sequence.sample.is_some());
        self.staging.extend(drawing.map(|(_, end)| index_u32(end - 1)));
        self.upload_staging(workspace.sampled_rows)?;
        let parameters = step.sequences.iter().filter_map(|sequence| {
            let allowed = match sequence.mask {
                None => AllowedTokens::All,
                Some(_) => AllowedTokens::Masked,
            };
            Some(sequence.sample?.to_words(allowed))
        });
        self.staging.extend(parameters.flatten());
        self.upload_staging(workspace.parameters)?;
        Ok(())
    }

    /// Uploads where the blocks of each sequence start, each row as long as the longest that the step needs.
    fn upload_tables(&mut self, step: &Step<'_>) -> Result<(Span, usize), DeviceError> {
        let table_blocks = step.sequences.iter().map(blocks).max().unwrap_or(0);
        for sequence in step.sequences {
            let row = self.staging.len();
            let blocks = sequence.block_table[..blocks(sequence)].iter();
            let starts = blocks.map(|block| self.kv.start(*block).expect("the step was checked"));
            self.staging.extend(starts);
            self.staging.resize(row + table_blocks, 0);
        }
        let tables = self.upload_staging(self.plan.workspace().tables)?;
        Ok((tables, table_blocks))
    }
}

fn positions(sequence: &SequenceStep<'_>) -> impl Iterator<Item = u32> + use<> {
    (sequence.position..sequence.position + sequence.tokens.len()).map(index_u32)
}

/// How many blocks a sequence's tokens reach into.
fn blocks(sequence: &SequenceStep<'_>) -> usize {
    (sequence.position + sequence.tokens.len()).div_ceil(BLOCK_TOKENS)
}

/// Where the rows of each sequence end.
fn ends(sequences: &[SequenceStep<'_>]) -> impl Iterator<Item = usize> {
    sequences.iter().scan(0, |end, sequence| {
        *end += sequence.tokens.len();
        Some(*end)
    })
}

fn index_u32(index: usize) -> u32 {
    u32::try_from(index).expect("positions and batches were checked against limits below 2^32")
}
