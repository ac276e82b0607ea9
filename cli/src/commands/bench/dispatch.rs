//! `flotilla bench dispatch`: what the fleet costs on top of bare JetStream.
//!
//! Both paths run on one private server, with the same client, bodies and number of requests under way.
//! Throughput is measured with many at once, latency one at a time. The fleet's path is the real one: real
//! processes, and one token of a model so small that it answers at once.

use std::path::Path;

use anyhow::Context as _;
use bytes::Bytes;
use flotilla_client::{Answer, Connection, Events, NewRequest, new_request_id, submit};
use flotilla_protocol::{Class, Encoding, ModelName};
use serde_json::{Map, Value, json};

use super::jetstream::Peer;
use super::load::{Load, Measured};
use super::{DispatchArguments, Outcome, machine};
use crate::commands::Interrupted;
use crate::context::Context;
use crate::fleet::{self, Fleet, FleetPlan, INSTANT_MODEL, Port};
use crate::output;
use crate::stop::Signals;

/// Measures on a fleet of its own, which is gone afterwards.
///
/// # Errors
/// When the fleet does not start or a request fails.
pub(super) async fn run(
    context: &Context,
    arguments: &DispatchArguments,
) -> anyhow::Result<Outcome<Numbers>> {
    let folder = tempfile::tempdir().context("cannot create a folder for the benchmark")?;
    let plan = plan(context, arguments, folder.path())?;
    fleet::extract(&[INSTANT_MODEL], &plan.models_dir)?;
    let mut signals = Signals::new()?;
    let (mut fleet, client) = tokio::select! {
        started = Fleet::start(&plan, &context.config) => started?,
        () = signals.next() => return Err(Interrupted.into()),
    };
    let measured = tokio::select! {
        measured = measure(context, arguments, &fleet, client) => measured,
        () = signals.next() => Err(Interrupted.into()),
    };
    fleet.stop().await;
    let (ratios, figures) = measured?;
    Ok(Outcome {
        name: "dispatch",
        machine: machine::machine(),
        commit: machine::commit(),
        ratios,
        figures,
    })
}

fn plan(context: &Context, arguments: &DispatchArguments, folder: &Path) -> anyhow::Result<FleetPlan> {
    Ok(FleetPlan {
        nats_server: fleet::find_server(arguments.nats_server.as_deref())?,
        port: Port::Any,
        folder: folder.to_owned(),
        workers: 1,
        models_dir: folder.join("models"),
        arguments: context.child_arguments(),
    })
}

type Numbers = Map<String, Value>;

async fn measure(
    context: &Context,
    arguments: &DispatchArguments,
    fleet: &Fleet,
    client: Connection,
) -> anyhow::Result<(Numbers, Numbers)> {
    let throughput = Load {
        requests: arguments.requests,
        concurrency: arguments.concurrency,
    };
    let latency = Load {
        requests: arguments.latency_requests,
        concurrency: 1,
    };
    let body: Bytes = serde_json::to_vec(&json!({"prompt": "1+1=", "max_tokens": 1}))?.into();

    output::note("bench: bare JetStream");
    let mut nats = context.config.nats.clone();
    nats.url = vec![fleet.url().to_owned()];
    let server = Connection::open(&nats, "flotilla-bench").await?;
    let peer = Peer::start(client.clone(), &server, arguments.concurrency).await?;
    let bare = Pair::measure(throughput, latency, || peer.ask(body.clone())).await?;
    peer.stop().await?;

    output::note("bench: the whole fleet");
    let model = ModelName::new(INSTANT_MODEL.name)?;
    ask(&client, &model, body.clone())
        .await
        .context("the first request, which loads the model")?;
    let whole = Pair::measure(throughput, latency, || ask(&client, &model, body.clone())).await?;
    Ok(numbers(&bare, &whole))
}

/// One request to its terminal event.
async fn ask(client: &Connection, model: &ModelName, body: Bytes) -> anyhow::Result<()> {
    let request = new_request_id();
    let mut events = Events::subscribe(client, request.clone()).await?;
    let new = NewRequest {
        request,
        class: Class::Interactive,
        model: model.clone(),
        encoding: Encoding::Json,
        body,
    };
    submit(client, new).await?;
    let answer = Answer::collect(&mut events).await?;
    answer.end?;
    Ok(())
}

/// Both parts of one path.
struct Pair {
    throughput: Measured,
    latency: Measured,
}

impl Pair {
    async fn measure<F, A>(throughput: Load, latency: Load, ask: F) -> anyhow::Result<Self>
    where
        F: Fn() -> A,
        A: Future<Output = anyhow::Result<()>>,
    {
        Ok(Self {
            latency: latency.run(&ask).await?,
            throughput: throughput.run(&ask).await?,
        })
    }
}

fn numbers(bare: &Pair, whole: &Pair) -> (Numbers, Numbers) {
    let ratio = whole.throughput.throughput() / bare.throughput.throughput();
    let added = |percent| whole.latency.percentile_ms(percent) - bare.latency.percentile_ms(percent);
    let figures = [
        ("requests_per_s", whole.throughput.throughput()),
        ("jetstream_requests_per_s", bare.throughput.throughput()),
        ("added_latency_ms_p50", added(50)),
        ("added_latency_ms_p99", added(99)),
        ("latency_ms_p50", whole.latency.percentile_ms(50)),
        ("latency_ms_p99", whole.latency.percentile_ms(99)),
        ("jetstream_latency_ms_p50", bare.latency.percentile_ms(50)),
        ("jetstream_latency_ms_p99", bare.latency.percentile_ms(99)),
    ];
    let figures = figures.map(|(name, value)| (name.to_owned(), json!(value)));
    let ratios = [("throughput_vs_jetstream".to_owned(), json!(ratio))];
    (ratios.into_iter().collect(), figures.into_iter().collect())
}
