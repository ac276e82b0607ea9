//! The sections and their settings: for each its unit, default and reason.

mod http;
mod policy;

use std::path::PathBuf;
use std::time::Duration;

use crate::rule::{
    Addresses, BYTES_MAX, Bytes, BytesInMemory, Choice, FilePath, Fraction, Hidden, INBOX_PREFIX, Inbox,
    KeepAliveSeconds, Millis, Name, OneOf, ProfileFiles, RepoPatterns, Seconds, Switch, Text, WebAddress,
    Whole,
};
use crate::schema::{optional, required, section};
pub use http::{DispatcherHttp, WorkerHttp};
pub use policy::{DispatcherCorrection, DispatcherPolicy, DispatcherPredictor};

use crate::{KeepAlive, LogFormat, LogLevel, ProfileFile, RepoPattern, Secret, Storage, WorkerEngine};

section! {
    /// `[nats]`: how to reach the server, and the limits of what is kept on it.
    pub struct Nats at "nats" {
        /// Addresses of the servers of one cluster, separated by commas on the wire. Default
        /// `nats://127.0.0.1:4222`, the server's own default. Credentials have keys of their own.
        url: Vec<String> = "url", required(Addresses, "nats://127.0.0.1:4222");

        /// First part of every subject, stream and bucket: 1 to 32 characters of `[A-Za-z0-9_-]`.
        /// Default `flotilla`; another name lets two fleets share a server.
        namespace: String = "namespace", required(Name { chars_max: 32 }, "flotilla");

        /// Name of the connection in the server's monitoring. Unset: the role and its id.
        name: Option<String> = "name", optional(Text);

        /// User name. Unset: no user; goes with `password`.
        user: Option<String> = "user", optional(Text);

        /// Password of `user`. Never shown.
        password: Option<Secret> = "password", optional(Hidden);

        /// First part of the ids of requests that are made over this connection, 1 to 31 characters of
        /// `[A-Za-z0-9_-]`; journals are then read through the dispatcher. For a user that the server lets read
        /// `<namespace>.events.<owner>.*` and nobody else's. Unset: none, for users that may read any events.
        owner: Option<String> = "owner", optional(Name { chars_max: 31 });

        /// First token of the subjects on which this connection gets its answers, 1 to 64 characters of
        /// `[A-Za-z0-9_-]`, beginning with `_INBOX`. Default `_INBOX`; a user with one of its own cannot read the answers of others.
        inbox_prefix: String = "inbox_prefix", required(Inbox, INBOX_PREFIX);

        /// Token. Never shown. Unset: none; excludes the other credentials.
        token: Option<Secret> = "token", optional(Hidden);

        /// File with an NKey seed. Unset: none; excludes the other credentials.
        nkey_seed_file: Option<PathBuf> = "nkey_seed_file", optional(FilePath);

        /// File with a JWT and its seed. Unset: none; excludes the other credentials.
        creds_file: Option<PathBuf> = "creds_file", optional(FilePath);

        /// How long one connection attempt may take, in ms on the wire. Default 5 s: a healthy server
        /// answers in milliseconds, a distant one in under a second.
        connect_timeout: Duration = "connect_timeout_ms", required(Millis { min: 1 }, 5_000_u64);

        /// How long the answer to a request or a publish may take, in ms on the wire. Default 5 s:
        /// longer than a busy server takes.
        request_timeout: Duration = "request_timeout_ms", required(Millis { min: 1 }, 5_000_u64);

        /// Copies of each stream and bucket: 1, 3 or 5. Default 1, all that a single server can keep.
        replicas: usize = "replicas", required(OneOf(&[1, 3, 5]), 1_u64);

        /// Where the request and journal streams are kept. Default file, so that what was accepted
        /// outlives the server's process.
        storage: Storage = "storage",
            required(Choice(&[("file", Storage::File), ("memory", Storage::Memory)]), "file");

        /// How long the events of a request can be read again, in s on the wire. Default 1 h.
        journal_max_age: Duration = "journal_max_age_s", required(Seconds { min: 1 }, 3_600_u64);

        /// Bytes of the journal stream; the oldest journals go first. Default 4 GiB, about 10 million
        /// append messages.
        journal_max_bytes: u64 = "journal_max_bytes",
            required(Bytes { min: 1 << 20, max: BYTES_MAX }, "4GiB");

        /// Bytes of memory for weights on their way from worker to worker; full, senders wait. Default 1 GiB: four
        /// copies at once, whatever the size of the models.
        relay_max_bytes: u64 = "relay_max_bytes",
            required(Bytes { min: 64 << 20, max: BYTES_MAX }, "1GiB");

        /// Bytes of the request stream; a full one refuses requests. Default 4 GiB.
        requests_max_bytes: u64 = "requests_max_bytes",
            required(Bytes { min: 1 << 20, max: BYTES_MAX }, "4GiB");

        /// Messages of the request stream; a full one refuses requests. Default 1,000,000.
        requests_max_messages: u64 = "requests_max_messages",
            required(Whole { min: 1, max: 1_000_000_000_u64 }, 1_000_000_u64);

        /// How long the server knows a request id again and drops its double, in s on the wire.
        /// Default 120 s, the server's own: longer than a client goes on repeating a publish.
        dedupe_window: Duration = "dedupe_window_s", required(Seconds { min: 1 }, 120_u64);

        /// How long dead letters are kept, in s on the wire. Default 14 days, so that a letter of a
        /// Friday outlives a holiday.
        dead_max_age: Duration = "dead_max_age_s", required(Seconds { min: 1 }, 1_209_600_u64);
    } with {
        /// `[nats.tls]`.
        tls: NatsTls;
    }
}

section! {
    /// `[nats.tls]`: encryption of the connection. All unset: as the server asks, with the system's
    /// certificate authorities.
    pub struct NatsTls at "nats.tls" {
        /// Refuse a server without TLS. Default false, for a server on the same machine.
        required: bool = "required", required(Switch, false);

        /// PEM file of the authorities that may have signed the server's certificate. Unset: the
        /// system's.
        ca_file: Option<PathBuf> = "ca_file", optional(FilePath);

        /// PEM file of our own certificate, for mutual TLS. Goes with `key_file`.
        cert_file: Option<PathBuf> = "cert_file", optional(FilePath);

        /// PEM file of the key of our own certificate. Goes with `cert_file`.
        key_file: Option<PathBuf> = "key_file", optional(FilePath);
    }
}

section! {
    /// `[dispatcher]`: the process that owns the queue.
    pub struct Dispatcher at "dispatcher" {
        /// Name of this process among the dispatchers: 1 to 64 characters of `[A-Za-z0-9_-]`. Unset:
        /// made from the host name and the process id.
        id: Option<String> = "id", optional(Name { chars_max: 64 });

        /// Requests of each class held in memory; the rest waits in the stream. Default 4096.
        queue_max: usize = "queue_max", required(Whole { min: 1, max: 1_000_000_usize }, 4_096_u64);

        /// How long the server waits for a sign of life about a request it delivered, in ms on the
        /// wire. Default 10 s: bounds how long a request rests when a dispatcher dies unseen.
        ack_wait: Duration = "ack_wait_ms", required(Millis { min: 1_000 }, 10_000_u64);

        /// How often the request stream and the journals are compared with what the leader answers for, in ms on the
        /// wire. Default 10 s. What nobody has answered for in three times `ack_wait_ms` is got out of the stream, or told
        /// as lost.
        reconcile_interval: Duration = "reconcile_interval_ms", required(Millis { min: 100 }, 10_000_u64);

        /// Requests pulled at once. Default 256: keeps one answer of the server under a few MiB.
        pull_batch_max: usize = "pull_batch_max",
            required(Whole { min: 1, max: 10_000_usize }, 256_u64);

        /// Bytes of one request, refused before it is decoded. Default 4 MiB, a few times the
        /// longest useful prompt.
        request_bytes_max: usize = "request_bytes_max",
            required(BytesInMemory { min: 1 << 10, max: 64 << 20 }, "4MiB");

        /// Bytes of the prompt of one request, as UTF-8. Default 1 MiB, about 250,000 tokens.
        prompt_bytes_max: usize = "prompt_bytes_max",
            required(BytesInMemory { min: 1 << 10, max: 64 << 20 }, "1MiB");

        /// How long leadership lasts without renewal, in ms on the wire. Default 3 s: a standby leads
        /// within 5 s of a leader's death.
        lease_ttl: Duration = "lease_ttl_ms", required(Millis { min: 1_000 }, 3_000_u64);

        /// Silence after which a worker counts as lost, in ms on the wire. Default 4 s: three of its
        /// reports may go missing. One without a connection is lost after 7/12 of it, 2.3 s.
        worker_lost_after: Duration = "worker_lost_after_ms",
            required(Millis { min: 100 }, 4_000_u64);

        /// How long a worker may take to accept an assignment, in ms on the wire. Default 2 s; then
        /// the request gets its next attempt elsewhere.
        assign_timeout: Duration = "assign_timeout_ms", required(Millis { min: 1 }, 2_000_u64);

        /// Workers that may die with a request; then it is a dead letter. Default 3. Before the last of them
        /// it runs alone, so that nobody becomes one for a neighbour's fault.
        strikes_max: u32 = "strikes_max", required(Whole { min: 1, max: 100_u32 }, 3_u64);

        /// How long nobody may listen to the events of a request with `cancel_on_disconnect`, in ms on the
        /// wire; then it is cancelled. Default 6 s: a client that reconnects is back by then.
        client_lost_after: Duration = "client_lost_after_ms", required(Millis { min: 100 }, 6_000_u64);

        /// Models in the catalog. Default 10,000.
        models_max: usize = "models_max", required(Whole { min: 1, max: 1_000_000_usize }, 10_000_u64);

        /// Workers of the fleet. Default 1,000.
        workers_max: usize = "workers_max", required(Whole { min: 1, max: 100_000_usize }, 1_000_u64);

        /// How long one request-reply on `infer` waits for the whole answer, in s on the wire.
        /// Default 600 s: a long generation on a slow device behind a cold load.
        infer_timeout: Duration = "infer_timeout_s", required(Seconds { min: 1 }, 600_u64);
    } with {
        /// `[dispatcher.http]`.
        http: DispatcherHttp;
        /// `[dispatcher.policy]`.
        policy: DispatcherPolicy;
    }
}

section! {
    /// `[worker]`: the process that owns one machine's devices.
    pub struct Worker at "worker" {
        /// Name of this worker in the fleet: 1 to 64 characters of `[A-Za-z0-9_-]`. Unset: made from
        /// the host name. Two workers must not share one.
        id: Option<String> = "id", optional(Name { chars_max: 64 });

        /// What runs the models. Default cpu; a simulated engine makes up its answers in the time that a
        /// profile says, to try a fleet that one does not have.
        engine: WorkerEngine = "engine", required(Choice(&[
            ("cpu", WorkerEngine::Cpu),
            ("simulated", WorkerEngine::Simulated),
        ]), "cpu");

        /// Folder whose subfolders are models. Unset: only models of the catalog.
        models_dir: Option<PathBuf> = "models_dir", optional(FilePath);

        /// Folder for what the worker keeps between runs. Default `.flotilla`.
        data_dir: PathBuf = "data_dir", required(FilePath, ".flotilla");

        /// Longest time between two reports, in ms on the wire. Default 1 s; a change is reported at
        /// once.
        report_interval: Duration = "report_interval_ms", required(Millis { min: 10 }, 1_000_u64);

        /// How long an idle model stays resident, in s on the wire; -1 is until evicted. Default
        /// 300 s: a person who pauses finds the model warm.
        keep_alive: KeepAlive = "keep_alive_s", required(KeepAliveSeconds, 300_i64);

        /// How long a model that was just loaded stays at most when one that left for it wants its room
        /// back: as long as its load took, so that a device works for at least as long as it loads while
        /// models chase each other, in ms on the wire. Models that the dispatcher names leave at once.
        /// Default 5 s: less than who waits for a load expects to wait. 0 is none.
        min_residency_max: Duration = "min_residency_max_ms", required(Millis { min: 0 }, 5_000_u64);

        /// How long running requests may go on when the worker drains, in s on the wire; then they
        /// are handed back. Default 25 s, under the 30 s that orchestrators grant.
        drain_timeout: Duration = "drain_timeout_s", required(Seconds { min: 0 }, 25_u64);

        /// Requests that run at once. Default 32.
        slots: usize = "slots", required(Whole { min: 1, max: 4_096_usize }, 32_u64);

        /// Prefill tokens of one step. Default 512: running requests keep their pace while a long
        /// prompt is read.
        batch_tokens_max: usize = "batch_tokens_max",
            required(Whole { min: 16, max: 65_536_usize }, 512_u64);

        /// Host memory for weights that have left their device, in bytes: they come back from there instead of
        /// from files. Unset: a fifth of the machine's, which leaves room for a CPU device's half and for the
        /// system. 0 is none.
        host_memory_bytes: Option<u64> = "host_memory_bytes", optional(Bytes { min: 0, max: BYTES_MAX });

        /// Models resident on one device. Unset: as many as its pages hold.
        models_per_device_max: Option<usize> = "models_per_device_max",
            optional(Whole { min: 1, max: 1_000_usize });

        /// Tokens that a generation may run ahead of its journal; then it alone pauses. Default 64.
        answer_channel_tokens: usize = "answer_channel_tokens",
            required(Whole { min: 1, max: 65_536_usize }, 64_u64);

        /// How long a load may go without advancing, in s on the wire; then it is given up. A load that
        /// advances is never given up, however long it takes; while its files come from another worker, the limits
        /// of the copy apply. Default 30 s: a disk that has to wake up, or a network that has to find another way.
        load_stall_timeout: Duration = "load_stall_timeout_s", required(Seconds { min: 1 }, 30_u64);

        /// How fast a load is at least while it counts as advancing, in bytes/s over `load_stall_timeout`.
        /// Default 1 MiB/s: what is slower is broken rather than slow.
        load_bytes_per_s_min: u64 = "load_bytes_per_s_min",
            required(Bytes { min: 1 << 10, max: BYTES_MAX }, "1MiB");
    } with {
        /// `[worker.cpu]`.
        cpu: WorkerCpu;
        /// `[worker.simulated]`.
        simulated: WorkerSimulated;
        /// `[worker.weights]`.
        weights: WorkerWeights;
        /// `[worker.hub]`.
        hub: WorkerHub;
        /// `[worker.http]`.
        http: WorkerHttp;
    }
}

section! {
    /// `[worker.hub]`: models that are named `hf:org/name@revision`. `flotilla models add` reads them too.
    pub struct WorkerHub at "worker.hub" {
        /// Where the hub answers. Default `https://huggingface.co`; a mirror inside one's own network is another.
        endpoint: String = "endpoint", required(WebAddress, "https://huggingface.co");

        /// What lets us read repositories that are private or gated. Never shown. Unset: the variable `HF_TOKEN`,
        /// which other tools of the hub read as well, else none.
        token: Option<Secret> = "token", optional(Hidden);

        /// Repositories that the worker may download, separated by commas on the wire; `*` stands for any
        /// characters. Unset: none, as whoever writes the catalog should not choose alone what a worker takes from
        /// the internet. Copies from other workers need no permission.
        allow: Option<Vec<RepoPattern>> = "allow", optional(RepoPatterns);

        /// How long the hub may send nothing before it is asked again, in s on the wire. Default 30 s: a busy hub
        /// answers late. A download that advances is never given up, however long it takes.
        stall_timeout: Duration = "stall_timeout_s", required(Seconds { min: 1 }, 30_u64);
    }
}

section! {
    /// `[worker.weights]`: weights that come from other workers and go to them.
    pub struct WorkerWeights at "worker.weights" {
        /// Whether they do. Default true; without it a model's folder must be on every machine.
        share: bool = "share", required(Switch, true);

        /// Disk for models that came from elsewhere, under `data_dir`, in bytes; the longest unused ones make room.
        /// Default 100 GiB: some models of a usual size.
        store_max_bytes: u64 = "store_max_bytes", required(Bytes { min: 1 << 20, max: BYTES_MAX }, "100GiB");

        /// Weights that leave this worker while it runs requests, in bytes/s; idle, as many leave as the network
        /// takes. Default 256 MiB/s: a fifth of 10 Gbit/s, and little of one core.
        send_bytes_per_s_max: u64 = "send_bytes_per_s_max",
            required(Bytes { min: 1 << 20, max: BYTES_MAX }, "256MiB");

        /// Bytes of one copy that are in the relay at once; a quarter of the relay at most. Default 256 MiB, which
        /// hides any round trip.
        window_bytes: u64 = "window_bytes", required(Bytes { min: 8 << 20, max: BYTES_MAX }, "256MiB");

        /// Models that are sent at once. Default 2: more make each of them slower.
        sends_max: usize = "sends_max", required(Whole { min: 1, max: 64_usize }, 2_u64);
    }
}

section! {
    /// `[worker.cpu]`: the CPU as a device, or as several.
    pub struct WorkerCpu at "worker.cpu" {
        /// Whether the CPU serves models. Default true, so that a machine without a GPU works.
        enabled: bool = "enabled", required(Switch, true);

        /// Devices that the CPU is split into, 1 to 8, each with an equal share of memory and threads: models
        /// on different ones run at the same time, and one that is larger than each is split over several.
        /// Default 1: what runs alone has all threads.
        devices: usize = "devices", required(Whole { min: 1, max: 8_usize }, 1_u64);

        /// Memory of all its devices, in bytes. Unset: `memory_fraction` of the machine's.
        memory_bytes: Option<u64> = "memory_bytes",
            optional(Bytes { min: 2 << 20, max: BYTES_MAX });

        /// Part of the machine's memory that its devices take when `memory_bytes` is unset, above 0
        /// and at most 1. Default 0.5: leaves room for the system's file cache.
        memory_fraction: f64 = "memory_fraction", required(Fraction, 0.5_f64);

        /// Threads that compute, 1 to 1024 and one for each device at least. Unset: the cores that the system
        /// offers this process.
        threads: Option<usize> = "threads", optional(Whole { min: 1, max: 1_024_usize });
    }
}

section! {
    /// `[worker.simulated]`: the device of a worker whose engine is simulated.
    pub struct WorkerSimulated at "worker.simulated" {
        /// Files with the device's profiles, separated by commas on the wire: `FILE` is for every model,
        /// `MODEL=FILE` for one. All are of one device kind. Unset: none; a simulated engine needs one.
        profile: Option<Vec<ProfileFile>> = "profile", optional(ProfileFiles);

        /// Workers in this process, each with a device of its own. Default 1; from 2 on worker n is called
        /// `<id>-<n>`, from 000.
        count: usize = "count", required(Whole { min: 1, max: 1_000_usize }, 1_u64);

        /// Memory of each device, in bytes. Default 80 GiB, that of a large accelerator.
        memory_bytes: u64 = "memory_bytes", required(Bytes { min: 2 << 20, max: BYTES_MAX }, "80GiB");

        /// What the tokens of all answers follow from, beside each request's own seed. Default 0; workers of
        /// one fleet must have the same, or answers that go on elsewhere are others.
        seed: u64 = "seed", required(Whole { min: 0, max: BYTES_MAX }, 0_u64);

        /// Mean length of an answer, in tokens: a model ends its answer after a number of tokens that is
        /// drawn from the request's seed, exponentially distributed. Unset: every answer has as many as its
        /// request allows.
        answer_tokens_mean: Option<u32> = "answer_tokens_mean", optional(Whole { min: 1, max: 1_000_000_u32 });
    }
}

section! {
    /// `[log]`: what a process writes to standard error.
    pub struct Log at "log" {
        /// The least urgent events written. Default info.
        level: LogLevel = "level", required(Choice(&[
            ("error", LogLevel::Error),
            ("warn", LogLevel::Warn),
            ("info", LogLevel::Info),
            ("debug", LogLevel::Debug),
            ("trace", LogLevel::Trace),
        ]), "info");

        /// How a line is written. Default text, for people.
        format: LogFormat = "format",
            required(Choice(&[("text", LogFormat::Text), ("json", LogFormat::Json)]), "text");
    }
}
