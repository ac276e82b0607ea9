//! How long a measurement will take.

use std::time::Duration;

use flotilla_profile::DeviceProfile;

use crate::plan::Plan;

impl Plan {
    /// About how long the whole measurement takes on a device like that of `profile`; at most the budget.
    #[must_use]
    pub fn estimate(&self, profile: &DeviceProfile) -> Duration {
        let limits = self.limits();
        let points = match self.objective().targets().is_empty() {
            true => POINTS_UNBOUND,
            false => POINTS_BOUND,
        };
        let cells = self.grid().cells().map(|cell| {
            let e2e_s = profile.e2e(cell).value.as_secs_f64();
            let work_s = profile.work(cell).as_secs_f64();
            let alone_s = e2e_s * profile.idle_speedup(cell) * f64::from(limits.requests_alone + 1);
            let point_s =
                (f64::from(limits.requests) * work_s).max(SPAN_TIMES * e2e_s) + AROUND_TIMES * e2e_s;
            alone_s + points.min(f64::from(limits.points_max)) * point_s
        });
        let whole = Duration::try_from_secs_f64(cells.sum()).unwrap_or(Duration::MAX);
        limits.budget.map_or(whole, |budget| whole.min(budget))
    }
}

/// Points of a cell with targets: around a neighbour's answer, then two halvings.
const POINTS_BOUND: f64 = 5.0;
/// Points of a cell without targets: one or two until the device is overloaded.
const POINTS_UNBOUND: f64 = 2.0;
/// Times of a request that those that count come in.
const SPAN_TIMES: f64 = 6.0;
/// Times of a request before and after them.
const AROUND_TIMES: f64 = 4.5;
