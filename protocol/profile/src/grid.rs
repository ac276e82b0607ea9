//! A quantity over a grid of output and prompt tokens: interpolation inside, extrapolation beyond.

/// The ticks of one axis, in tokens, ascending and at least 1.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Axis {
    ticks: Vec<f64>,
    logs: Vec<f64>,
}

/// Where a number of tokens lies on an axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spot {
    /// The last tick that is not above it; the first one when it lies below all.
    index: usize,
    /// How far it is towards the next tick, in log2 space, from 0 to below 1.
    fraction: f64,
    /// Tokens beyond the last tick.
    beyond: f64,
}

impl Spot {
    pub(crate) fn is_beyond(self) -> bool {
        self.beyond > 0.0
    }
}

impl Axis {
    /// An axis of checked ticks.
    pub(crate) fn new(ticks: Vec<f64>) -> Self {
        let logs = ticks.iter().map(|tick| tick.log2()).collect();
        Self { ticks, logs }
    }

    pub(crate) fn ticks(&self) -> &[f64] {
        &self.ticks
    }

    pub(crate) fn first(&self) -> f64 {
        self.ticks[0]
    }

    pub(crate) fn spot(&self, tokens: f64) -> Spot {
        let last = self.ticks.len() - 1;
        let at_tick = |index, beyond| Spot {
            index,
            fraction: 0.0,
            beyond,
        };
        if tokens >= self.ticks[last] {
            return at_tick(last, tokens - self.ticks[last]);
        }
        let Some(index) = self.ticks.partition_point(|&tick| tick <= tokens).checked_sub(1) else {
            return at_tick(0, 0.0);
        };
        if tokens == self.ticks[index] {
            return at_tick(index, 0.0);
        }
        Spot {
            index,
            fraction: (tokens.log2() - self.logs[index]) / (self.logs[index + 1] - self.logs[index]),
            beyond: 0.0,
        }
    }

    /// The tick that is nearest in log2 space; halfway it is the upper one. Compared as products, which are
    /// exact for whole numbers of tokens.
    pub(crate) fn nearest(&self, tokens: f64) -> usize {
        let above = self.ticks.partition_point(|&tick| tick <= tokens);
        match (above.checked_sub(1), self.ticks.get(above)) {
            (None, _) => 0,
            (Some(below), Some(next)) if tokens * tokens < self.ticks[below] * next => below,
            (Some(_), Some(_)) => above,
            (Some(last), None) => last,
        }
    }
}

/// A positive quantity in seconds at each cell of a grid, `[output][input]`.
///
/// At a tick the answer is the cell's own value, to the bit. Between ticks it is bilinear in the logarithms of
/// tokens and value. Below the first tick it is the first one's. Beyond the last tick it goes on along the slope
/// of the last two, in seconds a token: the times of a device are sums of a constant and terms that grow
/// with the tokens, so this is what lies on the same line, while a slope in log space would flatten it. It
/// never falls; with one tick only it grows in proportion to the tokens. The slope beside a cell is at least
/// that beside smaller cells, so that a table which never falls is never left for an answer that does.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Surface {
    values: Vec<Vec<f64>>,
    logs: Vec<Vec<f64>>,
    /// Seconds for each output token beyond the last tick, by input tick.
    output_slopes: Vec<f64>,
    /// Seconds for each prompt token beyond the last tick, by output tick.
    input_slopes: Vec<f64>,
}

impl Surface {
    pub(crate) fn new(outputs: &Axis, inputs: &Axis, values: Vec<Vec<f64>>) -> Self {
        let column = |input: usize| values.iter().map(|row| row[input]).collect::<Vec<_>>();
        let output_slopes = (0..inputs.ticks.len()).map(|input| last_slope(outputs, &column(input)));
        let input_slopes = values.iter().map(|row| last_slope(inputs, row));
        Self {
            output_slopes: never_falling(output_slopes),
            input_slopes: never_falling(input_slopes),
            logs: values
                .iter()
                .map(|row| row.iter().map(|value| value.ln()).collect())
                .collect(),
            values,
        }
    }

    pub(crate) fn at(&self, output: Spot, input: Spot) -> f64 {
        let inside = if output.fraction == 0.0 && input.fraction == 0.0 {
            self.values[output.index][input.index]
        } else {
            let row = |index: usize| between(&self.logs[index], input);
            towards(row(output.index), output.fraction, || row(output.index + 1)).exp()
        };
        inside
            + output.beyond * between(&self.output_slopes, input)
            + input.beyond * between(&self.input_slopes, output)
    }
}

fn between(values: &[f64], spot: Spot) -> f64 {
    towards(values[spot.index], spot.fraction, || values[spot.index + 1])
}

fn towards(from: f64, fraction: f64, to: impl FnOnce() -> f64) -> f64 {
    if fraction == 0.0 {
        from
    } else {
        from + fraction * (to() - from)
    }
}

fn last_slope(axis: &Axis, values: &[f64]) -> f64 {
    let last = values.len() - 1;
    match last.checked_sub(1) {
        None => values[last] / axis.ticks[last],
        Some(before) => ((values[last] - values[before]) / (axis.ticks[last] - axis.ticks[before])).max(0.0),
    }
}

fn never_falling(slopes: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut largest = 0.0_f64;
    slopes
        .map(|slope| {
            largest = largest.max(slope);
            largest
        })
        .collect()
}
