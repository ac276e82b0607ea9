//! What holds after every input.

use std::collections::BTreeSet;

use flotilla_protocol::Moment;
use flotilla_protocol::fleet::ModelState;

use super::Dispatcher;
use super::placement::aim;
use crate::policy::Aim;
use crate::queue::Line;
use crate::request::{Held, Outlook};
use crate::timers::Timer;

impl Dispatcher {
    /// Checks everything that must hold between inputs; O(everything), for tests and simulation.
    ///
    /// # Panics
    /// When something does not hold.
    pub fn check_invariants(&self) {
        self.queue.every_index_names_the_same_requests();
        self.fleet.the_roomy_are_those_with_free_slots();
        self.fleet.the_holders_are_those_that_have_or_were_given();
        self.fleet.shares_add_up_and_are_never_given_twice();
        self.fleet.devices_go_at_the_pace_of_those_who_run(&self.models);
        self.every_message_stands_for_a_held_request();
        self.who_waits_is_in_the_queue_and_who_does_not_is_not();
        self.who_is_assigned_is_booked_on_one_worker();
        self.who_awaits_a_worker_is_found_by_it();
        self.attempts_that_are_over_were_used();
        self.only_the_waiting_have_a_deadline_timer();
        self.who_waits_stands_where_its_prices_say();
        self.devices_are_kept_for_those_who_wait();
        self.suspects_wait_apart();
        self.who_runs_alone_has_its_worker_for_itself();
        self.some_worker_is_kept_while_suspects_wait();
        self.no_request_waits_while_an_idle_device_could_take_it();
    }

    fn every_message_stands_for_a_held_request(&self) {
        let mut sequence_count = 0;
        for (request, held) in &self.held {
            sequence_count += held.sequences().len();
            assert!(!held.sequences().is_empty(), "{request} is held for no message");
            for sequence in held.sequences() {
                assert_eq!(self.sequences.get(sequence), Some(request));
            }
        }
        assert_eq!(sequence_count, self.sequences.len());
        assert!(sequence_count <= self.settings.held_max);
    }

    fn who_waits_is_in_the_queue_and_who_does_not_is_not(&self) {
        let queued = self
            .held
            .iter()
            .filter(|(_, held)| matches!(held, Held::Queued { .. }));
        let queued: BTreeSet<_> = queued.map(|(request, _)| request).collect();
        let waiting: BTreeSet<_> = self.queue.iter().collect();
        assert_eq!(queued, waiting);
    }

    fn who_is_assigned_is_booked_on_one_worker(&self) {
        let mut booked = 0;
        for (id, worker) in self.fleet.iter() {
            booked += worker.assigned.len();
            assert!(
                worker.unseen.is_subset(&worker.assigned),
                "{id} holds a slot for nobody"
            );
            for request in &worker.assigned {
                let Some(Held::Assigned(run)) = self.held.get(request) else {
                    panic!("{request} is booked on {id} and not assigned");
                };
                assert_eq!(&run.worker, id);
                assert!(
                    run.incarnation == worker.report.incarnation || !worker.is_past(run.incarnation),
                    "{request} runs on a dead process"
                );
                assert!(run.attempt > run.job.over && run.attempt <= run.job.used);
            }
        }
        let assigned = self
            .held
            .values()
            .filter(|held| matches!(held, Held::Assigned(_)));
        assert_eq!(assigned.count(), booked);
    }

    fn who_awaits_a_worker_is_found_by_it(&self) {
        let mut awaiting = 0;
        for (request, held) in &self.held {
            if let Held::Awaiting { begun, .. } = held {
                let worker = &begun.worker;
                awaiting += 1;
                assert!(
                    self.awaiting
                        .get(worker)
                        .is_some_and(|requests| requests.contains(request))
                );
                assert!(!self.fleet.contains(worker), "{worker} has reported");
            }
        }
        assert_eq!(awaiting, self.awaiting.values().map(BTreeSet::len).sum::<usize>());
    }

    fn attempts_that_are_over_were_used(&self) {
        for job in self.held.values().filter_map(Held::job) {
            assert!(
                job.over <= job.used,
                "{} closed an attempt that it never had",
                job.request
            );
        }
    }

    fn only_the_waiting_have_a_deadline_timer(&self) {
        for (request, held) in &self.held {
            let waits = matches!(held, Held::Queued { .. } | Held::Suspect(_));
            let waits_with_deadline = waits && held.job().is_some_and(|job| job.deadline.is_some());
            assert_eq!(
                self.timers.is_set(&Timer::Deadline(request.clone())),
                waits_with_deadline
            );
        }
    }

    fn who_waits_stands_where_its_prices_say(&self) {
        for held in self.held.values() {
            let Held::Queued { job, place, .. } = held else {
                continue;
            };
            let kinds = job.prices.iter().map(|(kind, _)| kind);
            assert!(
                kinds.eq(self.priced_kinds.iter()),
                "{} was priced for others",
                job.request
            );
            let is_late = place.line == Line::Late;
            assert_eq!(is_late, job.outlook == Outlook::Late, "{}", job.request);
        }
    }

    fn devices_are_kept_for_those_who_wait(&self) {
        let mut reserved = 0;
        for (model, requests) in &self.reserved {
            assert!(
                !requests.is_empty(),
                "{model} has requests that devices are kept for"
            );
            for request in requests {
                let held = self.held.get(request);
                assert!(matches!(held, Some(Held::Queued { job, .. }) if job.model == *model));
            }
            reserved += requests.len();
        }
        assert!(self.fleet.reserved_count() <= reserved);
    }

    fn suspects_wait_apart(&self) {
        let apart = self
            .held
            .iter()
            .filter(|(_, held)| matches!(held, Held::Suspect(_)));
        let apart: BTreeSet<_> = apart.map(|(request, _)| request).collect();
        assert_eq!(apart, self.isolation.waiting().collect());
        for held in self.held.values() {
            if let Held::Queued { job, .. } = held {
                assert!(job.suspected_in.is_none(), "{} waits among others", job.request);
            }
        }
    }

    fn who_runs_alone_has_its_worker_for_itself(&self) {
        for (request, held) in &self.held {
            let Held::Assigned(run) = held else { continue };
            if run.alone {
                let worker = self
                    .fleet
                    .worker(&run.worker)
                    .expect("it was given to a known worker");
                assert!(
                    worker.assigned.iter().eq([request]),
                    "{request} is not alone on {}",
                    run.worker
                );
                assert_eq!(self.isolation.request_on(&run.worker), Some(request));
            }
        }
        for (worker, request) in self.isolation.kept() {
            assert!(
                self.fleet
                    .worker(worker)
                    .is_some_and(|known| known.kept_for() == Some(request))
            );
            match self.held.get(request) {
                Some(Held::Suspect(_)) => {}
                Some(Held::Assigned(run)) => assert!(run.alone && run.worker == *worker),
                other => panic!("{worker} is kept for {request}, which is {other:?}"),
            }
        }
        let kept = self
            .fleet
            .iter()
            .filter(|(_, worker)| worker.kept_for().is_some());
        assert_eq!(kept.count(), self.isolation.kept_count());
    }

    fn some_worker_is_kept_while_suspects_wait(&self) {
        if self.deposed || self.isolation.kept_count() > 0 {
            return;
        }
        for request in self.isolation.waiting() {
            let worker = self.worker_to_keep(Moment::default(), self.waiting(request));
            assert!(worker.is_none(), "{request} could have {worker:?} for itself");
        }
    }

    /// Who has a target may wait for a device that meets it, and who measures a worker for that one; everybody else takes what is idle: a device that has the
    /// model, or for a model that nobody has one without any.
    fn no_request_waits_while_an_idle_device_could_take_it(&self) {
        if self.deposed || self.timers.is_set(&Timer::Placing) {
            return;
        }
        let heads = self.queue.models().flat_map(|model| self.queue.next_of(model, 1));
        for request in heads.chain(self.reserved.values().flatten().cloned()) {
            let job = self.waiting(&request);
            let model = &job.model;
            if aim(job) == Aim::Target || job.only_worker.is_some() {
                continue;
            }
            let excluded = self.exclusions.of(model);
            let roomy = self.fleet.roomy();
            let mut others = roomy.filter(|(id, _)| !excluded.is_some_and(|ids| ids.contains_key(*id)));
            let idle = others.find(|(_, worker)| {
                let device = &worker.devices[worker.device_for(model)];
                let is_ready = worker
                    .model(model)
                    .is_some_and(|report| report.state == ModelState::Ready);
                let is_empty = worker.residents().count() == 0 && !self.fleet.has_holder(model);
                let is_open = worker.is_open_to(worker.device_for(model), &job.request);
                device.is_idle() && is_open && (is_ready || is_empty)
            });
            assert!(idle.is_none(), "{} waits while {idle:?} is idle", job.request);
        }
    }
}
