//! Synthetic devices: from the times of single steps to the profile that a measurement of them would give.

use flotilla_profile::DeviceProfile;
use flotilla_protocol::profile::{LoadSeconds, Profile, ProfileSlos};

/// A device that reads prompts at a constant rate and whose decode steps take `base + each x sequences`.
pub struct Device {
    pub kind: &'static str,
    pub cost: f64,
    pub prefill_tokens_per_s: f64,
    pub tpot_alone_s: f64,
    pub tpot_full_s: f64,
    pub slots: u32,
    pub load: [f64; 3],
}

/// Target of a token, averaged over an answer, at the 99th percentile of answers, in seconds. As the steps are the
/// same for all answers, the percentile is the mean.
pub const TPOT_SLO_S: f64 = 0.05;

impl Device {
    pub fn fast() -> Self {
        Self {
            kind: "sim-fast",
            cost: 1.0,
            prefill_tokens_per_s: 12_000.0,
            tpot_alone_s: 0.012,
            tpot_full_s: 0.030,
            slots: 32,
            load: [0.4, 2.0, 20.0],
        }
    }

    pub fn slow() -> Self {
        Self {
            kind: "sim-slow",
            cost: 0.3,
            prefill_tokens_per_s: 3_000.0,
            tpot_alone_s: 0.022,
            tpot_full_s: 0.070,
            slots: 32,
            load: [0.9, 3.0, 30.0],
        }
    }

    pub fn each(&self) -> f64 {
        (self.tpot_full_s - self.tpot_alone_s) / (f64::from(self.slots) - 1.0)
    }

    pub fn base(&self) -> f64 {
        self.tpot_alone_s - self.each()
    }

    pub fn tpot(&self, sequences: f64) -> f64 {
        self.base() + self.each() * sequences
    }

    /// Sequences that it holds when it ends `rate` requests a second, or `None` when it cannot: Little's law with
    /// e2e = input / R + output x (a + b x N) / (1 - rate x input / R), solved for N.
    fn sequences(&self, rate: f64, input: f64, output: f64) -> Option<f64> {
        let prefill = input / self.prefill_tokens_per_s;
        let decoding = 1.0 - rate * prefill;
        let steps = output / decoding;
        let left = 1.0 - rate * steps * self.each();
        let sequences = rate * (prefill + steps * self.base()) / left;
        let meets = self.tpot(sequences) / decoding <= TPOT_SLO_S;
        let fits = decoding > 0.0 && left > 0.0 && sequences <= f64::from(self.slots);
        (meets && fits).then_some(sequences)
    }

    /// Most requests a second under the target, found by halving, and the mean time of one.
    pub fn saturation(&self, input: f64, output: f64) -> (f64, f64) {
        let (mut low, mut high) = (0.0, self.prefill_tokens_per_s / input);
        for _ in 0..60 {
            let middle = f64::midpoint(low, high);
            match self.sequences(middle, input, output) {
                Some(_) => low = middle,
                None => high = middle,
            }
        }
        let sequences = self.sequences(low, input, output).unwrap();
        (low, sequences / low)
    }

    /// The profile over a grid, with everything that our own ones say.
    pub fn profile(&self, outputs: &[f64], inputs: &[f64]) -> Profile {
        let matrix = |figure: &dyn Fn(f64, f64) -> f64| -> Vec<Vec<f64>> {
            let row = |&output: &f64| inputs.iter().map(|&input| figure(output, input)).collect();
            outputs.iter().map(row).collect()
        };
        let e2e = |output: f64, input: f64| self.saturation(input, output).1;
        let ttft = |_: f64, input: f64| input / self.prefill_tokens_per_s;
        let batches = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0];
        let [host, peer, origin] = self.load.map(Some);
        Profile {
            gpu: self.kind.to_owned(),
            cost: self.cost,
            tputs: matrix(&|output, input| self.saturation(input, output).0),
            indexes: vec![outputs.to_vec(), inputs.to_vec()],
            created: 1_767_225_600.0,
            e2e: Some(matrix(&e2e)),
            ttft: Some(matrix(&ttft)),
            tpot: Some(matrix(&|output, input| {
                (e2e(output, input) - ttft(output, input)) / output
            })),
            slos: Some(ProfileSlos {
                percentile: Some(99.0),
                tpot: Some(TPOT_SLO_S),
                ..ProfileSlos::default()
            }),
            tpot_by_batch: Some(batches.map(|batch| (batch, self.tpot(batch))).to_vec()),
            prefill_tokens_per_s: Some(self.prefill_tokens_per_s),
            load_seconds_by_tier: Some(LoadSeconds { host, peer, origin }),
            samples: None,
            source: None,
        }
    }

    /// The profile over the grid of AIBrix's own files, 8 x 5 ticks.
    pub fn on_small_grid(&self) -> Profile {
        self.profile(&ticks(2..=9), &ticks(7..=11))
    }
}

/// Powers of two.
pub fn ticks(powers: std::ops::RangeInclusive<u32>) -> Vec<f64> {
    powers.map(|power| f64::from(1_u32 << power)).collect()
}

/// The profile in use.
pub fn checked(document: Profile) -> DeviceProfile {
    DeviceProfile::try_from(document).unwrap()
}

/// A profile with one cell.
pub fn single(tput: f64, e2e: f64) -> Profile {
    Profile {
        tputs: vec![vec![tput]],
        indexes: vec![vec![4.0], vec![128.0]],
        e2e: Some(vec![vec![e2e]]),
        ttft: None,
        tpot: None,
        slos: None,
        ..Device::fast().on_small_grid()
    }
}
