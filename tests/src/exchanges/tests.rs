//! The proxy between a real client and a real server.

use async_nats::client::RequestErrorKind;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::stream;
use async_nats::{Client, ConnectOptions, Event, Subscriber};
use futures_util::StreamExt;
use tokio::time::timeout;

use super::*;
use crate::{NatsServer, PATIENCE, ServerOptions};

/// Shorter than the patience of who asks, longer than a server takes.
const LATE: Duration = Duration::from_millis(400);
/// How long a client waits for answers that do not come.
const ASK_MAX: Duration = Duration::from_millis(200);

/// A server, a proxy to it, a client behind that and one beside it that answers `double` twice what it is asked.
struct World {
    proxy: Exchanges,
    part: Client,
    beside: Client,
    events: mpsc::UnboundedReceiver<Event>,
    _server: NatsServer,
    _answering: JoinSet<()>,
}

async fn world() -> World {
    let server = NatsServer::start(&ServerOptions::default()).unwrap();
    let proxy = Exchanges::start(server.port()).await.unwrap();
    let (told, events) = mpsc::unbounded_channel();
    let options = ConnectOptions::new()
        .request_timeout(Some(ASK_MAX))
        .event_callback(move |event| {
            let told = told.clone();
            async move { drop(told.send(event)) }
        });
    let part = options.connect(proxy.url()).await.unwrap();
    let beside = async_nats::connect(server.url()).await.unwrap();
    let mut asked = listen(&beside, "double").await;
    let mut answering = JoinSet::new();
    let answerer = beside.clone();
    answering.spawn(async move {
        while let Some(message) = asked.next().await {
            let answer = [&message.payload[..], &message.payload[..]].concat();
            let reply = message.reply.expect("a question wants an answer");
            answerer.publish(reply, answer.into()).await.unwrap();
        }
    });
    World {
        proxy,
        part,
        beside,
        events,
        _server: server,
        _answering: answering,
    }
}

impl World {
    async fn ask(&self) -> Result<Bytes, RequestErrorKind> {
        let answer = self.part.request("double", "x".into()).await;
        answer
            .map(|message| message.payload)
            .map_err(|error| error.kind())
    }

    fn disturb(&self, side: Side, fault: Fault) -> Disturbance {
        self.proxy.disturb(Rule::new("double", side, fault).times(1))
    }
}

/// Listens from now on: a flush alone tells only that the server will hear of it.
async fn listen(client: &Client, subject: &'static str) -> Subscriber {
    let subscriber = client.subscribe(subject).await.unwrap();
    let inbox = client.new_inbox();
    let mut back = client.subscribe(inbox.clone()).await.unwrap();
    client.publish(inbox, "".into()).await.unwrap();
    timeout(PATIENCE, back.next()).await.unwrap().unwrap();
    subscriber
}

async fn next(subscriber: &mut Subscriber) -> String {
    let message = timeout(PATIENCE, subscriber.next()).await.unwrap().unwrap();
    String::from_utf8(message.payload.to_vec()).unwrap()
}

#[tokio::test]
async fn what_is_not_disturbed_passes_with_headers_and_all_bytes() {
    let world = world().await;
    let mut heard = listen(&world.beside, "a.>").await;
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("X", "y");
    let large = Bytes::from(vec![b'\n'; 4 << 20]);
    world
        .part
        .publish_with_headers("a.b", headers, large.clone())
        .await
        .unwrap();
    let message = timeout(PATIENCE, heard.next()).await.unwrap().unwrap();
    assert_eq!(message.payload, large);
    assert_eq!(message.headers.unwrap().get("X").unwrap().as_str(), "y");
    assert_eq!(world.ask().await.unwrap(), "xx");
}

#[tokio::test]
async fn question_that_is_lost_and_answer_that_is_lost_look_alike_to_who_asks() {
    let world = world().await;
    let mut heard = listen(&world.beside, "double").await;
    let question = world.disturb(Side::Question, Fault::Silent);
    assert_eq!(world.ask().await, Err(RequestErrorKind::TimedOut));
    let answer = world.disturb(Side::Answer, Fault::Silent);
    assert_eq!(world.ask().await, Err(RequestErrorKind::TimedOut));
    assert_eq!((question.met(), answer.met()), (1, 1));
    assert_eq!(world.ask().await.unwrap(), "xx");
    // Of three questions the first was not heard.
    world.part.publish("double", "last".into()).await.unwrap();
    for expected in ["x", "x", "last"] {
        assert_eq!(next(&mut heard).await, expected);
    }
}

#[tokio::test]
async fn refused_question_is_answered_in_the_servers_words_and_goes_nowhere() {
    let mut world = world().await;
    let context = async_nats::jetstream::new(world.part.clone());
    let stream = stream::Config {
        name: "S".to_owned(),
        subjects: vec!["s".to_owned()],
        allow_direct: true,
        ..Default::default()
    };
    let stream = context.create_stream(stream).await.unwrap();
    let refuse = |refusal| {
        let rule = Rule::new("s", Side::Question, Fault::Refused(refusal));
        world.proxy.disturb(rule.times(1))
    };
    let full = refuse(Refusal::JetStream(10077, "maximum messages exceeded"));
    let error = context.publish("s", "x".into()).await.unwrap().await.unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::Other);
    let told = std::error::Error::source(&error).unwrap().to_string();
    assert!(told.contains("maximum messages exceeded"), "{told}");
    let nobody = refuse(Refusal::NoResponders);
    let error = context.publish("s", "x".into()).await.unwrap().await.unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::StreamNotFound);
    let stored = context.publish("s", "x".into()).await.unwrap().await.unwrap();
    assert_eq!(stored.sequence, 1);
    assert_eq!((full.met(), nobody.met()), (1, 1));
    // Of an answer the server has done what was asked.
    let answer = Rule::new("s", Side::Answer, Fault::Refused(Refusal::NoResponders));
    let _answer = world.proxy.disturb(answer.times(1));
    context.publish("s", "y".into()).await.unwrap().await.unwrap_err();
    assert_eq!(stream.get_info().await.unwrap().state.messages, 2);
    let direct = Rule::new(
        "$JS.API.DIRECT.GET.S.>",
        Side::Question,
        Fault::Refused(Refusal::Status(408, "Bad Request")),
    );
    let _direct = world.proxy.disturb(direct.times(1));
    stream.direct_get_last_for_subject("s").await.unwrap_err();
    assert_eq!(
        stream.direct_get_last_for_subject("s").await.unwrap().payload,
        "y"
    );
    let _forbidden = world.disturb(Side::Question, Fault::Refused(Refusal::NotAllowed));
    assert_eq!(world.ask().await, Err(RequestErrorKind::TimedOut));
    let told = async {
        loop {
            if let Event::ServerError(error) = world.events.recv().await.unwrap() {
                return error.to_string();
            }
        }
    };
    let told = timeout(PATIENCE, told).await.unwrap();
    assert!(told.to_lowercase().contains("permissions violation"), "{told}");
}

#[tokio::test]
async fn late_message_comes_after_what_was_sent_behind_it_and_a_double_one_twice() {
    let world = world().await;
    let mut heard = listen(&world.part, "news").await;
    let fault = Fault::Late(LATE);
    let late = Rule::new("news", Side::Delivery, fault)
        .containing("late")
        .times(1);
    let twice = Rule::new("news", Side::Delivery, Fault::Twice).containing("twice");
    let (_late, mut twice) = (world.proxy.disturb(late), world.proxy.disturb(twice));
    let sent = Instant::now();
    for news in ["late", "twice", "plain"] {
        world.beside.publish("news", news.into()).await.unwrap();
    }
    for expected in ["twice", "twice", "plain"] {
        assert_eq!(next(&mut heard).await, expected);
    }
    assert_eq!(next(&mut heard).await, "late");
    assert!(sent.elapsed() >= LATE);
    twice.wait_until_met(1).await.unwrap();
}

#[tokio::test]
async fn answer_that_comes_after_its_time_is_nobodys_and_the_next_one_is_right() {
    let world = world().await;
    let _late = world.disturb(Side::Answer, Fault::Late(LATE));
    assert_eq!(world.ask().await, Err(RequestErrorKind::TimedOut));
    let _twice = world.disturb(Side::Answer, Fault::Twice);
    assert_eq!(world.ask().await.unwrap(), "xx");
    assert_eq!(world.ask().await.unwrap(), "xx");
}
