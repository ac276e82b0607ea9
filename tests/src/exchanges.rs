//! A proxy that understands the protocol of NATS well enough to disturb one exchange and leave the others alone: what a part
//! publishes on a subject, what it is answered, or what is delivered to it is lost, late, doubled or refused.
//!
//! [`Proxy`](crate::Proxy) breaks a network; this breaks a conversation. It stands between a real part and a real server, which
//! know nothing of it. Each connection has a queue towards each end, in which late messages get their place when they are due.

mod rule;
mod wire;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

pub use rule::{Disturbance, Fault, Refusal, Rule, Side};
use rule::{Rules, matches};
use wire::{Frame, Message, Operation};

/// Such a proxy; its connections end when it is dropped.
#[derive(Debug)]
pub struct Exchanges {
    port: u16,
    rules: Rules,
    /// The accepting task, with the connections' tasks in it; aborted when dropped.
    _tasks: JoinSet<()>,
}

impl Exchanges {
    /// Starts a proxy to a port of the loopback interface.
    ///
    /// # Errors
    /// When there is no port to listen on.
    pub async fn start(server_port: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .context("no port for a proxy")?;
        let port = listener.local_addr()?.port();
        let rules = Rules::default();
        let mut tasks = JoinSet::new();
        let server = SocketAddr::from(([127, 0, 0, 1], server_port));
        tasks.spawn(accept(listener, server, rules.clone()));
        Ok(Self {
            port,
            rules,
            _tasks: tasks,
        })
    }

    /// Where the part connects.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Disturbs an exchange from now on, until the rule has been applied as often as it says or what is returned is dropped.
    /// Of several rules that fit a message the oldest counts.
    #[must_use]
    pub fn disturb(&self, rule: Rule) -> Disturbance {
        self.rules.add(rule)
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, rules: Rules) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // One whose server is not there is closed.
                if let Ok((part, _)) = accepted {
                    connections.spawn(connect(part, server, rules.clone()));
                }
            }
            Some(ended) = connections.join_next() => ended.expect("moving messages does not panic"),
        }
    }
}

async fn connect(part: TcpStream, server: SocketAddr, rules: Rules) {
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    for stream in [&part, &server] {
        // Small messages would wait for each other; a socket that is closed already needs it no more.
        drop(stream.set_nodelay(true));
    }
    let (from_part, into_part) = part.into_split();
    let (from_server, into_server) = server.into_split();
    let ((to_part, for_part), (to_server, for_server)) = (mpsc::channel(QUEUE_MAX), mpsc::channel(QUEUE_MAX));
    let line = Line {
        rules,
        known: Arc::default(),
        to_part,
        to_server,
    };
    // The first direction that ends ends the connection, and with it what is late.
    tokio::select! {
        _ = line.read(From::Part, from_part) => {}
        _ = line.read(From::Server, from_server) => {}
        _ = write(into_part, for_part) => {}
        _ = write(into_server, for_server) => {}
    }
}

/// Who speaks.
#[derive(Debug, Clone, Copy)]
enum From {
    Part,
    Server,
}

/// One connection.
struct Line {
    rules: Rules,
    /// What both directions need to know of it. A lock, since each of them reads and writes it for a moment.
    known: Arc<Mutex<Known>>,
    to_part: Queue,
    to_server: Queue,
}

/// Messages on their way, each with the time that it comes late.
type Queue = mpsc::Sender<(Duration, Bytes)>;

#[derive(Debug, Default)]
struct Known {
    /// What the part listens to, by its numbers.
    subscriptions: BTreeMap<String, String>,
    /// Where answers are expected that are to be disturbed.
    inboxes: BTreeMap<String, Fault>,
}

impl Line {
    async fn read(&self, from: From, mut stream: OwnedReadHalf) -> Result<()> {
        let mut buffer = BytesMut::new();
        loop {
            while let Some(operation) = wire::take(&mut buffer)? {
                match from {
                    From::Part => self.asked(operation).await?,
                    From::Server => self.answered(operation).await?,
                }
            }
            let count = stream.read_buf(&mut buffer).await?;
            anyhow::ensure!(count > 0, "the other end has closed");
        }
    }

    /// Takes what the part says.
    async fn asked(&self, operation: Operation) -> Result<()> {
        let message = match operation.frame {
            Frame::Publish(message) => message,
            Frame::Subscribe { subject, number } => {
                self.with_known(|known| known.subscriptions.insert(number, subject));
                return send(&self.to_server, operation.raw).await;
            }
            Frame::Deliver(_) | Frame::Other => return send(&self.to_server, operation.raw).await,
        };
        if let Some(reply) = &message.reply
            && let Some(fault) = self.rules.find(Side::Answer, &message)
        {
            self.with_known(|known| known.inboxes.insert(reply.clone(), fault));
        }
        match self.rules.find(Side::Question, &message) {
            None => send(&self.to_server, operation.raw).await,
            Some(Fault::Refused(refusal)) => self.refuse(&refusal, &message).await,
            Some(fault) => pass(&self.to_server, &fault, operation.raw).await,
        }
    }

    /// Takes what the server says.
    async fn answered(&self, operation: Operation) -> Result<()> {
        let Frame::Deliver(message) = operation.frame else {
            return send(&self.to_part, operation.raw).await;
        };
        let expected = self.with_known(|known| known.inboxes.get(&message.subject).cloned());
        match expected.or_else(|| self.rules.find(Side::Delivery, &message)) {
            None => send(&self.to_part, operation.raw).await,
            Some(Fault::Refused(refusal)) => {
                let asked = Message {
                    reply: Some(message.subject.clone()),
                    ..message
                };
                self.refuse(&refusal, &asked).await
            }
            Some(fault) => pass(&self.to_part, &fault, operation.raw).await,
        }
    }

    /// Tells the part what the server might have.
    async fn refuse(&self, refusal: &Refusal, asked: &Message) -> Result<()> {
        let number = asked.reply.as_ref().and_then(|reply| {
            self.with_known(|known| {
                let mut listened = known.subscriptions.iter();
                let found = listened.find(|(_, subject)| matches(subject, reply));
                found.map(|(number, _)| number.clone())
            })
        });
        match refusal.told(asked, number.as_deref()) {
            Some(told) => send(&self.to_part, told).await,
            // Nobody waits for an answer.
            None => Ok(()),
        }
    }

    fn with_known<T>(&self, use_it: impl FnOnce(&mut Known) -> T) -> T {
        // Nothing that happens under the lock can be left half done.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        use_it(&mut known)
    }
}

/// Hands a disturbed message on, or does not.
async fn pass(queue: &Queue, fault: &Fault, raw: Bytes) -> Result<()> {
    match fault {
        Fault::Silent | Fault::Refused(_) => Ok(()),
        Fault::Late(delay) => send_late(queue, *delay, raw).await,
        Fault::Twice => {
            send(queue, raw.clone()).await?;
            send(queue, raw).await
        }
    }
}

async fn send(queue: &Queue, raw: Bytes) -> Result<()> {
    send_late(queue, Duration::ZERO, raw).await
}

async fn send_late(queue: &Queue, delay: Duration, raw: Bytes) -> Result<()> {
    let sent = queue.send((delay, raw)).await;
    sent.context("the connection has ended")
}

/// Writes what is not late at once, and the rest when it is due; what comes equally late keeps its order.
async fn write(mut into: OwnedWriteHalf, mut queue: mpsc::Receiver<(Duration, Bytes)>) -> Result<()> {
    let (mut late, mut number) = (BTreeMap::new(), 0_u64);
    loop {
        let due = late.first_key_value().map(|((due, _), _)| *due);
        let raw = tokio::select! {
            queued = queue.recv() => match queued {
                Some((Duration::ZERO, raw)) => raw,
                Some((delay, raw)) => {
                    number += 1;
                    late.insert((Instant::now() + delay, number), raw);
                    continue;
                }
                None => return Ok(()),
            },
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                late.pop_first().expect("the one that is due").1
            }
        };
        into.write_all(&raw).await?;
    }
}

/// Messages on their way in one direction; a full queue holds up its sender, as a socket does.
const QUEUE_MAX: usize = 256;

#[cfg(test)]
mod tests;
