//! What each user of `deploy/nats/users.conf` may do, tried with a real server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use async_nats::{Client, ConnectOptions, Event, ServerError};
use flotilla_client::{Answer, Events, NewRequest, new_request_id, new_request_id_of, submit};
use flotilla_protocol::{Class, Encoding, RequestId};
use flotilla_tests::{
    Fleet, ModelFolderBuilder, NatsServer, PATIENCE, Question, ServerOptions, connect_as, deployed_nats_file,
    eventually, flotilla_binary, settings_of_user,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::weights::{MODEL, folder_of, give, wait_until_offered};

/// Somebody with a user's password and a client of their own.
struct Intruder {
    client: Client,
    refusals: mpsc::Receiver<String>,
}

impl Intruder {
    async fn connect(server: &NatsServer, user: &str) -> Result<Self> {
        let (told, refusals) = mpsc::channel(64);
        let options = ConnectOptions::new()
            .user_and_password(user.to_owned(), user.to_owned())
            .custom_inbox_prefix(format!("_INBOX_{user}"))
            .event_callback(move |event| {
                let told = told.clone();
                async move {
                    if let Event::ServerError(ServerError::Other(text)) = event {
                        // The test is over when nobody hears it.
                        drop(told.send(text).await);
                    }
                }
            });
        let client = options.connect(server.url()).await?;
        Ok(Self { client, refusals })
    }

    /// Publishes, and expects to be refused.
    async fn cannot_publish(&mut self, subject: &str) -> Result<()> {
        self.client.publish(subject.to_owned(), "{}".into()).await?;
        self.is_refused("publish", subject).await
    }

    /// Subscribes, and expects to be refused.
    async fn cannot_subscribe(&mut self, subject: &str) -> Result<()> {
        let _subscription = self.client.subscribe(subject.to_owned()).await?;
        self.is_refused("subscription", subject).await
    }

    async fn is_refused(&mut self, what: &str, subject: &str) -> Result<()> {
        // Answers come in the order of the questions: who is not refused until the next one is refused never will be.
        self.client.publish(FORBIDDEN, "".into()).await?;
        let refusal = timeout(PATIENCE, self.refusals.recv()).await;
        let refusal = refusal.context("no refusal")?.context("the client is gone")?;
        assert!(
            refusal.to_lowercase().contains(what) && refusal.contains(&format!("\"{subject}\"")),
            "{what} of {subject} was allowed: the next refusal is {refusal}"
        );
        let last = timeout(PATIENCE, self.refusals.recv()).await;
        let last = last.context("no refusal")?.context("the client is gone")?;
        assert!(last.contains(FORBIDDEN), "{last}");
        Ok(())
    }
}

fn flotilla_as(user: &str, fleet: &Fleet, command: &[&str]) -> Result<Output> {
    let mut program = Command::new(flotilla_binary());
    program.args(fleet.arguments(command));
    for setting in settings_of_user(user) {
        program.args(["--set", &setting]);
    }
    if user == "client" {
        program.args(["--set", "nats.owner=client"]);
    }
    Ok(program
        .current_dir(fleet.folder())
        .stdin(Stdio::null())
        .output()?)
}

fn assert_nobody_was_refused(fleet: &Fleet) {
    let log = fleet.cluster.servers[0].log();
    let refusals: Vec<&str> = log.lines().filter(|line| line.contains("Violation")).collect();
    assert!(refusals.is_empty(), "{}", refusals.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_role_can_do_its_work_with_the_rights_of_its_user() -> Result<()> {
    let mut fleet = Fleet::builder().with_users().dispatchers(2).start().await?;
    let answered = flotilla_as("client", &fleet, &["run", "adder", "123+456="])?;
    assert_eq!(String::from_utf8_lossy(&answered.stdout), "579\n", "{answered:?}");
    for command in [
        ["ps"].as_slice(),
        &["models", "list"],
        &["dead", "list"],
        &["doctor"],
        &["queue"],
    ] {
        let output = flotilla_as("operator", &fleet, command)?;
        assert!(output.status.success(), "{command:?}: {output:?}");
    }
    // The next leader takes over with the same rights, and the worker comes back with its own.
    let leader = fleet
        .dispatchers
        .iter()
        .position(|it| it.log().contains(" leads "));
    fleet.dispatchers[leader.context("a leader")?].kill()?;
    fleet.workers[0].kill()?;
    fleet.restart_worker(0)?;
    let answer = fleet.ask(&Question::prompt("sorter", "sort 52914=")).await?;
    assert_eq!(answer.text, "12459");
    assert_nobody_was_refused(&fleet);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_travel_with_the_rights_of_workers() -> Result<()> {
    let empty = tempfile::tempdir()?;
    let fleet = Fleet::builder()
        .with_users()
        .workers(2)
        .models_dir(empty.path())
        .set("nats.relay_max_bytes=256MiB")
        .start()
        .await?;
    give(&fleet, &ModelFolderBuilder::default(), &["w0"]).await?;
    wait_until_offered(&fleet, 1).await?;
    assert!(!folder_of(&fleet, "w1").exists());
    let question = Question::new(
        MODEL,
        json!({"prompt": "w7 w9", "max_tokens": 4, "deadline_ms": 60_000}),
    );
    let worker = "w1".parse()?;
    let answer = flotilla_tests::ask_worker(&fleet.connection, &question, &worker).await?;
    assert!(answer.end.is_ok(), "{answer:?}");
    wait_until_offered(&fleet, 2).await?;
    assert_nobody_was_refused(&fleet);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_that_was_away_reads_its_journal_through_the_dispatcher_and_no_other() -> Result<()> {
    let fleet = Fleet::builder().with_users().start().await?;
    let settings = [
        settings_of_user("client").as_slice(),
        &["nats.owner=client".to_owned()],
    ]
    .concat();
    let client = connect_as(&fleet.cluster.url(), settings).await?;
    let request = new_request_id_of(&client);
    assert!(request.as_str().starts_with("client."), "{request}");
    let new = |request: &RequestId| -> Result<NewRequest> {
        Ok(NewRequest {
            request: request.clone(),
            class: Class::Interactive,
            model: "adder".parse()?,
            encoding: Encoding::Json,
            body: json!({"prompt": "7+8="}).to_string().into(),
        })
    };
    submit(&client, new(&request)?).await?;
    let foreign = new_request_id();
    let mut seen = Events::subscribe(&fleet.connection, foreign.clone()).await?;
    submit(&fleet.connection, new(&foreign)?).await?;
    Answer::collect(&mut seen).await?;
    // It listens from now on alone: what was before comes from the journal.
    let mut events = Events::from_start(&client, request.clone()).await?;
    let answer = timeout(PATIENCE, Answer::collect(&mut events)).await??;
    assert_eq!(answer.text, "15");
    assert_nobody_was_refused(&fleet);
    let mut intruder = Intruder::connect(&fleet.cluster.servers[0], "client").await?;
    intruder
        .cannot_publish(&format!("flotilla.replay.{foreign}"))
        .await?;
    intruder
        .cannot_subscribe(&format!("flotilla.events.{foreign}"))
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_reaches_nothing_but_its_own() -> Result<()> {
    let fleet = Fleet::builder().with_users().start().await?;
    let mut client = Intruder::connect(&fleet.cluster.servers[0], "client").await?;
    for subject in [
        "flotilla.worker.w0.assign",
        "flotilla.worker.w0.control",
        "flotilla.report.w0",
        "flotilla.done",
        "flotilla.admin.cancel",
        "flotilla.journal.client.mine",
        "flotilla.events.client.mine",
        "flotilla.admin.drain",
        "flotilla.replay.other.theirs",
        "flotilla.standing.other.theirs",
        "$KV.flotilla_models.adder",
        "$KV.flotilla_lease.leader",
        "$O.flotilla_relay.C.x",
        "$JS.API.INFO",
        "$JS.API.STREAM.DELETE.FLOTILLA_REQUESTS",
        "$JS.API.STREAM.PURGE.FLOTILLA_JOURNAL",
        "$JS.API.STREAM.INFO.FLOTILLA_JOURNAL",
        "$JS.API.DIRECT.GET.FLOTILLA_JOURNAL",
        "$JS.API.CONSUMER.CREATE.FLOTILLA_JOURNAL.spy",
        "$JS.API.CONSUMER.MSG.NEXT.FLOTILLA_REQUESTS.interactive",
        "$JS.ACK.FLOTILLA_REQUESTS.interactive.1.1.1.1.1",
        "$SRV.PING",
        "_INBOX_dispatcher.x",
    ] {
        client.cannot_publish(subject).await?;
    }
    for subject in [
        ">",
        "flotilla.>",
        "flotilla.events.>",
        "flotilla.events.*",
        "flotilla.events.*.*",
        "flotilla.events.other.*",
        "flotilla.journal.>",
        "flotilla.request.>",
        "flotilla.infer.*",
        "flotilla.worker.w0.assign",
        "flotilla.report.*",
        "_INBOX.>",
        "_INBOX_worker.>",
        "$JS.EVENT.>",
        "$KV.>",
    ] {
        client.cannot_subscribe(subject).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_cannot_read_requests_or_touch_streams() -> Result<()> {
    let fleet = Fleet::builder().with_users().start().await?;
    let mut worker = Intruder::connect(&fleet.cluster.servers[0], "worker").await?;
    for subject in [
        "flotilla.request.interactive.adder",
        "flotilla.worker.w0.assign",
        "flotilla.worker.w0.control",
        "flotilla.admin.cancel",
        "$KV.flotilla_lease.leader",
        "$KV.flotilla_profiles.x",
        "$JS.API.STREAM.MSG.GET.FLOTILLA_REQUESTS",
        "$JS.API.DIRECT.GET.FLOTILLA_REQUESTS",
        "$JS.API.DIRECT.GET.FLOTILLA_DEAD",
        "$JS.API.CONSUMER.CREATE.FLOTILLA_REQUESTS.spy",
        "$JS.API.CONSUMER.MSG.NEXT.FLOTILLA_REQUESTS.interactive",
        "$JS.API.STREAM.DELETE.FLOTILLA_JOURNAL",
        "$JS.API.STREAM.PURGE.FLOTILLA_JOURNAL",
        "$JS.API.STREAM.UPDATE.FLOTILLA_REQUESTS",
        "$JS.ACK.FLOTILLA_REQUESTS.interactive.1.1.1.1.1",
    ] {
        worker.cannot_publish(subject).await?;
    }
    for subject in [
        "flotilla.request.>",
        "flotilla.infer.*",
        "flotilla.done",
        "flotilla.events.>",
        "_INBOX_client.>",
    ] {
        worker.cannot_subscribe(subject).await?;
    }
    Ok(())
}

/// The server lets whoever asks name any subject for the answer, and the answer is published with the rights of whoever
/// gives it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_made_to_do_what_the_asker_may_not() -> Result<()> {
    let fleet = Fleet::builder().with_users().start().await?;
    let client = Intruder::connect(&fleet.cluster.servers[0], "client")
        .await?
        .client;
    let stream = fleet.connection.subjects.dead_stream();
    let body = json!({"prompt": "1+1=", "max_tokens": 4}).to_string();
    for reply in [
        format!("$JS.API.STREAM.DELETE.{stream}"),
        format!("$JS.API.STREAM.PURGE.{stream}"),
        "flotilla.worker.w0.cancel".to_owned(),
    ] {
        client
            .publish_with_reply("flotilla.infer.adder", reply.clone(), body.clone().into())
            .await?;
        client
            .publish_with_reply("flotilla.request.interactive.adder", reply, body.clone().into())
            .await?;
    }
    client.flush().await?;
    let dispatcher = &fleet.dispatchers[0];
    eventually("all questions were looked at", async || {
        let log = dispatcher.log();
        (log.matches("would not go to an inbox").count() == 3).then_some(())
    })
    .await;
    // What was published after them is answered after them.
    fleet.ask(&Question::prompt("adder", "1+1=")).await?;
    fleet.connection.jetstream.get_stream(&stream).await?;
    Ok(())
}

/// Files of certificates as `deploy/nats/tls.conf` wants them, and those of a client.
fn write_certificates(folder: &Path) -> Result<()> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    fs::write(folder.join("ca.pem"), authority.pem())?;
    for name in ["server", "client"] {
        let key = KeyPair::generate()?;
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate = CertificateParams::new(names)?.signed_by(&key, &authority)?;
        fs::write(folder.join(format!("{name}.pem")), certificate.pem())?;
        fs::write(folder.join(format!("{name}-key.pem")), key.serialize_pem())?;
    }
    Ok(())
}

/// The deployed files, with certificates of the test's own.
fn with_tls(folder: &Path) -> Result<PathBuf> {
    for name in ["nats.conf", "users.conf", "tls.conf"] {
        let text = fs::read_to_string(deployed_nats_file(name))?;
        let text = text.replace("/etc/nats/certs", &folder.display().to_string());
        fs::write(folder.join(name), text)?;
    }
    Ok(folder.join("tls.conf"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_trust_on_both_sides_nothing_connects() -> Result<()> {
    let folder = tempfile::tempdir()?;
    write_certificates(folder.path())?;
    let server = NatsServer::start(&ServerOptions {
        file: Some(with_tls(folder.path())?),
        ..ServerOptions::default()
    })?;
    let file = |name: &str| folder.path().join(name).display().to_string();
    let authority = format!("nats.tls.ca_file={}", file("ca.pem"));
    let own = [
        format!("nats.tls.cert_file={}", file("client.pem")),
        format!("nats.tls.key_file={}", file("client-key.pem")),
    ];
    let connect = async |trust: &[String]| {
        let settings = [settings_of_user("operator").as_slice(), trust].concat();
        let url = server.url().replace("nats://", "tls://");
        timeout(Duration::from_secs(20), connect_as(&url, settings)).await
    };
    connect(&[[authority.clone()].as_slice(), &own].concat()).await??;
    let refused = |ended: std::result::Result<Result<_>, _>| matches!(ended, Ok(Err(_)));
    assert!(
        refused(connect(std::slice::from_ref(&authority)).await),
        "no certificate of its own"
    );
    assert!(
        refused(connect(&own).await),
        "the server's certificate is not trusted"
    );
    let foreign = tempfile::tempdir()?;
    write_certificates(foreign.path())?;
    let foreign = |name: &str| foreign.path().join(name).display().to_string();
    let stranger = [
        authority,
        format!("nats.tls.cert_file={}", foreign("client.pem")),
        format!("nats.tls.key_file={}", foreign("client-key.pem")),
    ];
    assert!(refused(connect(&stranger).await), "signed by another authority");
    Ok(())
}

/// Nobody may publish there.
const FORBIDDEN: &str = "nobody.may.publish.here";
