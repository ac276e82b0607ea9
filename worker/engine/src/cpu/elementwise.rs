//! Operations that look at one element, or copy one row, at a time.

use super::dot::Weight;

/// `x += add`.
pub(super) fn add(x: &mut [f32], add: &[f32]) {
    assert_eq!(x.len(), add.len(), "one addend for each element");
    for (x, add) in x.iter_mut().zip(add) {
        *x += add;
    }
}

/// `gate = silu(gate) * up`.
pub(super) fn silu_mul(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "one factor for each element");
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + (-*gate).exp()) * up;
    }
}

/// `out[i] = table[rows[i]]`, as f32.
pub(super) fn gather_widened<W: Weight>(table: &[W], rows: &[u32], out: &mut [f32], columns: usize) {
    assert_eq!(out.len(), rows.len() * columns, "a row out for each index");
    for (row, out) in rows.iter().zip(out.chunks_exact_mut(columns)) {
        let source = &table[*row as usize * columns..][..columns];
        for (out, value) in out.iter_mut().zip(source) {
            *out = value.widen();
        }
    }
}
