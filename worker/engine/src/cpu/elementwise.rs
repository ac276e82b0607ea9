//! Operations that look at one element, or copy one row, at a time.

use std::f32::consts::FRAC_2_PI;

use super::dot::Weight;
use crate::backend::Activation;

/// `x += add`.
pub(super) fn add(x: &mut [f32], add: &[f32]) {
    assert_eq!(x.len(), add.len(), "one addend for each element");
    for (x, add) in x.iter_mut().zip(add) {
        *x += add;
    }
}

/// `gate = activation(gate) * up`.
pub(super) fn gated(activation: Activation, gate: &mut [f32], up: &[f32]) {
    match activation {
        Activation::Silu => gated_by(silu, gate, up),
        Activation::GeluTanh => gated_by(gelu_tanh, gate, up),
    }
}

fn gated_by(activate: impl Fn(f32) -> f32, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "one factor for each element");
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = activate(*gate) * up;
    }
}

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

fn gelu_tanh(x: f32) -> f32 {
    0.5 * x * (1.0 + (FRAC_2_PI.sqrt() * (x + 0.044715 * x * x * x)).tanh())
}

/// `x[row] += bias`.
pub(super) fn add_to_rows(x: &mut [f32], bias: &[f32]) {
    for row in x.chunks_exact_mut(bias.len()) {
        add(row, bias);
    }
}

/// `x *= factor`.
pub(super) fn scale(x: &mut [f32], factor: f32) {
    x.iter_mut().for_each(|x| *x *= factor);
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

/// The index of the first element that is NaN or infinite.
pub(super) fn first_non_finite<W: Weight>(elements: &[W]) -> Option<usize> {
    let is_bad = |element: &W| !element.is_finite();
    // Looks at whole chunks, which vectorises, before it looks for the one.
    let suspect = |chunk: &[W]| chunk.iter().fold(false, |any, element| any | is_bad(element));
    let chunk = elements.chunks(CHUNK).position(suspect)?;
    elements[chunk * CHUNK..]
        .iter()
        .position(is_bad)
        .map(|index| chunk * CHUNK + index)
}

const CHUNK: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bad_element_is_found_wherever_it_is() {
        for index in [0, 1, CHUNK - 1, CHUNK, 2 * CHUNK + 3] {
            let mut elements = vec![1f32; 2 * CHUNK + 4];
            assert_eq!(first_non_finite(&elements), None);
            elements[index] = f32::NAN;
            elements[2 * CHUNK + 3] = f32::INFINITY;
            assert_eq!(first_non_finite(&elements), Some(index));
        }
    }
}
