//! Files of tensors, small enough to be changed anywhere.

use serde_json::{Value, json};

use crate::corpus::Corpus;
use crate::target::Format;

/// Whole files: length, header, tensors.
pub(in crate::targets) fn corpus() -> Corpus {
    let plain = json!({"a": tensor("F32", &[2, 2], 0, 16), "b": tensor("BF16", &[4], 16, 24), "c": tensor("I64", &[1], 24, 32)});
    let empty = json!({"__metadata__": {"format": "pt"}, "none": tensor("F16", &[0, 7], 0, 0), "x": tensor("U8", &[3], 0, 3)});
    let samples = [(plain, 32), (empty, 3), (json!({}), 0)].map(|(header, data)| file(&header, data));
    Corpus::new(Format::Bytes, samples)
}

fn tensor(dtype: &str, shape: &[usize], begin: usize, end: usize) -> Value {
    json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]})
}

fn file(header: &Value, data_bytes: usize) -> Vec<u8> {
    let header = header.to_string();
    let length = header.len() as u64;
    [&length.to_le_bytes()[..], header.as_bytes(), &vec![7; data_bytes]].concat()
}
