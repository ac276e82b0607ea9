//! The world around a copy: a relay, live delivery, repairs and messages, all of them slow and some of them lost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flotilla_protocol::Moment;
use flotilla_protocol::weights::{CopyEnd, CopyNews, Generation, ReceiverId, SegmentSet};
use flotilla_weights_core::{
    Receiving, ReceivingAction, ReceivingEnd, ReceivingSettings, Sending, SendingAction, SendingSettings,
};

/// What happens in a world.
#[derive(Debug, Clone)]
pub struct Plan {
    pub segment_bytes: Vec<u64>,
    /// When each receiver joins.
    pub joins: Vec<Duration>,
    pub stops: Vec<Stop>,
    pub window_bytes: u64,
    /// Room in the relay.
    pub relay_bytes: u64,
    pub faults: Faults,
}

/// A receiver that does nothing for a while, as by SIGSTOP.
#[derive(Debug, Clone)]
pub struct Stop {
    pub receiver: usize,
    pub at: Duration,
    pub lasts: Duration,
}

/// Chances of faults.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// A segment does not arrive live.
    pub lost: f64,
    /// Bytes that arrive are others.
    pub spoiled: f64,
    /// The relay does not take a segment.
    pub refused: f64,
    /// A message of sender or receiver is lost.
    pub news_lost: f64,
    /// When the relay forgets what lies in it, as by a server that starts again.
    pub forgets: Option<Duration>,
}

/// What became of it.
#[derive(Debug, Default)]
pub struct Outcome {
    pub received: Vec<Option<ReceivingEnd>>,
    pub received_at: Vec<Option<Duration>>,
    pub sent: Option<CopyEnd>,
    /// How often each segment went into the relay.
    pub puts: Vec<u32>,
    pub relay_bytes_max: u64,
    pub left_in_relay: usize,
    pub repairs: u64,
}

pub const SENDING: SendingSettings = SendingSettings {
    window_bytes: 0,
    puts_max: 4,
    stall: Duration::from_secs(2),
    patience: Duration::from_secs(10),
    linger: Duration::from_secs(3),
    backoff: Duration::from_millis(50),
    refusals_max: 12,
};

const RECEIVING: ReceivingSettings = ReceivingSettings {
    repair_after: Duration::from_millis(250),
    repairs_max: 4,
    report_segments: 8,
    report_every: Duration::from_millis(100),
    silence: Duration::from_secs(5),
    patience: Duration::from_secs(30),
    bad_max: 20,
};

const GENERATION: Generation = Generation(7);
/// The sender's news without a reason.
const NEWS_EVERY: Duration = Duration::from_millis(250);
/// On the way to any other part.
const LATENCY: Duration = Duration::from_millis(1);
/// To put or fetch a segment.
const SEGMENT_TIME: Duration = Duration::from_millis(10);
const VERIFY_TIME: Duration = Duration::from_millis(2);
/// No copy of these tests takes as long.
const END: Duration = Duration::from_secs(900);

#[derive(Debug)]
enum Event {
    PutDone {
        segment: usize,
    },
    Deleted {
        segment: usize,
    },
    NewsDue,
    RelayForgets,
    SenderTimer,
    Joins {
        receiver: usize,
    },
    Wakes {
        receiver: usize,
    },
    Live {
        receiver: usize,
        segment: usize,
    },
    Repaired {
        receiver: usize,
        segment: usize,
    },
    Verified {
        receiver: usize,
        segment: usize,
        good: bool,
    },
    News {
        receiver: usize,
        news: CopyNews,
    },
    Have {
        receiver: usize,
        have: SegmentSet,
        missing: SegmentSet,
    },
    ReceiverTimer {
        receiver: usize,
    },
}

pub struct World {
    plan: Plan,
    random: u64,
    now: Duration,
    events: BTreeMap<(Duration, u64), Event>,
    count: u64,
    sender: Sending,
    relay: BTreeSet<usize>,
    receivers: Vec<Option<Receiving>>,
    /// Events of this moment.
    same: u32,
    /// The timer that counts, of the sender and of each receiver.
    timers: BTreeMap<Option<usize>, Duration>,
    outcome: Outcome,
}

impl World {
    pub fn run(plan: Plan, seed: u64) -> Outcome {
        let settings = SendingSettings {
            window_bytes: plan.window_bytes,
            ..SENDING
        };
        let receivers = plan.joins.len();
        let mut world = Self {
            random: seed,
            now: Duration::ZERO,
            events: BTreeMap::new(),
            count: 0,
            sender: Sending::new(settings, plan.segment_bytes.clone(), Moment::default()),
            relay: BTreeSet::new(),
            receivers: (0..receivers).map(|_| None).collect(),
            timers: BTreeMap::new(),
            same: 0,
            outcome: Outcome {
                received: vec![None; receivers],
                received_at: vec![None; receivers],
                puts: vec![0; plan.segment_bytes.len()],
                ..Outcome::default()
            },
            plan,
        };
        for (receiver, at) in world.plan.joins.clone().into_iter().enumerate() {
            world.at(at, Event::Joins { receiver });
        }
        world.at(NEWS_EVERY, Event::NewsDue);
        if let Some(at) = world.plan.faults.forgets {
            world.at(at, Event::RelayForgets);
        }
        world.drive_sender();
        while let Some(((at, _), event)) = world.events.pop_first() {
            if at > END {
                break;
            }
            world.same = if at == world.now { world.same + 1 } else { 0 };
            assert!(world.same < 10_000, "a time that has come was dealt with");
            world.now = at;
            world.step(event);
        }
        world.outcome.left_in_relay = world.relay.len();
        world.outcome
    }

    fn step(&mut self, event: Event) {
        if let Some((receiver, until)) = self.stopped(&event) {
            // A stopped process finds it all when it goes on, if it does not go on too late.
            if let Event::ReceiverTimer { .. } = event {
                return self.at(until, Event::Wakes { receiver });
            }
            return self.at(until, event);
        }
        let now = self.moment();
        match event {
            Event::PutDone { segment } => self.put_done(segment),
            Event::Deleted { segment } => {
                self.relay.remove(&segment);
                self.sender.handle_deleted(segment);
                self.drive_sender();
            }
            Event::NewsDue => {
                if self.outcome.sent.is_none() {
                    self.tell(None);
                    self.after(NEWS_EVERY, Event::NewsDue);
                }
            }
            Event::RelayForgets => self.relay.clear(),
            Event::SenderTimer => {
                self.timers.remove(&None);
                if self.outcome.sent.is_none() {
                    self.sender.handle_timeout(now);
                    self.drive_sender();
                }
            }
            Event::Joins { receiver } => {
                let have = SegmentSet::none(self.plan.segment_bytes.len());
                self.receivers[receiver] = Some(Receiving::new(RECEIVING, GENERATION, have.clone(), now));
                let missing = SegmentSet::default();
                self.after(
                    LATENCY,
                    Event::Have {
                        receiver,
                        have,
                        missing,
                    },
                );
                self.drive(receiver);
            }
            Event::Have {
                receiver,
                have,
                missing,
            } => {
                if self.outcome.sent.is_none() {
                    self.sender.handle_have(now, ReceiverId(receiver as u64), &have);
                    self.sender.handle_missing(now, &missing);
                    self.drive_sender();
                }
            }
            Event::Wakes { receiver } | Event::ReceiverTimer { receiver } => {
                self.timers.remove(&Some(receiver));
                self.received(receiver, event);
            }
            Event::Live { receiver, .. }
            | Event::Repaired { receiver, .. }
            | Event::Verified { receiver, .. }
            | Event::News { receiver, .. } => self.received(receiver, event),
        }
    }

    /// The receiver that an event is for, if that one is stopped, and until when.
    fn stopped(&self, event: &Event) -> Option<(usize, Duration)> {
        let receiver = match event {
            Event::Live { receiver, .. }
            | Event::Repaired { receiver, .. }
            | Event::Verified { receiver, .. }
            | Event::News { receiver, .. }
            | Event::ReceiverTimer { receiver } => *receiver,
            _ => return None,
        };
        let stops = self.plan.stops.iter().filter(|stop| stop.receiver == receiver);
        let until = stops
            .map(|stop| (stop.at, stop.at + stop.lasts))
            .find(|(from, to)| (*from..*to).contains(&self.now))?
            .1;
        Some((receiver, until))
    }

    fn put_done(&mut self, segment: usize) {
        let now = self.moment();
        let held: u64 = self
            .relay
            .iter()
            .map(|segment| self.plan.segment_bytes[*segment])
            .sum();
        let full = held + self.plan.segment_bytes[segment] > self.plan.relay_bytes;
        if full || self.chance(self.plan.faults.refused) {
            self.sender.handle_refused(now, segment);
            return self.drive_sender();
        }
        self.relay.insert(segment);
        self.outcome.puts[segment] += 1;
        self.outcome.relay_bytes_max = self
            .outcome
            .relay_bytes_max
            .max(held + self.plan.segment_bytes[segment]);
        for receiver in 0..self.receivers.len() {
            if self.receivers[receiver].is_some() && !self.chance(self.plan.faults.lost) {
                self.after(LATENCY, Event::Live { receiver, segment });
            }
        }
        self.sender.handle_stored(now, segment);
        self.tell(None);
        self.drive_sender();
    }

    fn tell(&mut self, end: Option<CopyEnd>) {
        let news = CopyNews {
            generation: GENERATION,
            stored: self.sender.stored(),
            end,
        };
        for receiver in 0..self.receivers.len() {
            if !self.chance(self.plan.faults.news_lost) {
                let news = news.clone();
                self.after(LATENCY, Event::News { receiver, news });
            }
        }
    }

    fn drive_sender(&mut self) {
        while let Some(action) = self.sender.poll_action() {
            match action {
                SendingAction::Put { segment } => self.after(SEGMENT_TIME, Event::PutDone { segment }),
                SendingAction::Delete { segment } => self.after(LATENCY, Event::Deleted { segment }),
                SendingAction::End { end } => {
                    self.outcome.sent = Some(end);
                    self.tell(Some(end));
                }
            }
        }
        if let Some(at) = self.sender.poll_timeout() {
            self.set_timer(None, at);
        }
    }

    fn received(&mut self, receiver: usize, event: Event) {
        let now = self.moment();
        let spoiled = self.chance(self.plan.faults.spoiled);
        let there = match &event {
            Event::Repaired { segment, .. } => self.relay.contains(segment),
            _ => true,
        };
        let Some(core) = &mut self.receivers[receiver] else {
            return;
        };
        match event {
            Event::Live { segment, .. } => {
                if core.handle_part(now, segment) && core.handle_arrived(now, segment) {
                    self.after(
                        VERIFY_TIME,
                        Event::Verified {
                            receiver,
                            segment,
                            good: !spoiled,
                        },
                    );
                }
            }
            Event::Repaired { segment, .. } => {
                if !there {
                    core.handle_not_there(now, segment);
                } else if core.handle_arrived(now, segment) {
                    self.after(
                        VERIFY_TIME,
                        Event::Verified {
                            receiver,
                            segment,
                            good: !spoiled,
                        },
                    );
                }
            }
            Event::Verified { segment, good, .. } => match good {
                true => core.handle_verified(now, segment),
                false => core.handle_bad(now, segment),
            },
            Event::News { news, .. } => core.handle_news(now, &news),
            Event::ReceiverTimer { .. } | Event::Wakes { .. } => core.handle_timeout(now),
            _ => unreachable!("the others are the sender's"),
        }
        self.drive(receiver);
    }

    fn drive(&mut self, receiver: usize) {
        let now = self.moment();
        while let Some(core) = &mut self.receivers[receiver] {
            let Some(action) = core.poll_action(now) else {
                break;
            };
            match action {
                ReceivingAction::Repair { segment } => {
                    self.after(SEGMENT_TIME, Event::Repaired { receiver, segment });
                }
                ReceivingAction::Report { missing } => {
                    let have = core.have().clone();
                    if !self.chance(self.plan.faults.news_lost) {
                        self.after(
                            LATENCY,
                            Event::Have {
                                receiver,
                                have,
                                missing,
                            },
                        );
                    }
                }
                ReceivingAction::End { end } => {
                    self.outcome.repairs += core.repaired_and_bad().0;
                    self.outcome.received[receiver] = Some(end);
                    self.outcome.received_at[receiver] = Some(self.now);
                    self.receivers[receiver] = None;
                }
            }
        }
        let timeout = self.receivers[receiver]
            .as_ref()
            .and_then(Receiving::poll_timeout);
        if let Some(at) = timeout {
            self.set_timer(Some(receiver), at);
        }
    }

    /// Asks for a call, unless an earlier or the same one is on its way.
    fn set_timer(&mut self, whose: Option<usize>, at: Moment) {
        let at = at.since(Moment::default()).max(self.now);
        if self
            .timers
            .get(&whose)
            .is_some_and(|set| (self.now..=at).contains(set))
        {
            return;
        }
        self.timers.insert(whose, at);
        self.at(
            at,
            match whose {
                None => Event::SenderTimer,
                Some(receiver) => Event::ReceiverTimer { receiver },
            },
        );
    }

    fn moment(&self) -> Moment {
        Moment::after_origin(self.now)
    }

    fn after(&mut self, by: Duration, event: Event) {
        self.at(self.now + by, event);
    }

    fn at(&mut self, at: Duration, event: Event) {
        self.count += 1;
        self.events.insert((at, self.count), event);
    }

    /// The next number of splitmix64 as a chance.
    fn chance(&mut self, chance: f64) -> bool {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.random;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        ((bits >> 11) as f64) < chance * (1_u64 << 53) as f64
    }
}
