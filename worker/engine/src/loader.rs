//! Weights on their way into device memory.
//!
//! A matrix goes to the device in groups of rows, as the device lays them out together. A piece that holds
//! whole groups is read where it lies; what else it holds waits on the host until its group is complete.

mod ranges;
mod staging;

use std::collections::HashMap;

use crate::backend::{Backend, DeviceError, NO_ELEMENT, PlaceRows, RegionId, Span, WORD_BYTES};
use crate::decoder::KvSpace;
use crate::plan::{ModelPlan, ModelRegions, Placement, PlannedTensor};
use crate::tensor::PANEL_ROWS;
use crate::{MemoryPlan, PAGE_BYTES};
use staging::Staging;

/// A model that is being loaded: its memory is there, its weights arrive in any order.
///
/// Dropping it gives all memory back.
#[derive(Debug)]
pub struct ModelLoader<B: Backend, P: ModelPlan = MemoryPlan> {
    backend: B,
    plan: P,
    regions: ModelRegions,
    by_name: HashMap<String, usize>,
    staging: Vec<Staging>,
}

impl<B: Backend, P: ModelPlan> ModelLoader<B, P> {
    /// Maps the plan's weights and workspace, and reserves addresses for keys and values, where the model has such.
    ///
    /// # Errors
    /// The device has not the memory, or not the addresses; nothing stays mapped.
    pub fn new(mut backend: B, plan: P, kv_space: KvSpace) -> Result<Self, LoadError> {
        let kv_bytes = kv_space.len_bytes().ok_or(LoadError::KvTooLarge { kv_space })?;
        let weights = backend.reserve(plan.weights().len_bytes())?;
        backend.map_pages(weights, 0..plan.weights().pages())?;
        let workspace = backend.reserve(plan.workspace_bytes())?;
        backend.map_pages(workspace, 0..plan.workspace_pages())?;
        // A range of addresses is never empty.
        let kv = backend.reserve(kv_bytes.max(PAGE_BYTES))?;
        let tensors = plan.weights().tensors();
        let by_name = tensors
            .iter()
            .enumerate()
            .map(|(index, tensor)| (tensor.info.name.clone(), index))
            .collect();
        let staging = tensors.iter().map(Staging::new).collect();
        // No element that is not finite has been seen yet.
        let answers = answers(workspace, tensors.len());
        backend.upload(answers, &vec![0xff; answers.len_bytes])?;
        Ok(Self {
            backend,
            plan,
            regions: ModelRegions {
                weights,
                workspace,
                kv,
                kv_space,
            },
            by_name,
            staging,
        })
    }

    /// What is loaded, with the tensors in their preferred order.
    pub const fn plan(&self) -> &P {
        &self.plan
    }

    /// Places a piece of a tensor, `offset_bytes` from its start; any size, any order. What repeats a part that
    /// is complete already is ignored.
    ///
    /// # Errors
    /// The model has no such tensor, the piece is not within it, or the device refused.
    pub fn place(&mut self, tensor: &str, offset_bytes: usize, bytes: &[u8]) -> Result<(), LoadError> {
        let Some(index) = self.by_name.get(tensor).copied() else {
            return Err(LoadError::UnknownTensor {
                tensor: tensor.to_owned(),
            });
        };
        let planned = &self.plan.weights().tensors()[index];
        let tensor_bytes = planned.stored_bytes();
        let end = offset_bytes.checked_add(bytes.len());
        if end.is_none_or(|end| end > tensor_bytes) {
            return Err(LoadError::PieceOutOfBounds {
                tensor: tensor.to_owned(),
                offset_bytes,
                piece_bytes: bytes.len(),
                tensor_bytes,
            });
        }
        let place = Place {
            planned,
            weights: self.regions.weights,
            non_finite: self.answers().words(index, 1),
        };
        let backend = &mut self.backend;
        self.staging[index].add(offset_bytes, bytes, |group, bytes| {
            place.groups(backend, group, bytes)
        })?;
        Ok(())
    }

    /// The model, once every byte of every tensor is placed and every weight is finite. Waits for the device.
    ///
    /// # Errors
    /// Tensors are missing or incomplete, a weight is NaN or infinite, or the device failed.
    pub fn finish(mut self) -> Result<P::Model<B>, LoadError> {
        let tensors = self.plan.weights().tensors().iter().zip(&self.staging);
        let missing: Vec<String> = tensors
            .filter(|(_, staging)| !staging.is_complete())
            .map(|(tensor, _)| tensor.info.name.clone())
            .collect();
        if !missing.is_empty() {
            return Err(LoadError::Missing { tensors: missing });
        }
        self.check_finite()?;
        self.plan
            .into_model(self.backend, self.regions)
            .map_err(LoadError::Device)
    }

    fn check_finite(&mut self) -> Result<(), LoadError> {
        let answers = self.answers();
        let mut bytes = vec![0; answers.len_bytes];
        self.backend.download(answers, &mut bytes)?;
        let (found, _) = bytes.as_chunks::<WORD_BYTES>();
        for (tensor, element) in self.plan.weights().tensors().iter().zip(found) {
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

    fn answers(&self) -> Span {
        answers(self.regions.workspace, self.staging.len())
    }
}

/// u32 \[tensors] at the workspace's start: of each the first element that is not finite.
const fn answers(workspace: RegionId, tensors: usize) -> Span {
    Span {
        region: workspace,
        offset_bytes: 0,
        len_bytes: tensors * WORD_BYTES,
    }
}

/// Where a tensor goes.
struct Place<'a> {
    planned: &'a PlannedTensor,
    weights: RegionId,
    /// u32 \[1].
    non_finite: Span,
}

impl Place<'_> {
    /// Sends complete groups to the device, `first_group` and those after it.
    fn groups<B: Backend>(
        &self,
        backend: &mut B,
        first_group: usize,
        bytes: &[u8],
    ) -> Result<(), DeviceError> {
        match self.planned.placement {
            Placement::Matrix { .. } => backend.place_rows(PlaceRows {
                matrix: self.planned.matrix(self.weights),
                first_row: first_group * PANEL_ROWS,
                stored: self.planned.info.dtype,
                bytes,
                non_finite: self.non_finite,
            }),
            // A vector is one group.
            Placement::Vector => {
                let elements = self.planned.info.dtype.widen(bytes);
                if let Some(element) = elements.iter().position(|element| !element.is_finite()) {
                    let element = u32::try_from(element).unwrap_or(NO_ELEMENT - 1);
                    backend.upload(self.non_finite, &element.to_le_bytes())?;
                }
                let target = self.planned.area.in_region(self.weights);
                backend.upload(target, bytemuck::cast_slice(&elements))
            }
        }
    }
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The device failed.
    #[error("the device failed")]
    Device(#[from] DeviceError),
    /// The KV blocks would lie beyond what block tables reach.
    #[error("keys and values cannot lie in {kv_space:?}")]
    KvTooLarge {
        /// Where they should lie.
        kv_space: KvSpace,
    },
    /// An image is not of the model's weights.
    #[error("the image has {pages} pages, the model's weights take {planned_pages}")]
    OtherImage {
        /// Pages of the image.
        pages: usize,
        /// Pages of the weights.
        planned_pages: usize,
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
