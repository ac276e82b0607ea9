//! One model's state, with its data in the variant.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use flotilla_protocol::request::KeepAlive;
use flotilla_protocol::{ModelName, Moment, RequestId};

use super::{KvBlock, ModelNeeds, Pin, RETRY_MAX, RETRY_MIN};
use crate::ledger::{DeviceIndex, Purpose, Reservation};

/// A model that is wanted, resident, pinned or in back-off.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) state: State,
    pub(super) pin: Pin,
    /// Requests that wait for it, in order.
    pub(super) waiters: VecDeque<Lease>,
    /// An order to load that is not carried out yet, and how long the model is to stay then.
    pub(super) order: Option<KeepAlive>,
    /// Failures in a row.
    pub(super) failures: u32,
    pub(super) load_time: Option<Duration>,
    pub(super) weights_pages: u64,
    /// As it was inspected last.
    pub(super) kv_block: Option<KvBlock>,
    /// Idle models that are to leave before others if it needs room, in this order.
    pub(super) evict_first: Vec<ModelName>,
}

/// A request's claim on a model.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) request: RequestId,
    pub(super) keep_alive: KeepAlive,
}

#[derive(Debug)]
pub(super) enum State {
    Absent,
    Inspecting,
    /// The smaller ticket came first.
    WaitingForRoom {
        needs: ModelNeeds,
        ticket: u64,
    },
    Loading {
        device: DeviceIndex,
        reservations: Vec<Reservation>,
        stay: Stay,
    },
    Ready(Ready),
    /// It leaves when its leases end.
    Draining(Ready),
    Unloading {
        device: DeviceIndex,
        reservations: Vec<Reservation>,
    },
    Failed {
        reason: String,
        retry_at: Moment,
    },
}

/// What happens when a load ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stay {
    /// The model stays by its keep-alive.
    ByKeepAlive,
    /// It was ordered out meanwhile.
    LeaveWhenLoaded,
}

/// A model in device memory.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) device: DeviceIndex,
    pub(super) reservations: Vec<Reservation>,
    pub(super) leases: BTreeSet<RequestId>,
    /// Ticket of the last use.
    pub(super) used: u64,
    /// Longest keep-alive of all that held it since it was last idle.
    stay: KeepAlive,
    rest: Rest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    InUse,
    /// Idle, to leave at this moment if at any.
    Idle {
        expires_at: Option<Moment>,
    },
}

impl Default for Model {
    fn default() -> Self {
        Self {
            state: State::Absent,
            pin: Pin::Evictable,
            waiters: VecDeque::new(),
            order: None,
            failures: 0,
            load_time: None,
            weights_pages: 0,
            kv_block: None,
            evict_first: Vec::new(),
        }
    }
}

impl Model {
    /// Whether somebody needs it resident.
    pub(super) fn is_wanted(&self) -> bool {
        !self.waiters.is_empty() || self.order.is_some()
    }

    /// Whether it is as if it had never been named.
    pub(super) fn is_blank(&self) -> bool {
        let is_absent = matches!(self.state, State::Absent);
        is_absent && !self.is_wanted() && self.pin == Pin::Evictable && self.failures == 0
    }

    pub(super) fn timeout(&self) -> Option<Moment> {
        match &self.state {
            State::Ready(ready) => ready.expires_at(),
            State::Failed { retry_at, .. } => Some(*retry_at),
            State::Absent
            | State::Inspecting
            | State::WaitingForRoom { .. }
            | State::Loading { .. }
            | State::Draining(_)
            | State::Unloading { .. } => None,
        }
    }

    /// Counts a failure and says how long to wait after it.
    pub(super) fn back_off(&mut self) -> Duration {
        let doublings = self.failures.min(16);
        self.failures = self.failures.saturating_add(1);
        RETRY_MIN.saturating_mul(1 << doublings).min(RETRY_MAX)
    }

    /// The device that holds it, and its pages there.
    pub(super) fn place(&self) -> Option<(DeviceIndex, &[Reservation])> {
        match &self.state {
            State::Loading {
                device, reservations, ..
            }
            | State::Unloading { device, reservations } => Some((*device, reservations)),
            State::Ready(ready) | State::Draining(ready) => Some((ready.device, &ready.reservations)),
            State::Absent | State::Inspecting | State::WaitingForRoom { .. } | State::Failed { .. } => None,
        }
    }

    /// Pages that it holds.
    pub(super) fn pages(&self) -> u64 {
        let reservations = self.place().map_or(&[][..], |(_, reservations)| reservations);
        reservations.iter().map(Reservation::pages).sum()
    }

    /// Tokens that its keys and values have room for; `None` while it has no room, or keeps none.
    pub(super) fn kv_tokens_max(&self) -> Option<u64> {
        let (_, reservations) = self.place()?;
        let kv = reservations
            .iter()
            .filter(|reservation| reservation.purpose() == Purpose::Kv);
        Some(self.kv_block?.tokens_on(kv.map(Reservation::pages).sum()))
    }

    pub(super) fn is_leaving(&self) -> bool {
        matches!(self.state, State::Draining(_) | State::Unloading { .. })
    }

    /// The model as it runs on a device, if it does.
    pub(super) fn ready_on(&self, device: DeviceIndex) -> Option<&Ready> {
        match &self.state {
            State::Ready(ready) if ready.device == device => Some(ready),
            State::Absent
            | State::Inspecting
            | State::WaitingForRoom { .. }
            | State::Loading { .. }
            | State::Ready(_)
            | State::Draining(_)
            | State::Unloading { .. }
            | State::Failed { .. } => None,
        }
    }

    /// Whether it takes its room from others for good.
    pub(super) fn is_pinned_down(&self) -> bool {
        self.pin == Pin::Pinned && matches!(self.state, State::Loading { .. } | State::Ready(_))
    }

    pub(super) fn lease_count(&self) -> usize {
        match &self.state {
            State::Ready(ready) | State::Draining(ready) => ready.leases.len(),
            State::Absent
            | State::Inspecting
            | State::WaitingForRoom { .. }
            | State::Loading { .. }
            | State::Unloading { .. }
            | State::Failed { .. } => 0,
        }
    }
}

impl Ready {
    /// A model that was just loaded; it counts as in use until it rests.
    pub(super) fn new(
        device: DeviceIndex,
        reservations: Vec<Reservation>,
        used: u64,
        stay: KeepAlive,
    ) -> Self {
        Self {
            device,
            reservations,
            leases: BTreeSet::new(),
            used,
            stay,
            rest: Rest::InUse,
        }
    }

    pub(super) fn lease(&mut self, lease: Lease) {
        self.stay_for(lease.keep_alive);
        self.rest = Rest::InUse;
        self.leases.insert(lease.request);
    }

    /// Counts a keep-alive: the longest of one time of use rules, a new time of use begins anew.
    pub(super) fn stay_for(&mut self, keep_alive: KeepAlive) {
        self.stay = match self.rest {
            Rest::InUse => self.stay.max(keep_alive),
            Rest::Idle { .. } => keep_alive,
        };
    }

    /// Starts the keep-alive when no lease is left.
    pub(super) fn rest_if_idle(&mut self, now: Moment, pin: Pin) {
        if !self.leases.is_empty() {
            return;
        }
        let expires_at = match (pin, self.stay) {
            (Pin::Pinned, _) | (Pin::Evictable, KeepAlive::UntilEvicted) => None,
            (Pin::Evictable, KeepAlive::Ms(ms)) => Some(now + Duration::from_millis(ms)),
        };
        self.rest = Rest::Idle { expires_at };
    }

    pub(super) fn expires_at(&self) -> Option<Moment> {
        match self.rest {
            Rest::InUse => None,
            Rest::Idle { expires_at } => expires_at,
        }
    }

    pub(super) fn is_expired(&self, now: Moment) -> bool {
        self.expires_at().is_some_and(|at| at <= now)
    }
}
