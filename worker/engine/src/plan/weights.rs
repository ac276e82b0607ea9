//! What the tensors of a model become in device memory, and where each of them lies.

use super::PlanError;
use super::areas::{Area, Areas};
use crate::backend::{Matrix, RegionId};
use crate::tensor::{INT4_GROUP_COLUMNS, Precision, WeightFormat};
use crate::weights::WeightRole;
use crate::{Dtype, PAGE_BYTES, TensorInfo};

/// The weights of one model, each with its place.
#[derive(Clone, Debug)]
pub struct PlannedWeights {
    tensors: Vec<PlannedTensor>,
    len_bytes: usize,
}

impl PlannedWeights {
    /// Lays tensors out one after the other.
    ///
    /// # Errors
    /// The sizes overflow.
    pub(crate) fn new<R: WeightRole>(
        tensors: &[(R, TensorInfo)],
        precision: Precision,
    ) -> Result<Self, PlanError> {
        let mut areas = Areas::default();
        let tensors = tensors
            .iter()
            .map(|(role, info)| PlannedTensor::new(*role, info.clone(), precision, &mut areas))
            .collect();
        Ok(Self {
            tensors,
            len_bytes: areas.len_bytes()?,
        })
    }

    /// Some of them, laid out anew; `keeps` is asked with the index of each.
    ///
    /// # Errors
    /// The sizes overflow.
    pub(crate) fn part(&self, keeps: impl Fn(usize) -> bool) -> Result<Self, PlanError> {
        let mut areas = Areas::default();
        let kept = self.tensors.iter().enumerate().filter(|(index, _)| keeps(*index));
        let tensors = kept
            .map(|(_, tensor)| PlannedTensor {
                area: areas.take_bytes(Some(tensor.area.len_bytes)),
                ..tensor.clone()
            })
            .collect();
        Ok(Self {
            tensors,
            len_bytes: areas.len_bytes()?,
        })
    }

    /// The tensors to place, in load order.
    pub fn tensors(&self) -> &[PlannedTensor] {
        &self.tensors
    }

    /// Whether a tensor of the model is among them; a stage has some.
    pub fn has(&self, tensor: &str) -> bool {
        self.tensors.iter().any(|planned| planned.info.name == tensor)
    }

    /// What they take, alignment included.
    pub const fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// The pages that loading maps for them.
    pub const fn pages(&self) -> usize {
        self.len_bytes.div_ceil(PAGE_BYTES)
    }
}

/// One tensor and its place in the weights.
#[derive(Clone, Debug)]
pub struct PlannedTensor {
    /// What it is, as its file stores it.
    pub info: TensorInfo,
    pub(crate) placement: Placement,
    pub(crate) area: Area,
}

/// What a tensor is in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// f32 \[n], so that no operation has to widen it at every step; norms and biases are small.
    Vector,
    /// See [`Matrix`].
    Matrix {
        format: WeightFormat,
        rows: usize,
        columns: usize,
    },
}

impl PlannedTensor {
    fn new(role: impl WeightRole, info: TensorInfo, precision: Precision, weights: &mut Areas) -> Self {
        let placement = match info.shape.as_slice() {
            [_] => Placement::Vector,
            [rows, columns] => Placement::Matrix {
                format: format(role, info.dtype, precision, *columns),
                rows: *rows,
                columns: *columns,
            },
            shape => unreachable!("a model has vectors and matrices only, not {shape:?}"),
        };
        let area = weights.take_bytes(match placement {
            Placement::Vector => info.size_bytes_as(Dtype::F32),
            Placement::Matrix {
                format,
                rows,
                columns,
            } => format.matrix_bytes(rows, columns),
        });
        Self {
            info,
            placement,
            area,
        }
    }

    /// How its elements are kept on the device.
    pub const fn format(&self) -> WeightFormat {
        match self.placement {
            Placement::Vector => WeightFormat::F32,
            Placement::Matrix { format, .. } => format,
        }
    }

    /// The tensor as a weight matrix in its region.
    ///
    /// # Panics
    /// It is a vector.
    pub(crate) fn matrix(&self, region: RegionId) -> Matrix {
        let Placement::Matrix {
            format,
            rows,
            columns,
        } = self.placement
        else {
            panic!("{} is a vector", self.info.name);
        };
        Matrix {
            span: self.area.in_region(region),
            format,
            rows,
            columns,
        }
    }

    /// Its size in its file.
    pub(crate) fn stored_bytes(&self) -> usize {
        self.info
            .size_bytes()
            .expect("no larger than in device memory, where it was counted")
    }
}

fn format(role: impl WeightRole, stored: Dtype, precision: Precision, columns: usize) -> WeightFormat {
    match precision {
        Precision::Stored => stored.into(),
        Precision::Int4 if role.is_of_layer() && columns.is_multiple_of(INT4_GROUP_COLUMNS) => {
            WeightFormat::Int4
        }
        Precision::Int8 | Precision::Int4 => WeightFormat::Int8,
    }
}
