//! Root-mean-square normalisation.

use super::dot::{Weight, dot};

/// `out[row] = x[row] / sqrt(mean(x[row]^2) + epsilon) * weights`.
#[expect(clippy::cast_precision_loss, reason = "rows are at most 2^20 long")]
pub(super) fn rms_norm<W: Weight>(weights: &[W], x: &[f32], out: &mut [f32], epsilon: f32) {
    let columns = weights.len();
    assert_eq!(x.len(), out.len(), "as much out as in");
    for (x, out) in x.chunks_exact(columns).zip(out.chunks_exact_mut(columns)) {
        let scale = 1.0 / (dot(x, x) / columns as f32 + epsilon).sqrt();
        for ((out, value), weight) in out.iter_mut().zip(x).zip(weights) {
            *out = value * scale * weight.widen();
        }
    }
}
