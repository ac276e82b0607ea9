//! Prices of device time that make a good bound.
//!
//! A market in rounds: every request looks for the cheapest slots, prices rise where more is asked for than
//! there is, and fall elsewhere. Each price has a pace of its own, which grows while the price goes one way
//! and halves when it turns, so that neither the scale of prices nor how full the fleet is has to be known.
//! Nothing that is found this way has to be believed: whatever the prices, what they give is a bound.

use std::ops::RangeInclusive;

use super::slots::Cheapest;

/// What is asked for and what there is.
#[derive(Debug)]
pub(super) struct Market {
    /// Device-seconds of each slot, for each kind of device; all above 0.
    pub(super) capacity_s: PerSlot,
    /// Requests; each is served by one of its offers, and has at least one.
    pub(super) requests: Vec<Vec<Offer>>,
}

/// One kind of device for one request.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    pub(super) kind: usize,
    /// Device-seconds, and in which slots they may be spent.
    pub(super) parts: [(f64, RangeInclusive<usize>); 2],
}

/// A number for each slot of each kind of device.
pub(super) type PerSlot = Vec<Vec<f64>>;

/// What is asked for at some prices.
#[derive(Debug)]
struct Demand {
    /// The bound that the prices give.
    bound: f64,
    /// Device-seconds.
    load_s: PerSlot,
    /// Whether every request wants to be served whole.
    is_whole: bool,
}

impl Market {
    /// The best bound that was found: at most so many requests are served.
    pub(super) fn bound(&self) -> f64 {
        let mut prices = self.per_slot(PRICE_MIN);
        let mut paces = self.per_slot(PACE_FIRST);
        let mut excesses = self.per_slot(0.0);
        let mut best = self.requests.len() as f64;
        for round in 0..ROUNDS {
            let demand = self.demand(&prices, width(round));
            best = best.min(demand.bound);
            let mut fits = demand.is_whole;
            for (kind, loads) in demand.load_s.iter().enumerate() {
                for (slot, load_s) in loads.iter().enumerate() {
                    let excess = load_s / self.capacity_s[kind][slot] - 1.0;
                    fits &= excess <= 0.0;
                    let pace = &mut paces[kind][slot];
                    let before = std::mem::replace(&mut excesses[kind][slot], excess);
                    *pace = match excess * before > 0.0 {
                        true => (*pace * PACE_GROWTH).min(PACE_MAX),
                        false => (*pace * PACE_TURN).max(PACE_MIN),
                    };
                    // The root, as the last few per cent of an excess decide.
                    let step = excess.abs().min(1.0).sqrt().copysign(excess) * *pace;
                    let price = &mut prices[kind][slot];
                    *price = (*price * step.exp()).max(PRICE_MIN);
                }
            }
            if fits {
                // Everything is served as it stands: no prices can show less.
                break;
            }
        }
        best
    }

    fn per_slot(&self, value: f64) -> PerSlot {
        let rows = self.capacity_s.iter();
        rows.map(|row| vec![value; row.len()]).collect()
    }

    /// What is asked for at some prices. What costs about as much as the cheapest is asked for in parts;
    /// `width` says how much more that is, as a part of what a request is worth.
    fn demand(&self, prices: &PerSlot, width: f64) -> Demand {
        let cheapest: Vec<_> = prices.iter().map(|row| Cheapest::of(row)).collect();
        let slots = prices.iter().flatten().zip(self.capacity_s.iter().flatten());
        let mut demand = Demand {
            bound: slots.map(|(price, capacity_s)| price * capacity_s).sum(),
            load_s: self.per_slot(0.0),
            is_whole: true,
        };
        let mut costs = Vec::new();
        for offers in &self.requests {
            costs.clear();
            costs.extend(offers.iter().map(|offer| offer.cost(&cheapest[offer.kind])));
            let least = costs.iter().copied().fold(f64::INFINITY, f64::min);
            demand.bound += (1.0 - least).max(0.0);
            let wish = ((1.0 + width - least) / (2.0 * width)).clamp(0.0, 1.0);
            demand.is_whole &= wish == 1.0;
            let weight = |cost: f64| (1.0 - (cost - least) / width).max(0.0);
            let weights: f64 = costs.iter().map(|&cost| weight(cost)).sum();
            for (offer, &cost) in offers.iter().zip(&costs) {
                let (part, kind) = (wish * weight(cost) / weights, offer.kind);
                if part > 0.0 {
                    let margin = width / offer.work_s();
                    offer.spend(
                        part,
                        margin,
                        &prices[kind],
                        &cheapest[kind],
                        &mut demand.load_s[kind],
                    );
                }
            }
        }
        demand
    }
}

impl Offer {
    fn work_s(&self) -> f64 {
        self.parts.iter().map(|(work_s, _)| work_s).sum()
    }

    fn cost(&self, cheapest: &Cheapest) -> f64 {
        let parts = self.parts.iter();
        parts
            .map(|(work_s, window)| work_s * cheapest.in_window(window))
            .sum()
    }

    /// Spreads a part of the work over slots that cost no more than the cheapest and a margin.
    fn spend(&self, part: f64, margin: f64, prices: &[f64], cheapest: &Cheapest, load_s: &mut [f64]) {
        for (work_s, window) in &self.parts {
            let least = cheapest.in_window(window);
            let stride = (window.end() - window.start() + 1).div_ceil(LOOKS_MAX);
            let mut weights = [0.0; LOOKS_MAX];
            let mut sum = 0.0;
            for (weight, prices) in weights.iter_mut().zip(prices[window.clone()].chunks(stride)) {
                *weight = (1.0 - (prices[0] - least) / margin).max(0.0);
                sum += *weight;
            }
            if sum == 0.0 {
                // The sample has missed everything cheap.
                (weights, sum) = ([1.0; LOOKS_MAX], LOOKS_MAX as f64);
            }
            let each_s = part * work_s / sum;
            for (weight, load_s) in weights.iter().zip(load_s[window.clone()].chunks_mut(stride)) {
                load_s[0] += each_s * weight;
            }
        }
    }
}

/// How wide "about as much" is in a round: first wide, so that prices find their level, then narrow.
fn width(round: u32) -> f64 {
    WIDTH_FIRST * (WIDTH_LAST / WIDTH_FIRST).powf(f64::from(round) / f64::from(ROUNDS))
}

/// Ten times as many make the bounds of the built-in traces smaller by one in two hundred at most.
const ROUNDS: u32 = 400;
/// Of what a request is worth; wider at first than prices are wrong then.
const WIDTH_FIRST: f64 = 0.2;
/// Of what a request is worth; the bound is larger than the best one by about as much of the doubtful
/// requests.
const WIDTH_LAST: f64 = 0.01;
/// Lowest price, from which it can rise again; a request is worth 1, and none needs a million seconds.
const PRICE_MIN: f64 = 1e-7;
/// First pace, as the logarithm of a price's change where half is missing.
const PACE_FIRST: f64 = 0.3;
/// Slowest pace: less would be no move in the rounds that there are.
const PACE_MIN: f64 = 1e-4;
/// Fastest pace: a price never more than about triples.
const PACE_MAX: f64 = 1.0;
/// How a pace grows, as usual in resilient propagation.
const PACE_GROWTH: f64 = 1.2;
/// What a turn leaves of a pace, as usual in resilient propagation.
const PACE_TURN: f64 = 0.5;
/// Most slots of a window that are looked at for spreading; a longer window is sampled evenly.
const LOOKS_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    /// One kind with slots of a second; a request needs so many seconds within such slots.
    fn market(slots: usize, requests: &[(f64, RangeInclusive<usize>)]) -> Market {
        let offer = |(work_s, window): &(f64, RangeInclusive<usize>)| Offer {
            kind: 0,
            parts: [(*work_s, window.clone()), (0.0, window.clone())],
        };
        Market {
            capacity_s: vec![vec![1.0; slots]],
            requests: requests.iter().map(|request| vec![offer(request)]).collect(),
        }
    }

    #[test]
    fn what_fits_is_served_whole() {
        let market = market(4, &[(1.0, 0..=3), (1.0, 0..=1), (2.0, 0..=3)]);
        assert!((market.bound() - 3.0).abs() < 1e-9);
    }

    #[test]
    fn of_equal_requests_as_many_are_served_as_fit() {
        let market = market(10, &vec![(2.5, 0..=9); 30]);
        let bound = market.bound();
        assert!((4.0..4.1).contains(&bound), "{bound}");
    }

    #[test]
    fn a_crowded_second_costs_and_an_empty_one_does_not_help_it() {
        let mut requests = vec![(1.0, 5..=5); 20];
        requests.extend(vec![(1.0, 0..=4); 3]);
        let bound = market(10, &requests).bound();
        assert!((4.0..4.2).contains(&bound), "{bound}");
    }

    #[test]
    fn the_cheapest_requests_are_the_ones_that_are_served() {
        let mut requests = vec![(0.5, 0..=9); 10];
        requests.extend(vec![(5.0, 0..=9); 10]);
        let bound = market(10, &requests).bound();
        assert!((11.0..11.2).contains(&bound), "{bound}");
    }

    #[test]
    fn a_request_goes_where_it_costs_least() {
        let window = 0..=3;
        let offer = |kind, work_s| Offer {
            kind,
            parts: [(work_s, window.clone()), (0.0, window.clone())],
        };
        // The first sort is quick on the first kind, the second on the second.
        let mut requests = vec![vec![offer(0, 1.0), offer(1, 4.0)]; 10];
        requests.extend(vec![vec![offer(0, 4.0), offer(1, 1.0)]; 10]);
        let market = Market {
            capacity_s: vec![vec![1.0; 4]; 2],
            requests,
        };
        let bound = market.bound();
        assert!((8.0..8.2).contains(&bound), "{bound}");
    }
}
