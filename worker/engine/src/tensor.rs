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

/// How a weight matrix lies in device memory.
///
/// Unquantised formats keep the stored elements. The others are made while loading: int8 with one scale a
/// row, int4 with one scale for every [`INT4_GROUP_COLUMNS`] columns of a row. Rows are kept in groups of
/// [`PANEL_ROWS`]; both rows and columns are filled up with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// As stored, 4 bytes an element.
    F32,
    /// As stored, 2 bytes an element.
    F16,
    /// As stored, 2 bytes an element.
    Bf16,
    /// 1 byte an element, and 4 a row.
    Int8,
    /// Half a byte an element, and 2 a group.
    Int4,
}

impl WeightFormat {
    /// The bytes of a matrix, or none when they do not fit a `usize`.
    pub const fn matrix_bytes(self, rows: usize, columns: usize) -> Option<usize> {
        match self.panel_bytes(columns) {
            Some(panel) => panel.checked_mul(rows.div_ceil(PANEL_ROWS)),
            None => None,
        }
    }

    /// The bytes of [`PANEL_ROWS`] rows, or none when they do not fit a `usize`.
    pub(crate) const fn panel_bytes(self, columns: usize) -> Option<usize> {
        match self.units(columns).checked_mul(self.unit_bytes()) {
            Some(bytes) => bytes.checked_add(self.scales_bytes(columns)),
            None => None,
        }
    }

    /// What the scales of a panel take, at its start.
    pub(crate) const fn scales_bytes(self, columns: usize) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 0,
            Self::Int8 => PANEL_ROWS * 4,
            Self::Int4 => (columns / INT4_GROUP_COLUMNS * PANEL_ROWS * 2).next_multiple_of(UNIT_BYTES),
        }
    }

    /// How many columns of all rows of a panel lie together.
    pub(crate) const fn unit_columns(self) -> usize {
        match self {
            Self::F32 | Self::F16 => 1,
            Self::Bf16 => 2,
            Self::Int8 => 4,
            Self::Int4 => 8,
        }
    }

    /// The bytes of these columns.
    pub(crate) const fn unit_bytes(self) -> usize {
        match self {
            Self::F16 => UNIT_BYTES / 2,
            Self::F32 | Self::Bf16 | Self::Int8 | Self::Int4 => UNIT_BYTES,
        }
    }

    /// How many units a row has.
    pub(crate) const fn units(self, columns: usize) -> usize {
        columns.div_ceil(self.unit_columns())
    }

    /// Whether the inputs of a product are rounded to bf16, so that two of them make a word.
    pub(crate) const fn takes_pairs(self) -> bool {
        match self {
            Self::F32 | Self::F16 => false,
            Self::Bf16 | Self::Int8 | Self::Int4 => true,
        }
    }

    /// How many words of four bytes the inputs of a product have in a row.
    pub const fn input_words(self, columns: usize) -> usize {
        let words = self.units(columns) * self.unit_columns();
        if self.takes_pairs() { words / 2 } else { words }
    }
}

impl From<Dtype> for WeightFormat {
    fn from(stored: Dtype) -> Self {
        match stored {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}

/// How exact the weights of a model are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// As they are stored.
    #[default]
    Stored,
    /// All matrices as [`WeightFormat::Int8`].
    Int8,
    /// The matrices of the layers as [`WeightFormat::Int4`], where their rows divide into groups; all others,
    /// embeddings and output layer among them, as [`WeightFormat::Int8`].
    Int4,
}

/// How many rows of a weight matrix lie interleaved.
pub const PANEL_ROWS: usize = 16;

/// How many columns of a row share a scale in [`WeightFormat::Int4`].
pub const INT4_GROUP_COLUMNS: usize = 32;

/// The widest vector register.
const UNIT_BYTES: usize = 64;
