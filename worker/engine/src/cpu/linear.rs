//! Matrix products: each row of weights is read once and meets all rows of activations while it is in cache.

use super::dot::{Weight, dot_rows};

/// The shape of a weight matrix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

/// `out[row][output] = x[row] . weights[output]`.
pub(super) fn linear<W: Weight>(weights: &[W], shape: Shape, x: &[f32], out: &mut [f32]) {
    let Shape { inputs, outputs } = shape;
    assert_eq!(
        weights.len(),
        inputs * outputs,
        "a weight for each pair of input and output"
    );
    assert_eq!(x.len() / inputs, out.len() / outputs, "as many rows out as in");
    let grouped = x.len() / inputs / ROWS * ROWS;
    for (output, weights) in weights.chunks_exact(inputs).enumerate() {
        let mut targets = out.iter_mut().skip(output).step_by(outputs);
        for group in x[..grouped * inputs].chunks_exact(ROWS * inputs) {
            let rows: [&[f32]; ROWS] = std::array::from_fn(|row| &group[row * inputs..][..inputs]);
            targets
                .by_ref()
                .zip(dot_rows(weights, rows))
                .for_each(|(target, product)| *target = product);
        }
        for (row, target) in x[grouped * inputs..].chunks_exact(inputs).zip(targets) {
            [*target] = dot_rows(weights, [row]);
        }
    }
}

/// How many rows meet a row of weights at a time: their lanes fill the vector registers.
const ROWS: usize = 4;
