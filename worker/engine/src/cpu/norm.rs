//! Root-mean-square normalisation.

use super::dot::dot;

/// The weights of a normalisation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scales<'a> {
    pub(super) weights: &'a [f32],
    /// Added to each of them.
    pub(super) offset: f32,
    /// Added to the mean square.
    pub(super) epsilon: f32,
}

/// `out[row] = x[row] / sqrt(mean(x[row]^2) + epsilon) * (weights + offset)`.
pub(super) fn rms_norm(scales: Scales<'_>, x: &[f32], out: &mut [f32]) {
    out.copy_from_slice(x);
    rms_norm_in_place(scales, out);
}

/// The same, over rows that lie one after the other.
#[expect(clippy::cast_precision_loss, reason = "rows are at most 2^20 long")]
pub(super) fn rms_norm_in_place(scales: Scales<'_>, x: &mut [f32]) {
    let Scales {
        weights,
        offset,
        epsilon,
    } = scales;
    let columns = weights.len();
    for row in x.chunks_exact_mut(columns) {
        let scale = 1.0 / (dot(row, row) / columns as f32 + epsilon).sqrt();
        for (value, weight) in row.iter_mut().zip(weights) {
            *value = *value * scale * (weight + offset);
        }
    }
}
