//! Routers without a queue: each request goes to a server as it arrives.

use std::collections::VecDeque;
use std::fmt::Debug;

use flotilla_protocol::assignment::{AssignReply, AttemptEnd, Done};
use flotilla_protocol::fleet::Report;
use flotilla_protocol::{Attempt, Moment, RequestId, WorkerId};

use super::assignment;
use super::placed::Placed;
use crate::fleet::FleetSpec;
use crate::policy::{Arriving, EndReason, Intake, Order, Policy};

/// Who names the server of a request.
pub(super) trait Choose: Debug {
    /// The server; `None` when no server can hold its model.
    fn choose(&mut self, arriving: &Arriving, placed: &Placed) -> Option<usize>;

    /// A server's report came in.
    fn handle_report(&mut self, _server: usize, _report: &Report) {}

    /// A request has left its server.
    fn handle_end(&mut self, _request: &RequestId) {}
}

/// A router that sends every request on at once, however much there is on the servers.
#[derive(Debug)]
pub struct Push<C> {
    pub(super) choose: C,
    placed: Placed,
    orders: VecDeque<Order>,
}

impl<C> Push<C> {
    pub(super) fn before(fleet: &FleetSpec, choose: C) -> Self {
        Self {
            choose,
            placed: Placed::new(fleet),
            orders: VecDeque::new(),
        }
    }

    fn fail(&mut self, request: RequestId) {
        let reason = EndReason::Refused;
        self.orders.push_back(Order::End { request, reason });
    }
}

impl<C: Choose> Policy for Push<C> {
    fn intake(&self) -> Intake {
        Intake::Unbounded
    }

    fn handle_arrival(&mut self, now: Moment, arriving: &Arriving) {
        let Some(server) = self.choose.choose(arriving, &self.placed) else {
            return self.fail(arriving.id.clone());
        };
        self.placed.place(arriving.id.clone(), server);
        self.orders.push_back(Order::Assign {
            worker: self.placed.worker(server).clone(),
            assignment: assignment(now, arriving),
        });
    }

    fn handle_report(&mut self, _now: Moment, report: Report) {
        if let Some(server) = self.placed.server(&report.worker) {
            self.choose.handle_report(server, &report);
        }
    }

    fn handle_done(&mut self, _now: Moment, done: Done) {
        self.placed.end(&done.request);
        self.choose.handle_end(&done.request);
        if done.end != AttemptEnd::Terminal {
            self.fail(done.request);
        }
    }

    fn handle_reply(
        &mut self,
        _now: Moment,
        _worker: &WorkerId,
        request: &RequestId,
        _attempt: Attempt,
        reply: AssignReply,
    ) {
        if let AssignReply::Refused(_) = reply {
            self.placed.end(request);
            self.choose.handle_end(request);
            self.fail(request.clone());
        }
    }

    fn handle_timeout(&mut self, _now: Moment) {}

    fn poll_timeout(&self) -> Option<Moment> {
        None
    }

    fn poll_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }
}
