//! What a tensor is, apart from where it lies.

use std::fmt;

use half::{bf16, f16};

/// How a weight's elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of an IEEE 754 single.
    Bf16,
}

impl Dtype {
    /// The size of one element in bytes.
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The nearest number that it can store.
    pub(crate) fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => f16::from_f32(value).to_f32(),
            Self::Bf16 => bf16::from_f32(value).to_f32(),
        }
    }

    /// Elements as they are stored, as f32.
    pub(crate) fn widen(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => {
                let (elements, _) = bytes.as_chunks();
                elements.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
            }
            Self::F16 => {
                let (elements, _) = bytes.as_chunks();
                elements
                    .iter()
                    .map(|bytes| f16::from_le_bytes(*bytes).to_f32())
                    .collect()
            }
            Self::Bf16 => {
                let (elements, _) = bytes.as_chunks();
                elements
                    .iter()
                    .map(|bytes| bf16::from_le_bytes(*bytes).to_f32())
                    .collect()
            }
        }
    }

    /// The name that safetensors headers use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// The name, element type and shape of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name under which the model's files store it.
    pub name: String,
    /// How its elements are stored.
    pub dtype: Dtype,
    /// Its dimensions, outermost first; row-major.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// The size in bytes, or none when it does not fit a `usize`.
    pub fn size_bytes(&self) -> Option<usize> {
        self.size_bytes_as(self.dtype)
    }

    /// The size in bytes if its elements were stored as `dtype`, or none when it does not fit a `usize`.
    pub(crate) fn size_bytes_as(&self, dtype: Dtype) -> Option<usize> {
        self.shape
            .iter()
            .try_fold(dtype.size_bytes(), |bytes, extent| bytes.checked_mul(*extent))
    }
}
