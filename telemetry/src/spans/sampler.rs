//! Which traces are told.

use flotilla_protocol::TraceParent;

use super::TraceId;

/// Which traces are told. Every process that has the same one decides the same about a trace.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// Whether what the caller says counts before the part.
    pub follows_caller: bool,
    /// The part of the traces that is told, from 0 to 1.
    pub part: f64,
}

impl Sampler {
    pub(crate) fn takes(self, trace: TraceId, caller: Option<&TraceParent>) -> bool {
        match caller {
            Some(caller) if self.follows_caller => caller.is_sampled(),
            Some(_) | None => self.takes_by_part(trace),
        }
    }

    /// As the standard has it, so that others who look at the same bits take a part of the same traces: the last 56 bits of
    /// the id against a threshold.
    #[expect(clippy::cast_precision_loss, reason = "56 bits, of which the first 53 decide")]
    fn takes_by_part(self, trace: TraceId) -> bool {
        let above = trace.random_bits() as f64 / RANGE;
        above >= 1.0 - self.part
    }
}

/// How many there are of 56 bits.
const RANGE: f64 = (1_u64 << 56) as f64;

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(flags: &str) -> TraceParent {
        TraceParent::parse(&format!(
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}"
        ))
        .unwrap()
    }

    #[test]
    fn a_part_takes_about_as_many_and_all_or_none_takes_all_or_none() {
        let taken = |part| {
            let sampler = Sampler {
                follows_caller: true,
                part,
            };
            let traces = (0..10_000).map(|index| TraceId::derived(&index.to_string()));
            traces.filter(|trace| sampler.takes(*trace, None)).count()
        };
        assert_eq!(taken(0.0), 0);
        assert_eq!(taken(1.0), 10_000);
        let quarter = taken(0.25);
        assert!((2300..2700).contains(&quarter), "{quarter}");
    }

    #[test]
    fn what_the_caller_says_counts_where_it_is_asked() {
        let takes = |follows_caller, part, flags| {
            let caller = caller(flags);
            Sampler { follows_caller, part }.takes(TraceId::of(&caller), Some(&caller))
        };
        assert!(takes(true, 0.0, "01") && !takes(true, 1.0, "00"));
        assert!(!takes(false, 0.0, "01") && takes(false, 1.0, "00"));
    }
}
