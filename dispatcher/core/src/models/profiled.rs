//! What is known of a model on a kind of device.

use flotilla_profile::{DeviceProfile, StepTimes};
use flotilla_protocol::profile::ProfileSource;

use crate::correction::{Correction, CorrectionSettings};

/// A profile with what was learned about it.
#[derive(Debug)]
pub(crate) struct Profiled {
    pub(crate) profile: DeviceProfile,
    /// The steps behind it.
    pub(super) steps: StepTimes,
    pub(crate) correction: Correction,
    /// The correction that waiting requests were priced with.
    pub(super) priced_with: f64,
    /// Prices that lay beyond what was measured.
    pub(crate) extrapolated: u64,
}

impl Profiled {
    pub(super) fn new(profile: DeviceProfile, settings: CorrectionSettings) -> Self {
        Self {
            steps: StepTimes::from_profile(&profile),
            profile,
            correction: Correction::new(settings),
            priced_with: 1.0,
            extrapolated: 0,
        }
    }

    /// Whether somebody measured it.
    pub(super) fn is_real(&self) -> bool {
        self.profile.source() != ProfileSource::Estimated
    }
}
