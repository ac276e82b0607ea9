//! Brings faults about at their points and heals them, and starts processes again that ended, as a supervisor does.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::clients::{Clients, Told};
use super::plan::{Fault, Part, Planned};
use super::questions::Questions;
use super::timeline::Notes;
use crate::process::Process;
use crate::{Fleet, Proxy, Signal};

pub(super) struct Conductor<'a> {
    fleet: &'a mut Fleet,
    notes: &'a mut Notes,
    planned: VecDeque<Planned>,
    under_way: Vec<UnderWay>,
    struck: Instant,
}

#[derive(Debug, Clone, Copy)]
struct UnderWay {
    part: Part,
    fault: Fault,
    heals: Instant,
}

impl<'a> Conductor<'a> {
    pub(super) fn new(fleet: &'a mut Fleet, notes: &'a mut Notes, planned: Vec<Planned>) -> Self {
        Self {
            fleet,
            notes,
            planned: planned.into(),
            under_way: Vec::new(),
            struck: Instant::now(),
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
            let strikes = self.next_strike(*tokens.borrow_and_update());
            let heals = self.under_way.iter().map(|fault| fault.heals).min();
            tokio::select! {
                biased;
                Some(told) = tasks.join_next() => {
                    self.heal(|_| true)?;
                    return told.context("a client panicked");
                }
                () = until(heals) => self.heal(|fault| fault.heals <= Instant::now())?,
                () = until(strikes) => self.strike()?,
                _ = looks.tick() => self.look_after_processes()?,
                Ok(()) = tokens.changed() => {}
            }
        }
    }

    /// When the next fault comes, if its point is reached and its part has no other.
    fn next_strike(&self, tokens: u64) -> Option<Instant> {
        let next = self.planned.front().filter(|next| next.tokens <= tokens)?;
        let is_free = self.under_way.iter().all(|fault| fault.part != next.part);
        is_free.then(|| self.struck + next.after)
    }

    fn strike(&mut self) -> Result<()> {
        let Some(planned) = self.planned.pop_front() else {
            return Ok(());
        };
        let Planned { part, fault, .. } = planned;
        self.notes.fault(planned);
        match fault {
            Fault::Kill(_) => match part {
                Part::Server => self.fleet.server.kill()?,
                Part::Dispatcher(_) | Part::Worker(_) | Part::Clients => self.process(part)?.kill()?,
            },
            Fault::Stop(_) => self.signal(part, Signal::Stop)?,
            Fault::Cut(_) => self.proxy(part)?.cut(),
            Fault::Reset => self.proxy(part)?.reset(),
            Fault::Forget => self.proxy(part)?.forget(),
            Fault::Network {
                to_server, to_part, ..
            } => self.proxy(part)?.set_flows(to_server, to_part),
        }
        self.struck = Instant::now();
        let heals = self.struck + fault.lasts();
        self.under_way.push(UnderWay { part, fault, heals });
        Ok(())
    }

    fn heal(&mut self, which: impl Fn(&UnderWay) -> bool) -> Result<()> {
        let (due, others) = self.under_way.drain(..).partition(which);
        self.under_way = others;
        let due: Vec<UnderWay> = due;
        for UnderWay { part, fault, .. } in due {
            match fault {
                Fault::Kill(_) => self.start_again(part)?,
                Fault::Stop(_) => self.signal(part, Signal::Continue)?,
                Fault::Cut(_) | Fault::Network { .. } => self.proxy(part)?.heal(),
                Fault::Reset | Fault::Forget => {}
            }
            self.notes.tell(&format!("{part}: {} is over", fault.kind()));
        }
        Ok(())
    }

    fn start_again(&mut self, part: Part) -> Result<()> {
        match part {
            Part::Dispatcher(index) => self.fleet.restart_dispatcher(index),
            Part::Worker(index) => self.fleet.restart_worker(index),
            Part::Server => self.fleet.server.restart(),
            Part::Clients => Ok(()),
        }
    }

    fn signal(&mut self, part: Part, signal: Signal) -> Result<()> {
        match part {
            Part::Server => self.fleet.server.signal(signal),
            Part::Dispatcher(_) | Part::Worker(_) | Part::Clients => self.process(part)?.signal(signal),
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
            Part::Clients | Part::Server => None,
        };
        process.with_context(|| format!("{part} is no process that can be struck so"))
    }

    fn proxy(&self, part: Part) -> Result<&Proxy> {
        let proxy = self.fleet.proxies.get(&part.to_string());
        proxy.with_context(|| format!("{part} has no proxy"))
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
