//! Answering those who ask for weights: what this worker holds, and who of all holders sends it.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_nats::{Message, Subscriber};
use flotilla_protocol::WorkerId;
use flotilla_protocol::codec::{decode_internal, encode_internal};
use flotilla_protocol::weights::{Claim, CopyAsk, CopyRefusal, CopyReply, Generation, Holding, Root};
use futures_util::StreamExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use crate::files::ModelFiles;
use crate::relay::RelayError;
use crate::send::Sender;

/// Who this worker is to others.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The worker.
    pub worker: WorkerId,
    /// Which start of it.
    pub incarnation: u64,
    /// The machine, as the machine knows itself.
    pub machine: String,
}

/// What this worker holds for others. Clones share it; the task behind it ends with the last of them, or when its sender
/// is told to stop.
#[derive(Debug, Clone)]
pub struct Exports {
    orders: mpsc::Sender<Order>,
}

enum Order {
    Hold {
        files: Arc<ModelFiles>,
        told: oneshot::Sender<()>,
    },
    LetGo {
        root: Root,
        told: oneshot::Sender<()>,
    },
}

/// The task behind [`Exports`]: it answers asks, keeps the entries of what it holds and runs the copies that it sends.
struct Exporter {
    identity: Identity,
    sender: Sender,
    sends_max: usize,
    held: BTreeMap<Root, Arc<ModelFiles>>,
    /// Copies under way, with what those who ask are told as soon as it is known.
    sending: BTreeMap<Root, watch::Receiver<Option<CopyReply>>>,
    copies: JoinSet<Root>,
    answers: JoinSet<()>,
}

impl Exports {
    /// Listens to asks; up to `sends_max` roots are sent at once. The task that is returned answers them; when it ends, every
    /// copy has ended and has cleared away what it had in the relay. Aborted, it leaves that to the sweeper.
    ///
    /// # Errors
    /// [`RelayError::Read`].
    pub async fn start(
        identity: Identity,
        sender: Sender,
        sends_max: usize,
    ) -> Result<(Self, AbortOnDropHandle<()>), RelayError> {
        let connection = sender.relay.connection();
        let subject = connection.subjects.copy_ask(&identity.worker);
        let asks = sender.relay.subscribe(subject).await?;
        let (orders, inbox) = mpsc::channel(ORDERS_MAX);
        let exporter = Exporter {
            identity,
            sender,
            sends_max,
            held: BTreeMap::new(),
            sending: BTreeMap::new(),
            copies: JoinSet::new(),
            answers: JoinSet::new(),
        };
        let task = tokio::spawn(exporter.run(asks, inbox));
        Ok((Self { orders }, AbortOnDropHandle::new(task)))
    }

    /// Offers files to others, from now until they are let go. Returns when the others can see it.
    pub async fn hold(&self, files: Arc<ModelFiles>) {
        self.order(|told| Order::Hold { files, told }).await;
    }

    /// Offers a root no longer. A copy under way goes on.
    pub async fn let_go(&self, root: Root) {
        self.order(|told| Order::LetGo { root, told }).await;
    }

    async fn order(&self, order: impl FnOnce(oneshot::Sender<()>) -> Order) {
        let (told, done) = oneshot::channel();
        if self.orders.send(order(told)).await.is_ok() {
            // The task ends only when the worker does.
            let _ended = done.await;
        }
    }
}

impl Exporter {
    async fn run(mut self, mut asks: Subscriber, mut orders: mpsc::Receiver<Order>) {
        let mut renewals = interval(self.sender.registry.renew_every);
        renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = self.sender.stop.clone();
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => self.obey(order).await,
                    None => break,
                },
                Some(ask) = asks.next() => self.asked(ask),
                Some(ended) = self.copies.join_next() => {
                    self.sending.remove(&ended.expect("a copy does not panic"));
                }
                Some(answered) = self.answers.join_next() => answered.expect("an answer does not panic"),
                _ = renewals.tick() => self.renew().await,
                () = stop.cancelled() => break,
            }
        }
        // The copies were told to stop too; each clears away what it has in the relay.
        while self.copies.join_next().await.is_some() {}
        for root in self.held.keys() {
            if let Err(error) = self.sender.registry.let_go(*root, &self.identity.worker).await {
                debug!(%root, %error, "an entry of what is held stays until it expires");
            }
        }
    }

    async fn obey(&mut self, order: Order) {
        let told = match order {
            Order::Hold { files, told } => {
                let root = files.manifest().root();
                info!(%root, folder = %files.folder().display(), "weights can be copied from here");
                self.held.insert(root, files);
                self.tell(root).await;
                told
            }
            Order::LetGo { root, told } => {
                self.let_go(root).await;
                told
            }
        };
        // Nobody waits who was cancelled.
        let _cancelled = told.send(());
    }

    /// Says again what is held. A folder that somebody removed is not held any more.
    async fn renew(&mut self) {
        let held: Vec<(Root, Arc<ModelFiles>)> = self
            .held
            .iter()
            .map(|(root, files)| (*root, Arc::clone(files)))
            .collect();
        for (root, files) in held {
            match tokio::fs::try_exists(files.folder()).await {
                Ok(false) => {
                    info!(%root, folder = %files.folder().display(), "weights are gone from here");
                    self.let_go(root).await;
                }
                Ok(true) | Err(_) => self.tell(root).await,
            }
        }
    }

    async fn let_go(&mut self, root: Root) {
        self.held.remove(&root);
        if let Err(error) = self.sender.registry.let_go(root, &self.identity.worker).await {
            debug!(%root, %error, "an entry of what was held stays until it expires");
        }
    }

    /// Writes the entry of what is held. One that cannot be written now is written with the next renewal.
    async fn tell(&self, root: Root) {
        let Some(files) = self.held.get(&root) else { return };
        let holding = Holding {
            worker: self.identity.worker.clone(),
            incarnation: self.identity.incarnation,
            machine: self.identity.machine.clone(),
            folder: files.folder().to_owned(),
            sends: u32::try_from(self.sending.len()).unwrap_or(u32::MAX),
        };
        if let Err(error) = self.sender.registry.hold(root, &holding).await {
            warn!(%root, %error, "others do not see that weights are here");
        }
    }

    fn asked(&mut self, message: Message) {
        let Some(reply) = message.reply.clone() else {
            return;
        };
        let relay = self.sender.relay.clone();
        let answer = match decode_internal::<CopyAsk>(&message.payload) {
            Ok(ask) => self.answer(&ask),
            Err(error) => {
                warn!(%error, "an ask for weights cannot be understood");
                return;
            }
        };
        self.answers.spawn(async move {
            let body = encode_internal(&answer.wait().await).expect("a reply can be encoded");
            if let Err(error) = relay.tell(reply, body).await {
                debug!(%error, "an ask for weights was not answered");
            }
        });
    }

    fn answer(&mut self, ask: &CopyAsk) -> Answer {
        let refuses = |reason| Answer::Now(CopyReply::Refuses { reason });
        if ask.incarnation != self.identity.incarnation {
            return refuses(CopyRefusal::OtherIncarnation);
        }
        let Some(files) = self.held.get(&ask.root) else {
            return refuses(CopyRefusal::NotHeld);
        };
        if let Some(sending) = self.sending.get(&ask.root) {
            return Answer::Soon(sending.clone());
        }
        if self.sending.len() >= self.sends_max {
            return refuses(CopyRefusal::Busy);
        }
        let (tell, told) = watch::channel(None);
        self.sending.insert(ask.root, told.clone());
        let copy = copy(
            self.identity.clone(),
            self.sender.clone(),
            Arc::clone(files),
            tell,
        );
        self.copies.spawn(copy);
        Answer::Soon(told)
    }
}

/// What somebody who asks is told.
enum Answer {
    Now(CopyReply),
    /// As soon as it is known.
    Soon(watch::Receiver<Option<CopyReply>>),
}

impl Answer {
    async fn wait(self) -> CopyReply {
        let unavailable = CopyReply::Refuses {
            reason: CopyRefusal::RelayUnavailable,
        };
        match self {
            Self::Now(reply) => reply,
            Self::Soon(mut told) => {
                let told = told.wait_for(Option::is_some).await;
                told.ok().and_then(|told| told.clone()).unwrap_or(unavailable)
            }
        }
    }
}

/// Sends a root if nobody else does, and tells those who ask what became of that.
async fn copy(
    identity: Identity,
    sender: Sender,
    files: Arc<ModelFiles>,
    tell: watch::Sender<Option<CopyReply>>,
) -> Root {
    let root = files.manifest().root();
    let claim = Claim {
        sender: identity.worker,
        incarnation: identity.incarnation,
        generation: Generation(random()),
    };
    let refuses = |reason| Some(CopyReply::Refuses { reason });
    match sender.registry.take(root, claim.clone()).await {
        Ok(Ok(held)) => match sender.start(files, held).await {
            Ok(copy) => {
                tell.send_replace(Some(CopyReply::Sends {
                    generation: claim.generation,
                }));
                copy.await;
            }
            Err(error) => {
                warn!(%root, error = &error as &dyn std::error::Error, "a copy cannot be sent");
                tell.send_replace(refuses(CopyRefusal::RelayUnavailable));
            }
        },
        // An earlier claim of ours that has not expired yet has no copy any more.
        Ok(Err(other)) if other.sender == claim.sender => {
            tell.send_replace(refuses(CopyRefusal::Busy));
        }
        Ok(Err(other)) => {
            tell.send_replace(Some(CopyReply::SentBy {
                sender: other.sender,
                incarnation: other.incarnation,
            }));
        }
        Err(error) => {
            warn!(%root, error = &error as &dyn std::error::Error, "a copy cannot be claimed");
            tell.send_replace(refuses(CopyRefusal::RelayUnavailable));
        }
    }
    root
}

/// 64 bits that nobody else has.
///
/// # Panics
/// The operating system gives no random bytes, which it does from boot on.
pub(crate) fn random() -> u64 {
    getrandom::u64().expect("the operating system gives random bytes")
}

/// Orders that wait while the task writes an entry.
const ORDERS_MAX: usize = 16;
