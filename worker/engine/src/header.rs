//! The header of a safetensors file, checked against the file's length before anything is read through it.
//!
//! The format: 8 bytes of header length (little-endian), a JSON object of that length, then the tensors'
//! bytes without gaps. Our own reader, because its errors name the tensor with what was expected and found.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

use crate::{Dtype, TensorInfo};

/// The tensors of one safetensors file, all of them inside the file and none over another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    tensors: BTreeMap<String, HeaderTensor>,
}

/// One tensor as a header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderTensor {
    /// How its elements are stored.
    pub dtype: StoredDtype,
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Where its bytes lie, from the start of the file.
    pub file_range: Range<usize>,
}

/// An element type that a file may use, whether or not the engine computes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredDtype {
    /// One that weights may have.
    Supported(Dtype),
    /// Another one, by its name; no harm in tensors that nobody needs.
    Other(String),
}

impl Header {
    /// Reads the header at the start of a file of `file_len` bytes; `start` holds at least the header.
    ///
    /// # Errors
    /// The first fault found.
    pub fn parse(start: &[u8], file_len: usize) -> Result<Self, HeaderError> {
        let json_end = Self::end(start, file_len)?;
        let json = start.get(LENGTH_BYTES..json_end).ok_or(HeaderError::Truncated {
            expected: json_end,
            found: start.len(),
        })?;
        let raw: RawHeader = serde_json::from_slice(json).map_err(HeaderError::Json)?;
        let data_len = file_len - json_end;
        let tensors = raw
            .tensors
            .into_iter()
            .map(|(name, tensor)| Ok((name.clone(), tensor.check(&name, json_end, data_len)?)))
            .collect::<Result<BTreeMap<_, _>, HeaderError>>()?;
        check_coverage(&tensors, json_end, file_len)?;
        Ok(Self { tensors })
    }

    /// Where the header ends and the tensors' bytes start, from the first bytes of the file.
    ///
    /// # Errors
    /// The file is shorter, or the length is beyond any real header.
    pub fn end(start: &[u8], file_len: usize) -> Result<usize, HeaderError> {
        let length = start
            .first_chunk::<LENGTH_BYTES>()
            .filter(|_| file_len >= LENGTH_BYTES)
            .ok_or(HeaderError::Truncated {
                expected: LENGTH_BYTES,
                found: start.len().min(file_len),
            })?;
        let length = u64::from_le_bytes(*length);
        match usize::try_from(length) {
            Ok(json_len) if length <= HEADER_BYTES_MAX => {
                let end = LENGTH_BYTES + json_len;
                if end > file_len {
                    return Err(HeaderError::Truncated {
                        expected: end,
                        found: file_len,
                    });
                }
                Ok(end)
            }
            _ => Err(HeaderError::TooLong {
                found: length,
                max: HEADER_BYTES_MAX,
            }),
        }
    }

    /// All tensors by name.
    pub const fn tensors(&self) -> &BTreeMap<String, HeaderTensor> {
        &self.tensors
    }
}

impl HeaderTensor {
    /// Its description under a name, or its element type's name if the engine does not compute with that.
    ///
    /// # Errors
    /// The name of an unsupported element type.
    pub fn info(&self, name: &str) -> Result<TensorInfo, &str> {
        match &self.dtype {
            StoredDtype::Supported(dtype) => Ok(TensorInfo {
                name: name.to_owned(),
                dtype: *dtype,
                shape: self.shape.clone(),
            }),
            StoredDtype::Other(other) => Err(other),
        }
    }
}

struct RawHeader {
    tensors: BTreeMap<String, RawTensor>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl RawTensor {
    fn check(self, name: &str, data_start: usize, data_len: usize) -> Result<HeaderTensor, HeaderError> {
        let (begin, end) = self.data_offsets;
        if begin > end || end > data_len {
            return Err(HeaderError::OutOfBounds {
                tensor: name.to_owned(),
                begin,
                end,
                data_len,
            });
        }
        let dtype = match self.dtype.as_str() {
            "F32" => StoredDtype::Supported(Dtype::F32),
            "F16" => StoredDtype::Supported(Dtype::F16),
            "BF16" => StoredDtype::Supported(Dtype::Bf16),
            _ => StoredDtype::Other(self.dtype),
        };
        let tensor = HeaderTensor {
            dtype,
            shape: self.shape,
            file_range: data_start + begin..data_start + end,
        };
        if let Ok(info) = tensor.info(name) {
            let expected = info.size_bytes();
            if expected != Some(end - begin) {
                return Err(HeaderError::SizeMismatch {
                    tensor: info.name,
                    dtype: info.dtype,
                    shape: info.shape,
                    found: end - begin,
                });
            }
        }
        Ok(tensor)
    }
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawHeaderVisitor)
    }
}

struct RawHeaderVisitor;

impl<'de> Visitor<'de> for RawHeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object of tensors by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut tensors = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                // Of no use here, but text by the format.
                map.next_value::<BTreeMap<String, String>>()?;
                continue;
            }
            let tensor = map.next_value::<RawTensor>()?;
            if tensors.contains_key(&name) {
                return Err(serde::de::Error::custom(format_args!(
                    "tensor {name} is listed twice"
                )));
            }
            tensors.insert(name, tensor);
        }
        Ok(RawHeader { tensors })
    }
}

/// The tensors must cover the data without overlap, gap or rest, as the format demands.
fn check_coverage(
    tensors: &BTreeMap<String, HeaderTensor>,
    data_start: usize,
    file_len: usize,
) -> Result<(), HeaderError> {
    let mut by_place: Vec<(&String, &Range<usize>)> = tensors
        .iter()
        .map(|(name, tensor)| (name, &tensor.file_range))
        .collect();
    by_place.sort_by_key(|(_, range)| (range.start, range.end));
    let mut covered = data_start;
    let mut before: Option<&String> = None;
    for (name, range) in by_place {
        if range.start < covered {
            return Err(HeaderError::Overlap {
                tensor: name.clone(),
                other: before.cloned().expect("a tensor covers what lies before"),
            });
        }
        if range.start > covered {
            return Err(HeaderError::Gap {
                tensor: name.clone(),
                gap_bytes: range.start - covered,
            });
        }
        covered = range.end;
        before = Some(name);
    }
    if covered < file_len {
        return Err(HeaderError::Trailing {
            rest_bytes: file_len - covered,
        });
    }
    Ok(())
}

/// The length of a header is told in as many bytes, at the start of the file.
pub(crate) const LENGTH_BYTES: usize = 8;

/// The largest header that is believed, in bytes; the reference implementation has the same limit.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// Why a file is not a safetensors file.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The file ends within its header.
    #[error("truncated within its header: expected at least {expected} bytes, found {found}")]
    Truncated {
        /// The bytes needed.
        expected: usize,
        /// The bytes there are.
        found: usize,
    },
    /// The header's length is beyond any real header.
    #[error("header length: expected at most {max} bytes, found {found}")]
    TooLong {
        /// What the file says.
        found: u64,
        /// The limit.
        max: u64,
    },
    /// The header is not the JSON it should be.
    #[error("the header is not an object of tensors in JSON")]
    Json(#[source] serde_json::Error),
    /// A tensor lies outside the file, which may be truncated.
    #[error("tensor {tensor}: bytes {begin}..{end} lie outside the {data_len} bytes of data")]
    OutOfBounds {
        /// The tensor.
        tensor: String,
        /// Where it starts, from the end of the header.
        begin: usize,
        /// Where it ends.
        end: usize,
        /// How many bytes follow the header.
        data_len: usize,
    },
    /// A tensor's bytes do not fit its shape and element type.
    #[error("tensor {tensor}: {found} bytes are not what {dtype} {shape:?} takes")]
    SizeMismatch {
        /// The tensor.
        tensor: String,
        /// Its element type.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<usize>,
        /// The bytes that the header gives it.
        found: usize,
    },
    /// Two tensors share bytes.
    #[error("tensor {tensor} overlaps tensor {other}")]
    Overlap {
        /// The later one.
        tensor: String,
        /// The earlier one.
        other: String,
    },
    /// There are bytes before a tensor that belong to none.
    #[error("tensor {tensor}: {gap_bytes} bytes before it belong to no tensor")]
    Gap {
        /// The tensor after the gap.
        tensor: String,
        /// The length of the gap.
        gap_bytes: usize,
    },
    /// There are bytes at the end that belong to no tensor.
    #[error("the last {rest_bytes} bytes belong to no tensor")]
    Trailing {
        /// How many.
        rest_bytes: usize,
    },
}
