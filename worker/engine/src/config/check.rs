//! Checks of single numbers, each with the field at fault.

use super::ConfigError;

/// A size without a default, from 1 to `max`.
pub(super) fn size(field: &'static str, found: Option<u64>, max: u64) -> Result<usize, ConfigError> {
    in_range(field, found.ok_or(ConfigError::Missing { field })?, max)
}

pub(super) fn in_range(field: &'static str, found: u64, max: u64) -> Result<usize, ConfigError> {
    match usize::try_from(found) {
        Ok(size) if (1..=max).contains(&found) => Ok(size),
        _ => Err(ConfigError::OutOfRange { field, found, max }),
    }
}

pub(super) fn divides(
    field: &'static str,
    found: usize,
    divisor: &'static str,
    divisor_found: usize,
) -> Result<(), ConfigError> {
    if found.is_multiple_of(divisor_found) {
        Ok(())
    } else {
        Err(ConfigError::NotDivisible {
            field,
            found,
            divisor,
            divisor_found,
        })
    }
}

/// A number that is positive and finite as an f32 too.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the model computes in f32; the result is checked"
)]
pub(super) fn positive(field: &'static str, found: f64) -> Result<f64, ConfigError> {
    let narrow = found as f32;
    if narrow > 0.0 && narrow.is_finite() {
        Ok(found)
    } else {
        Err(ConfigError::NotPositive { field, found })
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the result was checked to be finite"
)]
pub(super) fn positive_f32(field: &'static str, found: f64) -> Result<f32, ConfigError> {
    positive(field, found).map(|found| found as f32)
}

pub(super) fn token_id(field: &'static str, id: u64, vocab_size: usize) -> Result<u32, ConfigError> {
    match u32::try_from(id) {
        Ok(token) if id < vocab_size as u64 => Ok(token),
        _ => Err(ConfigError::TokenId {
            field,
            found: id,
            vocab_size,
        }),
    }
}

pub(super) fn unsupported<T>(
    field: &'static str,
    expected: &'static str,
    found: impl Into<String>,
) -> Result<T, ConfigError> {
    Err(ConfigError::Unsupported {
        field,
        expected,
        found: found.into(),
    })
}

// No model comes near these. With them, every product of sizes in this crate fits a u64.
pub(super) const VOCAB_SIZE_MAX: u64 = 1 << 24;
pub(super) const WIDTH_MAX: u64 = 1 << 20;
pub(super) const HEADS_MAX: u64 = 1 << 12;
pub(super) const LAYERS_MAX: u64 = 1 << 12;
/// Up to here every position is an exact f32.
pub(super) const CONTEXT_TOKENS_MAX: u64 = 1 << 24;
