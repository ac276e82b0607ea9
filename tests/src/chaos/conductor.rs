//! Brings faults about at their points and heals them, and starts processes again that ended, as a supervisor does.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use flotilla_client::Connection;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::clients::{Clients, Told};
use super::plan::{Aim, Fault, Part, Planned, When};
use super::questions::Questions;
use super::servers;
use super::timeline::Notes;
use crate::process::Process;
use crate::{Fleet, Signal, Wire};

pub(super) struct Conductor<'a> {
    fleet: &'a mut Fleet,
    observer: Connection,
    notes: &'a mut Notes,
    planned: VecDeque<Planned>,
    under_way: Vec<UnderWay>,
    struck: Instant,
    servers: Servers,
    /// Tokens by which the points have moved: what had to wait must not come at once with all that follows it.
    late: u64,
}

/// What is known of how the servers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Servers {
    /// Each has what the others have.
    Settled,
    /// One had a fault and may lack something.
    Struck,
    /// One has lost its store and may lack everything: with another one gone, what was confirmed may be gone.
    Wiped,
}

#[derive(Debug, Clone, Copy)]
struct UnderWay {
    part: Part,
    fault: Fault,
    heals: Instant,
}

impl<'a> Conductor<'a> {
    pub(super) fn new(
        fleet: &'a mut Fleet,
        observer: Connection,
        notes: &'a mut Notes,
        planned: Vec<Planned>,
    ) -> Self {
        Self {
            fleet,
            observer,
            notes,
            planned: planned.into(),
            under_way: Vec::new(),
            struck: Instant::now(),
            servers: Servers::Settled,
            late: 0,
        }
    }

    /// Torments the fleet until the clients have all their answers; then everything is healed.
    pub(super) async fn lead(&mut self, clients: Clients) -> Result<(Vec<Told>, Arc<Questions>)> {
        let mut tokens = clients.tokens();
        let mut tasks = JoinSet::new();
        tasks.spawn(clients.run());
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let seen = *tokens.borrow_and_update();
            let strikes = self.next_strike(seen);
            let heals = self.under_way.iter().map(|fault| fault.heals).min();
            tokio::select! {
                biased;
                Some(told) = tasks.join_next() => {
                    self.heal(|_| true)?;
                    return told.context("a client panicked");
                }
                () = until(heals) => self.heal(|fault| fault.heals <= Instant::now())?,
                () = until(strikes) => self.strike(seen).await?,
                _ = looks.tick() => {
                    self.look_after_processes()?;
                    self.look_after_servers().await;
                }
                Ok(()) = tokens.changed() => {}
            }
        }
    }

    /// When the next fault comes, if its point is reached and no fault is in its way.
    fn next_strike(&self, tokens: u64) -> Option<Instant> {
        let is_due = |next: &&Planned| next.tokens + self.late <= tokens;
        let next = self.planned.front().filter(is_due)?;
        let is_free = self.under_way.iter().all(|fault| !fault.part.overlaps(next.part));
        let is_fit = match self.servers {
            Servers::Settled => true,
            Servers::Struck => next.when == When::AtOnce,
            Servers::Wiped => !next.part.is_of_servers(),
        };
        (is_free && is_fit).then(|| self.struck + next.after)
    }

    async fn strike(&mut self, tokens: u64) -> Result<()> {
        let Some(mut planned) = self.planned.pop_front() else {
            return Ok(());
        };
        if let Aim::LeaderOf(kept) = planned.aim
            && let Some(leader) = servers::leader(&self.observer, kept).await
        {
            planned.part = planned.part.of_server(leader);
        }
        let Planned { part, fault, .. } = planned;
        self.late = tokens.saturating_sub(planned.tokens);
        // It was free as drawn; the leader need not be.
        if self.under_way.iter().any(|fault| fault.part.overlaps(part)) {
            self.notes.tell(&format!("left out: {planned}"));
            return Ok(());
        }
        self.notes.fault(planned);
        self.bring_about(part, fault)?;
        if part.is_of_servers() {
            self.servers = match fault {
                Fault::Wipe(_) => Servers::Wiped,
                _ => Servers::Struck,
            };
        }
        self.struck = Instant::now();
        let heals = self.struck + fault.lasts();
        self.under_way.push(UnderWay { part, fault, heals });
        Ok(())
    }

    fn bring_about(&mut self, part: Part, fault: Fault) -> Result<()> {
        match fault {
            Fault::Kill(_) => self.kill(part)?,
            Fault::Wipe(_) => {
                self.kill(part)?;
                servers::of(self.fleet, part).try_for_each(|server| server.wipe())?;
            }
            Fault::Restart(_) => servers::of(self.fleet, part).try_for_each(|server| server.terminate())?,
            Fault::Stop(_) => self.signal(part, Signal::Stop)?,
            Fault::Cut(_) => self.wires(part)?.iter().for_each(|wire| wire.proxy.cut()),
            Fault::Reset => self.wires(part)?.iter().for_each(|wire| wire.proxy.reset()),
            Fault::Forget => self.wires(part)?.iter().for_each(|wire| wire.proxy.forget()),
            Fault::Network { says, hears, .. } => {
                let wires = self.wires(part)?;
                wires.iter().for_each(|wire| wire.set_flows(says, hears));
            }
        }
        Ok(())
    }

    fn heal(&mut self, which: impl Fn(&UnderWay) -> bool) -> Result<()> {
        let (due, others) = self.under_way.drain(..).partition(which);
        self.under_way = others;
        let due: Vec<UnderWay> = due;
        for UnderWay { part, fault, .. } in due {
            match fault {
                Fault::Kill(_) | Fault::Wipe(_) | Fault::Restart(_) => self.start_again(part)?,
                Fault::Stop(_) => self.signal(part, Signal::Continue)?,
                Fault::Cut(_) | Fault::Network { .. } => {
                    self.wires(part)?.iter().for_each(|wire| wire.proxy.heal());
                }
                Fault::Reset | Fault::Forget => {}
            }
            self.notes.tell(&format!("{part}: {} is over", fault.kind()));
        }
        Ok(())
    }

    fn kill(&mut self, part: Part) -> Result<()> {
        match part.is_of_servers() {
            true => servers::of(self.fleet, part).try_for_each(|server| server.kill()),
            false => self.process(part)?.kill(),
        }
    }

    fn start_again(&mut self, part: Part) -> Result<()> {
        match part {
            Part::Dispatcher(index) => self.fleet.restart_dispatcher(index),
            Part::Worker(index) => self.fleet.restart_worker(index),
            _ => servers::of(self.fleet, part).try_for_each(|server| server.restart()),
        }
    }

    fn signal(&mut self, part: Part, signal: Signal) -> Result<()> {
        match part.is_of_servers() {
            true => servers::of(self.fleet, part).try_for_each(|server| server.signal(signal)),
            false => self.process(part)?.signal(signal),
        }
    }

    /// Servers that had faults and have none now get even sooner or later.
    async fn look_after_servers(&mut self) {
        let has_fault = self.under_way.iter().any(|fault| fault.part.is_of_servers());
        let is_of_interest = self.servers == Servers::Wiped
            || self
                .planned
                .front()
                .is_some_and(|next| next.when == When::Settled);
        if !has_fault && is_of_interest && self.fleet.cluster.is_current().await {
            self.servers = Servers::Settled;
        }
    }

    /// A process that finds no server at its start ends, and its supervisor starts it again.
    fn look_after_processes(&mut self) -> Result<()> {
        let dispatchers = (0..self.fleet.dispatchers.len()).map(Part::Dispatcher);
        let workers = (0..self.fleet.workers.len()).map(Part::Worker);
        for part in dispatchers.chain(workers).collect::<Vec<Part>>() {
            let has_fault = self
                .under_way
                .iter()
                .any(|it| it.part == part && matches!(it.fault, Fault::Kill(_)));
            let Some(code) = self.process(part)?.exit_code()?.filter(|_| !has_fault) else {
                continue;
            };
            self.notes.ended(part, code);
            self.start_again(part)?;
        }
        Ok(())
    }

    fn process(&mut self, part: Part) -> Result<&mut Process> {
        let process = match part {
            Part::Dispatcher(index) => self.fleet.dispatchers.get_mut(index),
            Part::Worker(index) => self.fleet.workers.get_mut(index),
            _ => None,
        };
        process.with_context(|| format!("{part} is no process that can be struck so"))
    }

    fn wires(&self, part: Part) -> Result<Vec<Wire<'_>>> {
        let cluster = &self.fleet.cluster;
        Ok(match part {
            Part::Link(first, second) => cluster.between(first, second),
            Part::Routes(server) => cluster.routes_of(server),
            Part::Machine(server) => cluster.wires_of(server),
            Part::Dispatcher(_) | Part::Worker(_) | Part::Clients | Part::Server(_) | Part::Servers => {
                let proxies = self.fleet.proxies.get(&part.to_string());
                proxies.with_context(|| format!("{part} has no proxies"))?.wires()
            }
        })
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// A supervisor starts again what ended after about as long.
const LOOK_EVERY: Duration = Duration::from_millis(500);
