//! Where things lie in a region, before there is one.

use super::PlanError;
use crate::backend::{RegionId, Span, WORD_BYTES};

/// A range of a region that is not reserved yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Area {
    pub(crate) offset_bytes: usize,
    pub(crate) len_bytes: usize,
}

impl Area {
    pub(crate) const fn in_region(self, region: RegionId) -> Span {
        Span {
            region,
            offset_bytes: self.offset_bytes,
            len_bytes: self.len_bytes,
        }
    }
}

/// Lays areas out one after the other; an overflow is remembered and told at the end.
pub(crate) struct Areas {
    next_bytes: Option<usize>,
}

impl Default for Areas {
    fn default() -> Self {
        Self { next_bytes: Some(0) }
    }
}

impl Areas {
    pub(crate) fn take_words(&mut self, rows: usize, columns: usize) -> Area {
        self.take_bytes(
            rows.checked_mul(columns)
                .and_then(|words| words.checked_mul(WORD_BYTES)),
        )
    }

    pub(crate) fn take_bytes(&mut self, len_bytes: Option<usize>) -> Area {
        let offset_bytes = self.next_bytes.unwrap_or(0);
        self.next_bytes = self
            .next_bytes
            .zip(len_bytes)
            .and_then(|(next, len)| next.checked_add(len)?.checked_next_multiple_of(ALIGNMENT_BYTES));
        Area {
            offset_bytes,
            len_bytes: len_bytes.unwrap_or(0),
        }
    }

    pub(crate) fn len_bytes(&self) -> Result<usize, PlanError> {
        self.next_bytes
            .filter(|len| *len <= isize::MAX as usize)
            .ok_or(PlanError::TooLarge)
    }
}

/// Every area starts at a multiple of this: the widest load of a GPU's copy engines and a cache line's double.
const ALIGNMENT_BYTES: usize = 256;
