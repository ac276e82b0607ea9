//! One model's state, with its data in the variant.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use flotilla_protocol::fleet::LoadSource;
use flotilla_protocol::request::KeepAlive;
use flotilla_protocol::{ModelName, Moment, RequestId};

use super::fault::ModelFault;
use super::loading::Loading;
use super::reuse::Uses;
use super::shard::Home;
use super::{LoadStall, ModelNeeds, Pin, RETRY_MAX, RETRY_MIN, THRASH_WINDOW};
use crate::kv::KvBlock;
use crate::ledger::DeviceIndex;

/// A model that is wanted, resident, pinned, in back-off or remembered.
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
    /// Of the last load from files.
    pub(super) origin_load_time: Option<Duration>,
    /// Where the last load read from.
    pub(super) loaded_from: Option<LoadSource>,
    /// Its weights are to be brought into host memory.
    pub(super) is_expected: bool,
    /// What is resident is of files that are others by now.
    pub(super) is_outdated: bool,
    /// Ticket of the last thing that happened to it.
    pub(super) touched: u64,
    /// When it last left for another model.
    pub(super) left_at: Option<Moment>,
    /// How often it was wanted.
    pub(super) uses: Uses,
    pub(super) weights_pages: u64,
    pub(super) kv_pages_min: u64,
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
    /// Its weights come to host memory, and nobody has loaded it.
    Fetching,
    /// The smaller ticket came first.
    WaitingForRoom {
        needs: ModelNeeds,
        ticket: u64,
    },
    Loading(Loading),
    Ready(Ready),
    /// It leaves when its leases end.
    Draining(Ready),
    Unloading {
        home: Home,
    },
    Failed {
        fault: ModelFault,
        retry_at: Moment,
    },
}

/// A model in device memory.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) home: Home,
    /// When it became ready.
    pub(super) since: Moment,
    /// Requests that hold it, each with its ticket.
    pub(super) leases: BTreeMap<RequestId, u64>,
    /// Ticket of the last use.
    pub(super) used: u64,
    /// Longest keep-alive of all that held it since it was last idle.
    stay: KeepAlive,
    rest: Rest,
    /// Until then it is no victim, so that models do not chase each other in and out.
    guarded_until: Option<Moment>,
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
            origin_load_time: None,
            loaded_from: None,
            is_expected: false,
            is_outdated: false,
            touched: 0,
            left_at: None,
            uses: Uses::default(),
            weights_pages: 0,
            kv_pages_min: 0,
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

    /// Whether nothing depends on it now: all that is left of it is what is remembered.
    pub(super) fn is_at_rest(&self) -> bool {
        let is_absent = matches!(self.state, State::Absent);
        is_absent && !self.is_wanted() && !self.is_expected && self.pin == Pin::Evictable
    }

    /// Whether there is anything to remember of it.
    pub(super) fn has_history(&self) -> bool {
        self.failures > 0 || self.load_time.is_some()
    }

    pub(super) fn timeout(&self, load_stall: Option<LoadStall>) -> Option<Moment> {
        match &self.state {
            State::Ready(ready) => ready.expires_at(),
            State::Loading(loading) => loading.stalls_at(load_stall),
            State::Failed { retry_at, .. } => Some(*retry_at),
            State::Absent
            | State::Inspecting
            | State::Fetching
            | State::WaitingForRoom { .. }
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

    /// What devices hold of it.
    pub(super) fn home(&self) -> Option<&Home> {
        match &self.state {
            State::Loading(loading) => Some(&loading.home),
            State::Unloading { home } => Some(home),
            State::Ready(ready) | State::Draining(ready) => Some(&ready.home),
            State::Absent
            | State::Inspecting
            | State::Fetching
            | State::WaitingForRoom { .. }
            | State::Failed { .. } => None,
        }
    }

    /// Whether a device holds any of it.
    pub(super) fn is_on(&self, device: DeviceIndex) -> bool {
        self.home().is_some_and(|home| home.is_on(device))
    }

    /// Pages that it holds on a device.
    pub(super) fn pages_on(&self, device: DeviceIndex) -> u64 {
        self.home().map_or(0, |home| home.pages_on(device))
    }

    /// Whether it may be chasing a model that it left for.
    pub(super) fn is_chasing(&self, now: Moment) -> bool {
        self.left_at.is_some_and(|at| now.since(at) < THRASH_WINDOW)
    }

    /// What is expected to be lost when it leaves, in microseconds.
    pub(super) fn regret_us(&self, now: Moment) -> u64 {
        self.uses.regret_us(now, self.load_time.unwrap_or_default())
    }

    /// When it may be a victim, if it may not be yet.
    pub(super) fn guarded_until(&self, now: Moment) -> Option<Moment> {
        match &self.state {
            State::Ready(ready) => ready.guarded_until.filter(|until| *until > now),
            State::Absent
            | State::Inspecting
            | State::Fetching
            | State::WaitingForRoom { .. }
            | State::Loading(_)
            | State::Draining(_)
            | State::Unloading { .. }
            | State::Failed { .. } => None,
        }
    }

    pub(super) fn is_leaving(&self) -> bool {
        match &self.state {
            State::Draining(_) | State::Unloading { .. } => true,
            State::Loading(loading) => loading.is_ending(),
            State::Absent
            | State::Inspecting
            | State::Fetching
            | State::WaitingForRoom { .. }
            | State::Ready(_)
            | State::Failed { .. } => false,
        }
    }

    /// The model as it runs on a device, or in part there, if it does.
    pub(super) fn ready_on(&self, device: DeviceIndex) -> Option<&Ready> {
        match &self.state {
            State::Ready(ready) if ready.home.is_on(device) => Some(ready),
            State::Absent
            | State::Inspecting
            | State::Fetching
            | State::WaitingForRoom { .. }
            | State::Loading(_)
            | State::Ready(_)
            | State::Draining(_)
            | State::Unloading { .. }
            | State::Failed { .. } => None,
        }
    }

    /// Whether it takes its room from others for good.
    pub(super) fn is_pinned_down(&self) -> bool {
        let stays = matches!(self.state, State::Loading(_) | State::Ready(_));
        self.pin == Pin::Pinned && stays && !self.is_leaving()
    }

    pub(super) fn lease_count(&self) -> usize {
        match &self.state {
            State::Ready(ready) | State::Draining(ready) => ready.leases.len(),
            State::Absent
            | State::Inspecting
            | State::Fetching
            | State::WaitingForRoom { .. }
            | State::Loading(_)
            | State::Unloading { .. }
            | State::Failed { .. } => 0,
        }
    }
}

impl Ready {
    /// A model that was just loaded; it counts as in use until it rests.
    pub(super) fn new(home: Home, used: u64, stay: KeepAlive) -> Self {
        Self {
            home,
            since: Moment::default(),
            leases: BTreeMap::new(),
            used,
            stay,
            rest: Rest::InUse,
            guarded_until: None,
        }
    }

    pub(super) fn lease(&mut self, lease: Lease, ticket: u64) {
        self.stay_for(lease.keep_alive);
        self.rest = Rest::InUse;
        self.used = ticket;
        self.leases.insert(lease.request, ticket);
    }

    /// Ticket of the lease that was granted last.
    pub(super) fn newest_lease(&self) -> Option<u64> {
        self.leases.values().copied().max()
    }

    /// It is no victim before this moment.
    pub(super) fn guard_until(&mut self, until: Moment) {
        self.guarded_until = Some(until);
    }

    pub(super) fn is_guarded(&self, now: Moment) -> bool {
        self.guarded_until.is_some_and(|until| until > now)
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
