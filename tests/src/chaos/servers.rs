//! The servers of a run: which of them a fault is for, and who leads.

use std::time::Duration;

use flotilla_client::Connection;
use tokio::time::timeout;

use super::plan::{Kept, Part};
use crate::{Fleet, NatsServer, server_name};

/// The servers that are a part.
pub(super) fn of(fleet: &mut Fleet, part: Part) -> impl Iterator<Item = &mut NatsServer> {
    let servers = fleet.cluster.servers.iter_mut().enumerate();
    let of_part = servers.filter(move |(number, _)| part == Part::Servers || part == Part::Server(*number));
    of_part.map(|(_, server)| server)
}

/// The server that leads a stream, if that can be told.
pub(super) async fn leader(observer: &Connection, kept: Kept) -> Option<usize> {
    let subjects = &observer.subjects;
    let stream = match kept {
        Kept::Requests => subjects.requests_stream(),
        Kept::Journals => subjects.journal_stream(),
        Kept::Lease => format!("KV_{}", subjects.bucket("lease")),
    };
    let stream = timeout(LOOK_MAX, observer.jetstream.get_stream(stream)).await;
    let leader = stream
        .ok()?
        .ok()?
        .cached_info()
        .cluster
        .as_ref()?
        .leader
        .clone()?;
    (0..SERVERS_MAX).find(|number| server_name(*number) == leader)
}

/// Who leads is known at once or not worth waiting for.
const LOOK_MAX: Duration = Duration::from_millis(500);
/// Nobody has a larger cluster here.
const SERVERS_MAX: usize = 9;
