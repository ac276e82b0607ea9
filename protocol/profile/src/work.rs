//! The device time that a request costs, in every cell, also where the profile measured none.

/// Device-seconds a request, `[output][input]`: one over the throughput.
///
/// A throughput of 0 says that the targets cannot be met there, not that the work were endless; and a request
/// of such a length comes all the same. Its work follows from the nearest cells that are feasible: from each
/// smaller neighbour the work in proportion to the tokens, which is an upper bound while work is a constant
/// and terms that grow with the tokens; the lesser of the two bounds, but no less than either neighbour.
/// A cell without a feasible one below takes the lesser work of its larger neighbours, which need at least as
/// much. `tputs` holds a positive figure somewhere and has the shape of the axes.
pub(crate) fn work_seconds(outputs: &[f64], inputs: &[f64], tputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let measured = |&tput: &f64| (tput > 0.0).then(|| 1.0 / tput);
    let mut work: Vec<Vec<Option<f64>>> = tputs
        .iter()
        .map(|row| row.iter().map(measured).collect())
        .collect();
    for output in 0..outputs.len() {
        for input in 0..inputs.len() {
            if work[output][input].is_none() {
                work[output][input] = from_smaller(outputs, inputs, &work, output, input);
            }
        }
    }
    for output in (0..outputs.len()).rev() {
        for input in (0..inputs.len()).rev() {
            if work[output][input].is_none() {
                work[output][input] = from_larger(&work, output, input);
            }
        }
    }
    let known = |cell: Option<f64>| cell.expect("the cells above and right of a feasible one are known");
    work.into_iter()
        .map(|row| row.into_iter().map(known).collect())
        .collect()
}

fn from_smaller(
    outputs: &[f64],
    inputs: &[f64],
    work: &[Vec<Option<f64>>],
    output: usize,
    input: usize,
) -> Option<f64> {
    let neighbours = [
        output
            .checked_sub(1)
            .and_then(|below| Some((work[below][input]?, outputs[output] / outputs[below]))),
        input
            .checked_sub(1)
            .and_then(|below| Some((work[output][below]?, inputs[input] / inputs[below]))),
    ];
    let known = || neighbours.into_iter().flatten();
    let bound = known().map(|(work, ratio)| work * ratio).reduce(f64::min)?;
    Some(known().map(|(work, _)| work).fold(bound, f64::max))
}

fn from_larger(work: &[Vec<Option<f64>>], output: usize, input: usize) -> Option<f64> {
    let above = work.get(output + 1).and_then(|row| row[input]);
    let right = work[output].get(input + 1).copied().flatten();
    above.into_iter().chain(right).reduce(f64::min)
}
