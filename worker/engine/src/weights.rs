//! The weights that a model needs, and the tensors that they are.

use std::collections::HashMap;

use crate::TensorInfo;

/// Which weight of its model a tensor is.
pub(crate) trait WeightRole: Copy {
    /// Whether it belongs to one of the layers, which may be kept less exact than all else.
    fn is_of_layer(self) -> bool;
}

/// A weight that a configuration asks for.
#[derive(Clone, Debug)]
pub(crate) struct Required<R> {
    pub(crate) role: R,
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
}

/// Pairs each weight with its tensor; tensors that nobody needs are left out.
///
/// # Errors
/// A weight is missing or has another shape.
pub(crate) fn resolve<'a, R>(
    required: Vec<Required<R>>,
    tensors: impl IntoIterator<Item = &'a TensorInfo>,
) -> Result<Vec<(R, TensorInfo)>, TensorsError> {
    let by_name: HashMap<&str, &TensorInfo> = tensors
        .into_iter()
        .map(|tensor| (tensor.name.as_str(), tensor))
        .collect();
    required
        .into_iter()
        .map(|weight| {
            let Some(tensor) = by_name.get(weight.name.as_str()) else {
                return Err(TensorsError::Missing {
                    tensor: weight.name,
                    shape: weight.shape,
                });
            };
            if tensor.shape != weight.shape {
                return Err(TensorsError::Shape {
                    tensor: weight.name,
                    expected: weight.shape,
                    found: tensor.shape.clone(),
                });
            }
            Ok((weight.role, (*tensor).clone()))
        })
        .collect()
}

/// Why a set of tensors is not the model that a configuration describes.
#[derive(Debug, thiserror::Error)]
pub enum TensorsError {
    /// A weight is not there.
    #[error("tensor {tensor} of shape {shape:?} is missing")]
    Missing {
        /// The tensor.
        tensor: String,
        /// The shape it should have.
        shape: Vec<usize>,
    },
    /// A tensor is there that the configured model has no use for: without it, the model would be another.
    #[error("tensor {tensor} is none of the configured model")]
    Unexpected {
        /// The tensor.
        tensor: String,
    },
    /// A weight has another shape than the configuration asks for.
    #[error("tensor {tensor}: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// What the configuration asks for.
        expected: Vec<usize>,
        /// What the file has.
        found: Vec<usize>,
    },
    /// A weight's element type is none that the engine computes with.
    #[error("tensor {tensor}: expected F32, F16 or BF16, found {found}")]
    Dtype {
        /// The tensor.
        tensor: String,
        /// The name of its element type.
        found: String,
    },
}
