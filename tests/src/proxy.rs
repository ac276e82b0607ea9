//! A TCP proxy between one part and the server, for faults of a network: cut, stall, delay, reset.
//!
//! It moves bytes and, unless it has a [`Gate`], knows nothing of NATS. Each connection has a task for each direction;
//! all of them follow the proxy's one [`Condition`], which tests change.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::gate::{Gate, Sieve, Way};

/// What one direction does with bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// They arrive at once.
    Open,
    /// They arrive so much later, in order.
    Delayed(Duration),
    /// They arrive once the direction is open again: what a network does that loses every packet until it heals.
    Stalled,
}

/// How the proxy's connections are closed, apart from by their ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closing {
    /// Both sides read an end of the stream.
    Finish,
    /// Both sides get an error.
    Reset,
}

#[derive(Debug, Clone, Copy)]
struct Condition {
    to_server: Flow,
    to_part: Flow,
    accepts: bool,
    /// Connections of an older generation are closed.
    generation: u64,
    /// How often connections were forgotten; those from before the last time carry nothing any more.
    forgotten: u64,
    closing: Closing,
}

/// A proxy; its connections end when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    condition: watch::Sender<Condition>,
    port: u16,
    /// The accepting task, with the connections' tasks in it; aborted when dropped.
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Starts a proxy to a port of the loopback interface.
    ///
    /// # Errors
    /// When there is no port to listen on.
    pub async fn start(server_port: u16) -> Result<Self> {
        Self::start_with(server_port, None).await
    }

    /// The same with a gate that every message passes.
    ///
    /// # Errors
    /// When there is no port to listen on.
    pub async fn start_gated(server_port: u16, gate: Gate) -> Result<Self> {
        Self::start_with(server_port, Some(gate)).await
    }

    async fn start_with(server_port: u16, gate: Option<Gate>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .context("no port for a proxy")?;
        let port = listener.local_addr()?.port();
        let condition = watch::Sender::new(Condition {
            to_server: Flow::Open,
            to_part: Flow::Open,
            accepts: true,
            generation: 0,
            forgotten: 0,
            closing: Closing::Finish,
        });
        let server = SocketAddr::from(([127, 0, 0, 1], server_port));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, server, condition.subscribe(), gate));
        Ok(Self {
            condition,
            port,
            _tasks: tasks,
        })
    }

    /// Where the part connects.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The port of [`Proxy::url`].
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sets what both directions do, for connections that are there and for new ones.
    pub fn set_flows(&self, to_server: Flow, to_part: Flow) {
        self.condition.send_modify(|condition| {
            condition.to_server = to_server;
            condition.to_part = to_part;
        });
    }

    /// Closes every connection, and new ones at once, until [`Proxy::heal`].
    pub fn cut(&self) {
        self.condition.send_modify(|condition| {
            condition.accepts = false;
            condition.generation += 1;
            condition.closing = Closing::Finish;
        });
    }

    /// Breaks every connection; new ones are served.
    pub fn reset(&self) {
        self.condition.send_modify(|condition| {
            condition.generation += 1;
            condition.closing = Closing::Reset;
        });
    }

    /// Lets the connections of this moment carry nothing any more, without a sign to either end; new ones are
    /// served. Networks do so that lose the state of their address translation.
    pub fn forget(&self) {
        self.condition.send_modify(|condition| condition.forgotten += 1);
    }

    /// A network without faults again.
    pub fn heal(&self) {
        self.condition.send_modify(|condition| {
            condition.to_server = Flow::Open;
            condition.to_part = Flow::Open;
            condition.accepts = true;
        });
    }
}

async fn accept(
    listener: TcpListener,
    server: SocketAddr,
    condition: watch::Receiver<Condition>,
    gate: Option<Gate>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let now = *condition.borrow();
                // One that is refused is closed, as is one whose server is not there.
                if let (Ok((part, _)), true) = (accepted, now.accepts) {
                    connections.spawn(connect(part, server, condition.clone(), now, gate.clone()));
                }
            }
            Some(ended) = connections.join_next() => ended.expect("moving bytes does not panic"),
        }
    }
}

async fn connect(
    part: TcpStream,
    server: SocketAddr,
    mut condition: watch::Receiver<Condition>,
    begun: Condition,
    gate: Option<Gate>,
) {
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    for stream in [&part, &server] {
        // Small messages would wait for each other; a socket that is closed already needs it no more.
        drop(stream.set_nodelay(true));
    }
    let (from_part, into_part) = part.into_split();
    let (from_server, into_server) = server.into_split();
    let is_forgotten = |now: &Condition| now.forgotten != begun.forgotten;
    let of_server = |now: &Condition| {
        if is_forgotten(now) {
            Flow::Stalled
        } else {
            now.to_server
        }
    };
    let of_part = |now: &Condition| {
        if is_forgotten(now) {
            Flow::Stalled
        } else {
            now.to_part
        }
    };
    let sieve = |way| gate.as_ref().map(|gate| Sieve::new(way, gate));
    let (sift, condition_too) = (sieve(Way::ToServer), condition.clone());
    let to_server = carry(from_part, &into_server, condition_too, of_server, sift);
    let (sift, condition_too) = (sieve(Way::ToPart), condition.clone());
    let to_part = carry(from_server, &into_part, condition_too, of_part, sift);
    let closed = condition.wait_for(|now| now.generation != begun.generation);
    let closing = tokio::select! {
        _ = to_server => Closing::Finish,
        _ = to_part => Closing::Finish,
        now = closed => now.map_or(Closing::Finish, |now| now.closing),
    };
    if closing == Closing::Reset {
        for half in [into_part, into_server] {
            // One that is closed already cannot be broken.
            drop(half.as_ref().set_zero_linger());
            // Dropped as it is, a half says goodbye first, which the other end may hear before the reset.
            half.forget();
        }
    }
}

/// Moves one direction's bytes until either end closes.
async fn carry(
    from: OwnedReadHalf,
    into: &OwnedWriteHalf,
    condition: watch::Receiver<Condition>,
    of: impl Fn(&Condition) -> Flow + Copy,
    sieve: Option<Sieve>,
) -> io::Result<()> {
    let (queue, queued) = mpsc::channel(CHUNKS_MAX);
    tokio::try_join!(
        take_in(from, queue, condition.clone(), of, sieve),
        give_out(into, queued, condition, of)
    )
    .map(drop)
}

async fn take_in(
    mut from: OwnedReadHalf,
    queue: mpsc::Sender<(Instant, Bytes)>,
    condition: watch::Receiver<Condition>,
    of: impl Fn(&Condition) -> Flow + Copy,
    mut sieve: Option<Sieve>,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let chunk = tokio::select! {
            count = from.read(&mut buffer) => match (count?, &mut sieve) {
                (0, _) => return Err(io::ErrorKind::UnexpectedEof.into()),
                (count, Some(sieve)) => sieve.sift(&buffer[..count]),
                (count, None) => Bytes::copy_from_slice(&buffer[..count]),
            },
            held = let_go(&mut sieve) => held,
        };
        if chunk.is_empty() {
            continue;
        }
        let delay = match of(&condition.borrow()) {
            Flow::Delayed(delay) => delay,
            Flow::Open | Flow::Stalled => Duration::ZERO,
        };
        let due = Instant::now() + delay;
        if queue.send((due, chunk)).await.is_err() {
            return Ok(());
        }
    }
}

/// What a gate lets go when it is opened.
async fn let_go(sieve: &mut Option<Sieve>) -> Bytes {
    match sieve {
        Some(sieve) => sieve.opened().await,
        None => std::future::pending().await,
    }
}

async fn give_out(
    into: &OwnedWriteHalf,
    mut queued: mpsc::Receiver<(Instant, Bytes)>,
    mut condition: watch::Receiver<Condition>,
    of: impl Fn(&Condition) -> Flow + Copy,
) -> io::Result<()> {
    while let Some((due, chunk)) = queued.recv().await {
        // A network that is not slow any more delivers what is on its way.
        tokio::select! {
            () = sleep_until(due) => {}
            _ = condition.wait_for(|now| !matches!(of(now), Flow::Delayed(_))) => {}
        }
        // Not across the write: what is returned is a lock's guard.
        if condition.wait_for(|now| of(now) != Flow::Stalled).await.is_err() {
            return Ok(());
        }
        write_all(into, &chunk).await?;
    }
    Ok(())
}

/// Writes through a shared half, which stays there for whoever closes it.
async fn write_all(into: &OwnedWriteHalf, chunk: &[u8]) -> io::Result<()> {
    let mut rest = chunk;
    while !rest.is_empty() {
        into.writable().await?;
        match into.try_write(rest) {
            Ok(count) => rest = &rest[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Bytes moved at once.
const CHUNK_BYTES: usize = 16 << 10;
/// Chunks on their way in one direction: with full ones 4 MiB, about what a socket holds.
const CHUNKS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::time::timeout;

    use super::*;
    use crate::PATIENCE;

    /// A proxy to a server that says everything twice, and a connection through it.
    async fn echo() -> (Proxy, TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap().port()).await.unwrap();
        let part = TcpStream::connect(("127.0.0.1", proxy.port)).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        (proxy, part, server)
    }

    async fn read(stream: &mut TcpStream, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let read = timeout(PATIENCE, stream.read_exact(&mut bytes)).await;
        read.unwrap().unwrap();
        bytes
    }

    #[tokio::test]
    async fn bytes_of_a_stalled_direction_come_when_it_opens_and_the_other_direction_goes_on() {
        let (proxy, mut part, mut server) = echo().await;
        proxy.set_flows(Flow::Stalled, Flow::Open);
        part.write_all(b"late").await.unwrap();
        server.write_all(b"news").await.unwrap();
        assert_eq!(read(&mut part, 4).await, b"news");
        let mut byte = [0];
        assert_eq!(
            server.try_read(&mut byte).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        proxy.heal();
        assert_eq!(read(&mut server, 4).await, b"late");
    }

    #[tokio::test]
    async fn forgotten_connection_is_silent_for_ever_and_a_new_one_is_served() {
        let (proxy, mut part, server) = echo().await;
        proxy.forget();
        proxy.heal();
        part.write_all(b"x").await.unwrap();
        let mut other = TcpStream::connect(("127.0.0.1", proxy.port)).await.unwrap();
        other.write_all(b"y").await.unwrap();
        assert_eq!(
            server.try_read(&mut [0]).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
    }

    #[tokio::test]
    async fn delayed_bytes_come_in_order_and_not_before_their_time() {
        let (proxy, mut part, mut server) = echo().await;
        let delay = Duration::from_millis(80);
        proxy.set_flows(Flow::Delayed(delay), Flow::Open);
        let sent = Instant::now();
        for byte in 0..50_u8 {
            part.write_all(&[byte]).await.unwrap();
        }
        let expected: Vec<u8> = (0..50).collect();
        assert_eq!(read(&mut server, 50).await, expected);
        assert!(sent.elapsed() >= delay);
    }

    #[tokio::test]
    async fn reset_connection_fails_at_both_ends_and_a_new_one_is_served() {
        let (proxy, mut part, mut server) = echo().await;
        part.write_all(b"x").await.unwrap();
        assert_eq!(read(&mut server, 1).await, b"x");
        proxy.reset();
        for end in [&mut part, &mut server] {
            let failed = timeout(PATIENCE, end.read(&mut [0])).await.unwrap();
            assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
        TcpStream::connect(("127.0.0.1", proxy.port)).await.unwrap();
    }

    #[tokio::test]
    async fn cut_proxy_ends_connections_and_closes_new_ones_until_it_heals() {
        let (proxy, mut part, mut server) = echo().await;
        part.write_all(b"x").await.unwrap();
        assert_eq!(read(&mut server, 1).await, b"x");
        proxy.cut();
        assert_eq!(timeout(PATIENCE, part.read(&mut [0])).await.unwrap().unwrap(), 0);
        let mut refused = TcpStream::connect(("127.0.0.1", proxy.port)).await.unwrap();
        let end = timeout(PATIENCE, refused.read(&mut [0])).await.unwrap();
        // What was sent before the close makes it a reset.
        assert!(end.is_err() || end.is_ok_and(|count| count == 0));
        proxy.heal();
    }
}
