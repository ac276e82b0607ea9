//! Which lengths are measured.

use flotilla_profile::Signature;

use crate::fault::GridFault;

/// Lengths of prompts and answers; each pair of them is a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grid {
    inputs: Vec<u32>,
    outputs: Vec<u32>,
}

impl Grid {
    /// A grid of ascending lengths, in tokens.
    ///
    /// # Errors
    /// [`GridFault`], the first one.
    pub fn new(inputs: Vec<u32>, outputs: Vec<u32>) -> Result<Self, GridFault> {
        check("inputs", &inputs, 1, "a prompt has a token")?;
        check(
            "outputs",
            &outputs,
            OUTPUT_TOKENS_MIN,
            "a time per token lies between two of them",
        )?;
        Ok(Self { inputs, outputs })
    }

    /// Lengths of prompts, in tokens, ascending.
    #[must_use]
    pub fn inputs(&self) -> &[u32] {
        &self.inputs
    }

    /// Lengths of answers, in tokens, ascending.
    #[must_use]
    pub fn outputs(&self) -> &[u32] {
        &self.outputs
    }

    /// The cells in the order in which they are measured: short answers first, of each the short prompts first.
    pub fn cells(&self) -> impl Iterator<Item = Signature> {
        let of = |&output_tokens| {
            self.inputs.iter().map(move |&prompt_tokens| Signature {
                prompt_tokens,
                output_tokens,
            })
        };
        self.outputs.iter().flat_map(of)
    }

    /// How many cells there are.
    #[must_use]
    pub fn cell_count(&self) -> usize {
        self.inputs.len() * self.outputs.len()
    }

    /// The cells before `index` that lie beside it: the one of the next shorter prompt, and of the next
    /// shorter answer.
    pub(crate) fn neighbours(&self, index: usize) -> impl Iterator<Item = usize> {
        let columns = self.inputs.len();
        let left = (!index.is_multiple_of(columns)).then(|| index - 1);
        left.into_iter().chain(index.checked_sub(columns))
    }
}

fn check(axis: &'static str, lengths: &[u32], min: u32, reason: &'static str) -> Result<(), GridFault> {
    if lengths.is_empty() {
        return Err(GridFault::Empty { axis });
    }
    if lengths.len() > LENGTHS_MAX {
        let (found, max) = (lengths.len(), LENGTHS_MAX);
        return Err(GridFault::TooMany { axis, found, max });
    }
    if let Some(&found) = lengths.iter().find(|&&length| length < min) {
        return Err(GridFault::TooShort {
            axis,
            found,
            min,
            reason,
        });
    }
    match lengths.windows(2).find(|pair| pair[1] <= pair[0]) {
        Some(pair) => Err(GridFault::NotAscending {
            axis,
            found: pair[1],
            before: pair[0],
        }),
        None => Ok(()),
    }
}

/// Shortest answer.
const OUTPUT_TOKENS_MIN: u32 = 2;
/// Most lengths of an axis: as many ticks as a profile may have.
const LENGTHS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_axis_is_named_with_what_belongs_there() {
        let told = |inputs: &[u32], outputs: &[u32]| {
            Grid::new(inputs.to_vec(), outputs.to_vec())
                .unwrap_err()
                .to_string()
        };
        assert!(told(&[], &[2]).starts_with("inputs: is empty"));
        assert!(told(&[4, 4], &[2]).starts_with("inputs: 4 does not come after 4"));
        assert!(told(&[4], &[1, 2]).starts_with("outputs: 1 is too short; give 2 or more"));
        assert!(told(&[4], &vec![2; 65]).starts_with("outputs: has 65"));
    }

    #[test]
    fn neighbours_lie_left_and_below_and_come_earlier() {
        let grid = Grid::new(vec![1, 2, 3], vec![2, 4]).unwrap();
        assert_eq!(grid.cells().count(), grid.cell_count());
        let neighbours = |index| grid.neighbours(index).collect::<Vec<_>>();
        assert!(neighbours(0).is_empty());
        assert_eq!(neighbours(2), [1]);
        assert_eq!(neighbours(3), [0]);
        assert_eq!(neighbours(4), [3, 1]);
    }
}
