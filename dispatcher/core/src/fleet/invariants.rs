//! What holds of the fleet after every input.

use std::collections::BTreeMap;

use flotilla_protocol::{ModelName, WorkerId};

use super::{Booking, Fleet, Giver};
use crate::models::Models;
use crate::share::Share;

impl Fleet {
    /// # Panics
    /// When the index of workers with room is wrong.
    pub(crate) fn the_roomy_are_those_with_free_slots(&self) {
        let workers = self.workers.iter();
        let roomy = workers.filter(|(_, worker)| worker.count_free_slots() > 0);
        let roomy = roomy.map(|(id, worker)| (id, &worker.number));
        assert!(roomy.eq(self.roomy.iter()));
        let mut workers = self.workers.iter();
        assert!(workers.all(|(_, worker)| worker.free_slots() == worker.count_free_slots()));
    }

    /// # Panics
    /// When something is remembered of a device that is not so any more.
    pub(crate) fn devices_go_at_the_pace_of_those_who_run(&self, models: &Models) {
        for (_, worker) in self.workers.iter() {
            for device in 0..worker.devices.len() {
                assert_eq!(*worker.crew(device, models), worker.make_crew(device, models));
            }
        }
    }

    /// # Panics
    /// When the index of holders is wrong.
    pub(crate) fn the_holders_are_those_that_have_or_were_given(&self) {
        let mut holders: BTreeMap<&ModelName, BTreeMap<&WorkerId, usize>> = BTreeMap::new();
        for (id, worker) in self.workers.iter() {
            let resident = worker.residents().map(|(_, report)| &report.model);
            let booked = worker.bookings.values().map(|booking| &booking.model);
            for model in resident.chain(booked) {
                holders.entry(model).or_default().insert(id, worker.number);
            }
        }
        let kept: BTreeMap<&ModelName, BTreeMap<&WorkerId, usize>> = self
            .holders
            .iter()
            .map(|(model, ids)| (model, ids.iter().map(|(id, number)| (id, *number)).collect()))
            .collect();
        assert_eq!(kept, holders);
    }

    /// # Panics
    /// When a device's load is not the sum of what is booked there, or more than it has was given away.
    pub(crate) fn shares_add_up_and_are_never_given_twice(&self) {
        for (id, worker) in self.workers.iter() {
            for (index, device) in worker.own_devices().iter().enumerate() {
                let here = |it: &&Booking| worker.shares_time(it.device, index);
                let booked: Vec<_> = worker.bookings.values().filter(here).collect();
                assert_eq!(device.booked_count, booked.len());
                assert_eq!(device.load, booked.iter().map(|booking| booking.share).sum());
                let ours = booked
                    .iter()
                    .filter(|booking| booking.giver == Giver::Us && booking.is_measured);
                let given: Share = ours.clone().map(|booking| booking.share).sum();
                assert!(
                    given <= Share::FULL || ours.count() <= 1,
                    "{id} has {given:?} of device {index}"
                );
            }
            for request in &worker.assigned {
                assert!(
                    worker.bookings.contains_key(request),
                    "{request} runs for nothing on {id}"
                );
            }
        }
        let devices = || {
            self.workers
                .iter()
                .flat_map(|(id, worker)| worker.devices.iter().map(move |it| (id, it)))
        };
        let mut kinds = BTreeMap::new();
        devices().for_each(|(_, device)| *kinds.entry(device.kind).or_default() += 1);
        assert_eq!(self.kinds, kinds);
        let reserved = devices().filter_map(|(id, device)| Some((device.reserved_for.clone()?, id.clone())));
        assert_eq!(self.reserved, reserved.collect());
    }
}
