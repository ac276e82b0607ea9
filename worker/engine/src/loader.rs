//! Weights on their way into device memory.

use std::collections::HashMap;
use std::ops::Range;

use crate::backend::{Backend, DeviceError, Matrix, NO_ELEMENT, RegionId, WORD_BYTES};
use crate::decoder::DecoderModel;
use crate::{MemoryPlan, PAGE_BYTES};

/// A model that is being loaded: its memory is there, its weights arrive in any order.
///
/// Dropping it gives all memory back.
#[derive(Debug)]
pub struct ModelLoader<B: Backend> {
    backend: B,
    plan: MemoryPlan,
    weights: RegionId,
    workspace: RegionId,
    kv: RegionId,
    by_name: HashMap<String, usize>,
    arrived: Vec<ByteRanges>,
    /// Tensors that are widened on their way, by index, as they are stored: pieces may end within an element.
    widened: HashMap<usize, Vec<u8>>,
}

impl<B: Backend> ModelLoader<B> {
    /// Maps the plan's weights and workspace, and reserves addresses for up to `kv_blocks_max` KV blocks.
    ///
    /// # Errors
    /// The device has not the memory; nothing stays mapped.
    pub fn new(mut backend: B, plan: MemoryPlan, kv_blocks_max: usize) -> Result<Self, LoadError> {
        let kv_pages = plan
            .kv_pages(kv_blocks_max)
            .filter(|pages| pages.checked_mul(PAGE_BYTES).is_some())
            .ok_or(LoadError::TooManyBlocks {
                blocks: kv_blocks_max,
            })?;
        let weights = backend.reserve(plan.weights_bytes())?;
        backend.map_pages(weights, plan.weights_pages())?;
        let workspace = backend.reserve(plan.workspace_bytes())?;
        backend.map_pages(workspace, plan.workspace_pages())?;
        let kv = backend.reserve(kv_pages * PAGE_BYTES)?;
        let by_name = plan
            .tensors()
            .iter()
            .enumerate()
            .map(|(index, tensor)| (tensor.info.name.clone(), index))
            .collect();
        let arrived = plan.tensors().iter().map(|_| ByteRanges::default()).collect();
        let widened = plan
            .tensors()
            .iter()
            .enumerate()
            .filter(|(_, tensor)| tensor.placed_dtype() != tensor.info.dtype)
            .map(|(index, tensor)| (index, vec![0; tensor.stored_bytes()]))
            .collect();
        Ok(Self {
            backend,
            plan,
            weights,
            workspace,
            kv,
            by_name,
            arrived,
            widened,
        })
    }

    /// What is loaded, with the tensors in their preferred order.
    pub const fn plan(&self) -> &MemoryPlan {
        &self.plan
    }

    /// Places a piece of a tensor, `offset_bytes` from its start; any size, any order, repeats allowed.
    ///
    /// # Errors
    /// The model has no such tensor, the piece is not within it, or the device refused.
    pub fn place(&mut self, tensor: &str, offset_bytes: usize, bytes: &[u8]) -> Result<(), LoadError> {
        let Some(index) = self.by_name.get(tensor).copied() else {
            return Err(LoadError::UnknownTensor {
                tensor: tensor.to_owned(),
            });
        };
        let planned = &self.plan.tensors()[index];
        let tensor_bytes = planned.stored_bytes();
        let end = offset_bytes
            .checked_add(bytes.len())
            .filter(|end| *end <= tensor_bytes);
        let Some(end) = end else {
            return Err(LoadError::PieceOutOfBounds {
                tensor: tensor.to_owned(),
                offset_bytes,
                piece_bytes: bytes.len(),
                tensor_bytes,
            });
        };
        if let Some(stored) = self.widened.get_mut(&index) {
            stored[offset_bytes..end].copy_from_slice(bytes);
        } else {
            let mut target = planned.area.in_region(self.weights);
            target.offset_bytes += offset_bytes;
            target.len_bytes = bytes.len();
            self.backend.upload(target, bytes)?;
        }
        self.arrived[index].add(offset_bytes..end);
        Ok(())
    }

    /// The model, once every byte of every tensor is placed and every weight is finite. Waits for the device.
    ///
    /// # Errors
    /// Tensors are missing or incomplete, a weight is NaN or infinite, or the device failed.
    pub fn finish(mut self) -> Result<DecoderModel<B>, LoadError> {
        let missing: Vec<String> = self
            .plan
            .tensors()
            .iter()
            .zip(&self.arrived)
            .filter(|(tensor, arrived)| !arrived.cover(tensor.stored_bytes()))
            .map(|(tensor, _)| tensor.info.name.clone())
            .collect();
        if !missing.is_empty() {
            return Err(LoadError::Missing { tensors: missing });
        }
        self.place_widened()?;
        self.check_finite()?;
        DecoderModel::new(self.backend, self.plan, self.weights, self.workspace, self.kv)
            .map_err(LoadError::Device)
    }

    fn place_widened(&mut self) -> Result<(), DeviceError> {
        for (index, stored) in self.widened.drain() {
            let tensor = &self.plan.tensors()[index];
            let elements = tensor.info.dtype.widen(&stored);
            let target = tensor.area.in_region(self.weights);
            self.backend.upload(target, bytemuck::cast_slice(&elements))?;
        }
        Ok(())
    }

    /// Looks at the weights where they lie: pieces may end within an element, and a device reads them fastest.
    fn check_finite(&mut self) -> Result<(), LoadError> {
        let answers = self.plan.workspace().non_finite.in_region(self.workspace);
        for (index, tensor) in self.plan.tensors().iter().enumerate() {
            let dtype = tensor.placed_dtype();
            let elements = tensor.area.len_bytes / dtype.size_bytes();
            let weights = Matrix {
                span: tensor.area.in_region(self.weights),
                dtype,
                rows: 1,
                columns: elements,
            };
            self.backend.first_non_finite(weights, answers.words(index, 1))?;
        }
        let mut bytes = vec![0; answers.len_bytes];
        self.backend.download(answers, &mut bytes)?;
        let (found, _) = bytes.as_chunks::<WORD_BYTES>();
        for (tensor, element) in self.plan.tensors().iter().zip(found) {
            let element = u32::from_le_bytes(*element);
            if element != NO_ELEMENT {
                return Err(LoadError::NotFinite {
                    tensor: tensor.info.name.clone(),
                    element,
                });
            }
        }
        Ok(())
    }
}

/// Which bytes of a tensor have arrived: disjoint ranges, ascending, none touching the next.
#[derive(Debug, Default)]
struct ByteRanges {
    ranges: Vec<Range<usize>>,
}

impl ByteRanges {
    fn add(&mut self, mut range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        let first = self.ranges.partition_point(|known| known.end < range.start);
        let last = self.ranges.partition_point(|known| known.start <= range.end);
        if first < last {
            range.start = range.start.min(self.ranges[first].start);
            range.end = range.end.max(self.ranges[last - 1].end);
        }
        self.ranges.splice(first..last, [range]);
    }

    fn cover(&self, len_bytes: usize) -> bool {
        match self.ranges.as_slice() {
            [] => len_bytes == 0,
            [only] => *only == (0..len_bytes),
            _ => false,
        }
    }
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The device failed.
    #[error("the device failed")]
    Device(#[from] DeviceError),
    /// So many KV blocks are more bytes than this machine can address.
    #[error("{blocks} KV blocks are more bytes than this machine can address")]
    TooManyBlocks {
        /// The blocks asked for.
        blocks: usize,
    },
    /// The model has no such tensor.
    #[error("the model has no tensor {tensor}")]
    UnknownTensor {
        /// The name given.
        tensor: String,
    },
    /// A piece is not within its tensor.
    #[error("tensor {tensor}: {piece_bytes} bytes at {offset_bytes} are not within its {tensor_bytes} bytes")]
    PieceOutOfBounds {
        /// The tensor.
        tensor: String,
        /// Where the piece starts.
        offset_bytes: usize,
        /// The piece's length.
        piece_bytes: usize,
        /// The tensor's length.
        tensor_bytes: usize,
    },
    /// Not everything has been placed.
    #[error("missing or incomplete tensors: {}", .tensors.join(", "))]
    Missing {
        /// Their names, in load order.
        tensors: Vec<String>,
    },
    /// A weight is NaN or infinite.
    #[error("tensor {tensor}: element {element} is not finite")]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// The index of its first such element.
        element: u32,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_cover_exactly_what_was_added(
            pieces in prop::collection::vec((0usize..40, 0usize..12), 0..20),
        ) {
            let mut ranges = ByteRanges::default();
            let mut bytes = [false; 52];
            for (start, len) in pieces {
                ranges.add(start..start + len);
                bytes[start..start + len].fill(true);
            }
            let held: Vec<bool> = (0..52)
                .map(|byte| ranges.ranges.iter().any(|range| range.contains(&byte)))
                .collect();
            prop_assert_eq!(&held[..], &bytes[..]);
            prop_assert!(ranges.ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
            for len in 1..52 {
                let all = bytes[..len].iter().all(|byte| *byte) && !bytes[len..].contains(&true);
                prop_assert_eq!(ranges.cover(len), all);
            }
        }
    }
}
