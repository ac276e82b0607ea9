//! How each policy looks, in every picture alike.

use crate::policy::PolicyName;

/// Colour, line and marker of one policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Style {
    pub(super) colour: &'static str,
    /// Lengths of strokes and gaps; none for a line without gaps.
    pub(super) dash: &'static str,
    pub(super) marker: Marker,
}

/// The shape of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marker {
    Circle,
    Square,
    Diamond,
}

impl Style {
    pub(super) fn of(policy: PolicyName) -> Self {
        let place = PolicyName::ALL.iter().position(|name| *name == policy);
        let place = place.unwrap_or(0);
        Self {
            colour: COLOURS[place % COLOURS.len()],
            dash: DASHES[place / COLOURS.len() % DASHES.len()],
            marker: MARKERS[place % MARKERS.len()],
        }
    }
}

/// Okabe and Ito's, with grey for the yellow that white paper swallows.
const COLOURS: [&str; 8] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#888888",
];
const DASHES: [&str; 2] = ["none", "7 3"];
const MARKERS: [Marker; 3] = [Marker::Circle, Marker::Square, Marker::Diamond];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_policies_look_alike() {
        let styles = PolicyName::ALL.map(Style::of);
        for (index, style) in styles.iter().enumerate() {
            assert!(!styles[..index].contains(style), "{style:?}");
        }
    }
}
