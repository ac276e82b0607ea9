//! Getting a root from whoever holds it: the holders in turn, until everything is there.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use flotilla_protocol::WorkerId;
use flotilla_protocol::codec::{decode_internal, encode_internal};
use flotilla_protocol::weights::{CopyAsk, CopyRefusal, CopyReply, Generation, Holding, ReceiverId, Root};
use flotilla_weights_core::{Manifest, ManifestError, ReceivingEnd};
use thiserror::Error;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::arrival::Announcer;
use crate::claims::{Registry, RegistryError};
use crate::export::{Identity, random};
use crate::receive::{ReceiveError, Receiver};
use crate::relay::{CopyName, RelayError};
use crate::store::{PartialModel, Store, StoreError, StoredModel};

/// Everything that getting a root needs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Importer {
    /// Who asks.
    pub identity: Identity,
    /// How segments come in.
    pub receiver: Receiver,
    /// Who holds what.
    pub registry: Registry,
    /// Where it goes.
    pub store: Store,
    /// How long the answer to an ask may take.
    pub ask_timeout: Duration,
}

/// A root that is here now.
#[derive(Debug)]
pub struct Imported {
    /// Its files.
    pub model: StoredModel,
    /// Bytes that came over the relay.
    pub copied_bytes: u64,
    /// Bytes that were taken from other models of the store.
    pub reused_bytes: u64,
    /// From whom; `None` when no bytes had to come.
    pub from: Option<WorkerId>,
}

/// Why a root could not be got.
#[derive(Debug, Error)]
pub enum ImportError {
    /// Nobody holds it.
    #[error("no worker holds {root}")]
    NoHolder {
        /// What was wanted.
        root: Root,
    },
    /// All holders were tried.
    #[error("none of the {tried} holders of {root} that were tried has sent it; the last one: {last}")]
    Holders {
        /// What was wanted.
        root: Root,
        /// How many.
        tried: usize,
        /// What became of the last one.
        last: HolderFailure,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// This side of the copy.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
}

/// Why one holder did not send everything.
#[derive(Debug, Error)]
pub enum HolderFailure {
    /// It did not answer.
    #[error("{worker} did not answer")]
    Silent {
        /// The holder.
        worker: WorkerId,
    },
    /// It says that another worker sends the root, and that one does not answer: it may have died, and its claim has to
    /// expire first.
    #[error("{sender} has the claim to send it and does not answer")]
    ClaimLeft {
        /// Who has the claim.
        sender: WorkerId,
    },
    /// It said no.
    #[error("{worker} refused: {reason:?}")]
    Refused {
        /// The holder.
        worker: WorkerId,
        /// Why.
        reason: CopyRefusal,
    },
    /// Its manifest is not that of the root.
    #[error("the manifest of {worker} cannot be used: {source}")]
    Manifest {
        /// The holder.
        worker: WorkerId,
        /// Why.
        source: ManifestError,
    },
    /// There is no manifest in the relay.
    #[error("the manifest of {worker} is not in the relay")]
    NoManifest {
        /// The holder.
        worker: WorkerId,
    },
    /// It began, and the rest did not come.
    #[error("the copy from {worker} ended as {end:?}")]
    Ended {
        /// The holder.
        worker: WorkerId,
        /// How.
        end: ReceivingEnd,
    },
    /// The relay cannot be used.
    #[error("the relay cannot be used: {0}")]
    Relay(#[from] RelayError),
}

/// An import under way.
struct Import<'a> {
    with: &'a Importer,
    root: Root,
    partial: Option<PartialModel>,
    copied_bytes: u64,
    reused_bytes: u64,
    announcer: &'a Announcer,
}

impl Importer {
    /// Brings a root into the store, from whoever holds it.
    ///
    /// # Errors
    /// [`ImportError`]. What arrived stays for the next attempt.
    pub async fn import(&self, root: Root) -> Result<Imported, ImportError> {
        self.import_telling(root, &Announcer::unheard(root)).await
    }

    /// The same, and tells meanwhile what of it is there; the end is left to the caller to tell.
    ///
    /// # Errors
    /// [`ImportError`].
    pub async fn import_telling(&self, root: Root, announcer: &Announcer) -> Result<Imported, ImportError> {
        let store = self.store.clone();
        if let Some(model) = blocking(move || store.find(root)).await? {
            return Ok(Imported {
                model,
                copied_bytes: 0,
                reused_bytes: 0,
                from: None,
            });
        }
        let partial = self.resume(root).await?;
        let partial = match partial {
            // It was whole once: the machine stopped before it was on disk.
            Some(partial) if partial.have().is_all() => {
                return Ok(Imported {
                    model: finish(partial).await?,
                    copied_bytes: 0,
                    reused_bytes: 0,
                    from: None,
                });
            }
            partial => partial,
        };
        let holders = self.holders(root).await?;
        if let Some(model) = self.on_this_machine(root, &holders).await {
            return Ok(Imported {
                model,
                copied_bytes: 0,
                reused_bytes: 0,
                from: None,
            });
        }
        let mut import = Import {
            with: self,
            root,
            partial,
            copied_bytes: 0,
            reused_bytes: 0,
            announcer,
        };
        if let Some(partial) = &mut import.partial {
            partial.tell(announcer);
        }
        let from = import.run(holders).await?;
        let partial = import.partial.take().expect("everything of it has arrived");
        let model = finish(partial).await?;
        let (copied_bytes, reused_bytes) = (import.copied_bytes, import.reused_bytes);
        info!(%root, %from, copied_bytes, reused_bytes, "weights were copied");
        Ok(Imported {
            model,
            copied_bytes,
            reused_bytes,
            from: Some(from),
        })
    }

    /// Holders, who already sends the root first, then those that send least; which of equals differs from
    /// receiver to receiver.
    async fn holders(&self, root: Root) -> Result<VecDeque<Holding>, ImportError> {
        let mut holders = self.registry.holders_of(root).await?;
        holders.retain(|holding| holding.worker != self.identity.worker);
        if holders.is_empty() {
            return Err(ImportError::NoHolder { root });
        }
        let claim = self.registry.claim_of(root).await?;
        holders.sort_by_cached_key(|holding| {
            let claims = claim.as_ref().is_some_and(|claim| claim.sender == holding.worker);
            let lot = format!("{root} {} {}", self.identity.worker, holding.worker);
            (!claims, holding.sends, *blake3::hash(lot.as_bytes()).as_bytes())
        });
        Ok(holders.into())
    }

    /// The files of a holder on this very machine, if they can be read here.
    async fn on_this_machine(&self, root: Root, holders: &VecDeque<Holding>) -> Option<StoredModel> {
        // Machines that do not know themselves are not taken for the same one.
        let machine = Some(&self.identity.machine).filter(|machine| !machine.is_empty());
        let here = holders.iter().filter(|holding| Some(&holding.machine) == machine);
        for holding in here {
            let folder = holding.folder.clone();
            match blocking(move || StoredModel::open(folder, root)).await {
                Ok(Some(model)) => {
                    info!(%root, holder = %holding.worker, folder = %holding.folder.display(), "weights are on this machine");
                    return Some(model);
                }
                Ok(None) => {}
                Err(error) => {
                    warn!(%root, holder = %holding.worker, error = &error as &dyn std::error::Error, "weights on this machine cannot be read");
                }
            }
        }
        None
    }

    /// What an earlier attempt left, compared again.
    async fn resume(&self, root: Root) -> Result<Option<PartialModel>, ImportError> {
        let store = self.store.clone();
        Ok(blocking(move || store.resume(root)).await?)
    }
}

impl Import<'_> {
    /// Tries holders until everything is there; says whose copy was the last.
    async fn run(&mut self, mut holders: VecDeque<Holding>) -> Result<WorkerId, ImportError> {
        let (mut fruitless, mut tried) = (0, 0);
        let mut advanced = Instant::now();
        let (mut failed, mut is_claim_left) = (None, false);
        loop {
            let Some(holding) = holders.pop_front() else {
                holders = self.next_round(tried, failed.take()).await?;
                continue;
            };
            let before = self.copied_bytes + self.reused_bytes;
            tried += 1;
            let last = match self.try_holder(&holding.worker, holding.incarnation).await? {
                Ok(from) => return Ok(from),
                Err(last) => last,
            };
            warn!(root = %self.root, holder = %holding.worker, error = %last, "a holder did not send everything");
            // Until the claim of one that died expires, no other may send, and the dead one is silent.
            is_claim_left |= matches!(last, HolderFailure::ClaimLeft { .. });
            if self.copied_bytes + self.reused_bytes > before {
                (fruitless, advanced, is_claim_left) = (0, Instant::now(), false);
            } else if !is_claim_left || advanced.elapsed() > self.with.registry.expires_after * 2 {
                fruitless += 1;
            }
            if fruitless >= FRUITLESS_MAX {
                let root = self.root;
                return Err(ImportError::Holders { root, tried, last });
            }
            failed = Some(last);
        }
    }

    /// Waits a while, as a claim that was left behind needs its time to expire, and looks who holds it then.
    async fn next_round(
        &self,
        tried: usize,
        failed: Option<HolderFailure>,
    ) -> Result<VecDeque<Holding>, ImportError> {
        tokio::select! {
            () = sleep(BETWEEN_ROUNDS) => {}
            () = self.with.receiver.stop.cancelled() => return Err(ReceiveError::Cancelled.into()),
        }
        match (self.with.holders(self.root).await, failed) {
            // Why the last one did not send it says more than that there is nobody any more.
            (Err(ImportError::NoHolder { root }), Some(last)) => {
                Err(ImportError::Holders { root, tried, last })
            }
            (holders, _) => holders,
        }
    }

    async fn try_holder(
        &mut self,
        worker: &WorkerId,
        incarnation: u64,
    ) -> Result<Result<WorkerId, HolderFailure>, ImportError> {
        if self.partial.is_none() {
            let manifest = match self.manifest(worker, incarnation).await {
                Ok(manifest) => manifest,
                Err(failure) => return Ok(Err(failure)),
            };
            self.begin(manifest).await?;
        }
        // Taking segments from other models may have lasted longer than the sender waited, so it is asked again.
        let (sender, generation) = match self.ask(worker, incarnation).await {
            Ok(sends) => sends,
            Err(failure) => return Ok(Err(failure)),
        };
        let name = CopyName {
            root: self.root,
            generation,
        };
        let receiver = self.with.receiver.clone();
        let listening = match receiver.listen(name).await {
            Ok(listening) => listening,
            Err(error) => return Ok(Err(error.into())),
        };
        let partial = self.partial.take().expect("it was begun");
        let id = ReceiverId(random());
        let received = receiver.receive(listening, id, partial).await;
        self.copied_bytes += received.bytes;
        self.partial = Some(received.partial);
        match received.end? {
            ReceivingEnd::Complete => Ok(Ok(sender)),
            end => Ok(Err(HolderFailure::Ended { worker: sender, end })),
        }
    }

    /// The manifest, by way of a copy that may end before anything of it is wanted.
    async fn manifest(&self, worker: &WorkerId, incarnation: u64) -> Result<Manifest, HolderFailure> {
        let (worker, generation) = self.ask(worker, incarnation).await?;
        let name = CopyName {
            root: self.root,
            generation,
        };
        let relay = &self.with.receiver.relay;
        let json = relay.fetch_manifest(name, Manifest::JSON_BYTES_MAX).await?;
        let Some(json) = json else {
            return Err(HolderFailure::NoManifest { worker });
        };
        Manifest::from_json(self.root, json).map_err(|source| HolderFailure::Manifest { worker, source })
    }

    /// Makes room for the model and takes what other models have of it.
    async fn begin(&mut self, manifest: Manifest) -> Result<(), ImportError> {
        let (store, stop) = (self.with.store.clone(), self.with.receiver.stop.clone());
        let announcer = self.announcer.clone();
        let (partial, reused_bytes) = blocking(move || {
            let mut partial = store.receive(Arc::new(manifest))?;
            partial.tell(&announcer);
            let reused_bytes = partial.reuse(&store, &|| stop.is_cancelled())?;
            Ok((partial, reused_bytes))
        })
        .await?;
        self.reused_bytes += reused_bytes;
        self.partial = Some(partial);
        Ok(())
    }

    /// Asks a holder, or whom it names, for a copy.
    async fn ask(
        &self,
        worker: &WorkerId,
        incarnation: u64,
    ) -> Result<(WorkerId, Generation), HolderFailure> {
        let refused = |worker, reason| HolderFailure::Refused { worker, reason };
        match self.ask_one(worker, incarnation).await? {
            CopyReply::Sends { generation } => Ok((worker.clone(), generation)),
            CopyReply::Refuses { reason } => Err(refused(worker.clone(), reason)),
            CopyReply::SentBy { sender, incarnation } => match self.ask_one(&sender, incarnation).await {
                Ok(CopyReply::Sends { generation }) => Ok((sender, generation)),
                Ok(CopyReply::Refuses { reason }) => Err(refused(sender, reason)),
                Ok(CopyReply::SentBy { .. }) | Err(_) => Err(HolderFailure::ClaimLeft { sender }),
            },
        }
    }

    async fn ask_one(&self, worker: &WorkerId, incarnation: u64) -> Result<CopyReply, HolderFailure> {
        let connection = self.with.receiver.relay.connection();
        let ask = CopyAsk {
            root: self.root,
            incarnation,
        };
        let body = encode_internal(&ask).expect("an ask can be encoded");
        let asked = connection
            .client
            .request(connection.subjects.copy_ask(worker), body);
        let silent = || HolderFailure::Silent {
            worker: worker.clone(),
        };
        let answer = timeout(self.with.ask_timeout, asked)
            .await
            .map_err(|_| silent())?;
        let answer = answer.map_err(|_| silent())?;
        decode_internal(&answer.payload).map_err(|_| silent())
    }
}

/// Makes a whole model, which is synced while it is used. Nobody waits for that: what does not get as far is compared
/// again after a crash of the machine.
async fn finish(partial: PartialModel) -> Result<StoredModel, StoreError> {
    let (model, unsynced) = blocking(move || partial.finish_before_sync()).await?;
    spawn_blocking(move || unsynced.sync_and_tell());
    Ok(model)
}

/// Runs something that waits for the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    spawn_blocking(work)
        .await
        .expect("work on the store does not panic")
}

/// Holders that send nothing new, one after the other, before it is given up.
const FRUITLESS_MAX: usize = 3;
/// Before the same holders are asked again.
const BETWEEN_ROUNDS: Duration = Duration::from_secs(2);
