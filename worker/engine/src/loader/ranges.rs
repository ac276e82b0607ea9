//! Which bytes of a tensor have arrived.

use std::ops::Range;

/// Disjoint ranges, ascending, none touching the next.
#[derive(Debug, Default)]
pub(super) struct ByteRanges {
    ranges: Vec<Range<usize>>,
}

impl ByteRanges {
    pub(super) fn add(&mut self, mut range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        let first = self.ranges.partition_point(|known| known.end < range.start);
        let last = self.ranges.partition_point(|known| known.start <= range.end);
        if first < last {
            range.start = range.start.min(self.ranges[first].start);
            range.end = range.end.max(self.ranges[last - 1].end);
        }
        self.ranges.splice(first..last, [range]);
    }

    /// Whether all bytes of a range are there.
    pub(super) fn cover(&self, range: &Range<usize>) -> bool {
        let holds = |known: &Range<usize>| known.start <= range.start && range.end <= known.end;
        range.is_empty() || self.ranges.iter().any(holds)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_cover_exactly_what_was_added(
            pieces in prop::collection::vec((0usize..40, 0usize..12), 0..20),
        ) {
            let mut ranges = ByteRanges::default();
            let mut bytes = [false; 52];
            for (start, len) in pieces {
                ranges.add(start..start + len);
                bytes[start..start + len].fill(true);
            }
            let held: Vec<bool> = (0..52)
                .map(|byte| ranges.ranges.iter().any(|range| range.contains(&byte)))
                .collect();
            prop_assert_eq!(&held[..], &bytes[..]);
            prop_assert!(ranges.ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
            for len in 1..52 {
                let all = bytes[..len].iter().all(|byte| *byte);
                prop_assert_eq!(ranges.cover(&(0..len)), all);
            }
        }
    }
}
