//! The part of a device that a request takes while it runs.

use std::iter::Sum;
use std::ops::Add;

use serde::{Deserialize, Serialize};

/// A part of one device, in billionths, so that sums are exact: what was booked and released leaves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Share(u64);

impl Share {
    /// Nothing of a device.
    pub(crate) const NONE: Self = Self(0);
    /// All of a device.
    pub(crate) const FULL: Self = Self(1_000_000_000);

    /// A fraction, rounded down, so that n shares of 1/n fill a device and fit.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the product lies between 0 and a billion"
    )]
    pub(crate) fn of(fraction: f64) -> Self {
        Self((fraction.clamp(0.0, 1.0) * 1e9) as u64)
    }

    /// As a fraction of one device; above 1 for the sum of a device that is booked beyond its capacity.
    #[expect(clippy::cast_precision_loss, reason = "sums stay far below 2^52")]
    pub(crate) fn fraction(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// Whether a device with this much booked takes `other` as well.
    pub(crate) fn has_room_for(self, other: Self) -> bool {
        self + other <= Self::FULL
    }
}

impl Add for Share {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl Sum for Share {
    fn sum<I: Iterator<Item = Self>>(shares: I) -> Self {
        shares.fold(Self::NONE, Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_nth_parts_as_n_fit_and_one_more_does_not() {
        for parts in 1_u32..200 {
            let one = Share::of(1.0 / f64::from(parts));
            let booked: Share = (1..parts).map(|_| one).sum();
            assert!(booked.has_room_for(one), "{parts}");
            assert!(!(booked + one).has_room_for(one), "{parts}");
        }
    }
}
