//! Where a waiting request stands among the others.

use flotilla_protocol::catalog::Policy;
use flotilla_protocol::{Class, Moment, RequestId};

use super::Dispatcher;
use crate::micros::{Micros, micros};
use crate::queue::{Line, Place, Urgency};
use crate::request::{Held, Job, Outlook};

impl Dispatcher {
    /// The place of a request, by what it was priced at.
    ///
    /// With a target it is as urgent as the moment at which it has to start on the device that serves it fastest;
    /// that difference between target and expected time shrinks for all alike, so that an order by it is one by
    /// slack at every moment. Without, it is as urgent as one that may start after its class's patience.
    fn place_of(&self, now: Moment, job: &Job) -> Place {
        let policy = self.policy_of(job);
        let (line, at) = match (policy, job.asked.target) {
            (Policy::Fifo, _) => (fifo(), job.published),
            (_, None) => (job.line(), job.published + self.patience(job.class)),
            (_, Some(_)) => {
                let latest_start = self.latest_start(job);
                match job.outlook {
                    Outlook::Late => (Line::Late, job.published),
                    _ if latest_start < Micros::from(now) => (Line::Late, job.published),
                    Outlook::GivenUp => (Line::GivenUp, latest_start),
                    Outlook::Hopeful => (job.line(), latest_start),
                }
            }
        };
        let sequence = job.sequence;
        Place {
            line,
            urgency: Urgency { at, sequence },
            class: job.class,
            work_us: micros(job.least_work()),
        }
    }

    /// What is thought of a request from now on and, with that, its place. It is late in any case when it should have
    /// started by now.
    pub(super) fn place_with(&mut self, now: Moment, job: &mut Job, outlook: Outlook) -> Place {
        let was_late = job.outlook == Outlook::Late;
        job.outlook = outlook;
        let place = self.place_of(now, job);
        if place.line == Line::Late {
            job.outlook = Outlook::Late;
            self.stats.late += u64::from(!was_late);
        }
        place
    }

    /// Changes what is thought of a waiting request's chances, and its place.
    pub(super) fn set_outlook(&mut self, now: Moment, request: &RequestId, outlook: Outlook) {
        self.move_in_queue(now, request, |_, _| outlook);
    }

    /// Prices a waiting request anew and puts it where it belongs by now.
    pub(super) fn sort_in_again(&mut self, now: Moment, request: &RequestId) {
        self.move_in_queue(now, request, |dispatcher, job| {
            dispatcher.price(job);
            job.outlook.after_repricing()
        });
    }

    /// Takes a waiting request out of its line and puts it where it belongs after a change, which says what is
    /// thought of its chances.
    fn move_in_queue(
        &mut self,
        now: Moment,
        request: &RequestId,
        change: impl FnOnce(&mut Self, &mut Job) -> Outlook,
    ) {
        let Some(held) = self.held.get_mut(request) else {
            return;
        };
        if !matches!(held, Held::Queued { .. }) {
            return;
        }
        let sequences = Vec::new();
        let Held::Queued {
            mut job,
            place,
            told_position,
        } = std::mem::replace(held, Held::Ending { sequences })
        else {
            unreachable!("it was just looked at")
        };
        self.queue.remove(&job.model, &place);
        let outlook = change(self, &mut job);
        let place = self.place_with(now, &mut job, outlook);
        self.queue.insert(&job.model, &place, request.clone());
        let held = self.held.get_mut(request).expect("it was just looked at");
        *held = Held::Queued {
            job,
            place,
            told_position,
        };
    }

    /// When a request with a target has to start at the latest, wherever it is served fastest.
    fn latest_start(&self, job: &Job) -> Micros {
        let within_us = job.prices.iter().map(|(_, price)| price.start_within_us).max();
        match within_us {
            Some(within_us) => Micros(job.published.0.saturating_add(within_us)),
            None => job.published + self.patience(job.class),
        }
    }

    fn patience(&self, class: Class) -> std::time::Duration {
        match class {
            Class::Interactive => self.settings.policy.patience_interactive,
            Class::Batch => self.settings.policy.patience_batch,
        }
    }
}

/// With the policy fifo all requests of a model share one line.
fn fifo() -> Line {
    Line::Live {
        class: Class::Interactive,
        tenant: None,
    }
}
