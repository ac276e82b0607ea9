//! The spans of requests, as a collector gets them.

mod collector;

use std::future::ready;

use anyhow::{Context, Result, bail};
use flotilla_client::{Answer, Events, submit_traced};
use flotilla_protocol::event::Event;
use flotilla_protocol::{Attempt, TraceParent};
use flotilla_tests::{Fleet, PATIENCE, Question, Signal, eventually};
use serde_json::json;
use tokio::time::timeout;

use crate::crashes::leader;
use crate::slow::{slow_models, worker_of};
use collector::{Collector, Manner, Taken};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: u64 = 0x00f0_67aa_0ba9_02b7;

/// The spans of a request, by their names.
struct Trace<'a>(Vec<&'a Taken>);

impl<'a> Trace<'a> {
    /// Those of a trace that holds one request.
    fn of(taken: &'a [Taken], question: &Question) -> Option<Self> {
        let is_of_it =
            |it: &&Taken| it.attribute("flotilla.request.id").as_deref() == Some(question.request.as_str());
        let trace = taken.iter().find(is_of_it)?.trace_id();
        Some(Self(taken.iter().filter(|it| it.trace_id() == trace).collect()))
    }

    fn named(&self, name: &str) -> Vec<&'a Taken> {
        let named = self.0.iter().filter(|it| it.span.name == name);
        named.copied().collect()
    }

    fn one(&self, name: &str) -> &'a Taken {
        match self.named(name)[..] {
            [one] => one,
            ref others => panic!("{name}: {others:?}"),
        }
    }

    /// Every span but the first has its parent in the trace, and none is there twice.
    fn assert_is_a_tree_under(&self, root: &Taken) {
        let ids: Vec<&Vec<u8>> = self.0.iter().map(|it| &it.span.span_id).collect();
        for taken in &self.0 {
            let span = &taken.span;
            let same = ids.iter().filter(|id| **id == &span.span_id).count();
            assert_eq!(same, 1, "{span:?} is told {same} times");
            let has_parent = ids.contains(&&span.parent_span_id);
            assert!(has_parent || span.span_id == root.span.span_id, "{span:?}");
            assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{span:?}");
        }
    }
}

/// Whether the span of a request is there, and those of the attempt that ended it.
fn is_whole(taken: &[Taken], question: &Question) -> bool {
    Trace::of(taken, question).is_some_and(|trace| {
        let ended = |it: &&Taken| it.attribute("flotilla.attempt.end").as_deref() == Some("terminal");
        !trace.named("request").is_empty() && trace.0.iter().filter(|it| ended(it)).count() >= 2
    })
}

fn caller(flags: &str) -> Result<TraceParent> {
    TraceParent::parse(&format!("00-{TRACE}-{CALLER:016x}-{flags}")).context("a trace")
}

#[tokio::test]
async fn request_has_a_span_for_each_part_of_its_way_and_nothing_of_what_it_asks() -> Result<()> {
    let collector = Collector::start(Manner::Prompt).await?;
    let fleet = Fleet::builder()
        .set(&collector.setting())
        .set("telemetry.otlp.headers=x-team=a%20b")
        .set("telemetry.otlp.resource_attributes=deployment.environment.name=test")
        .start()
        .await?;
    let question = Question::prompt("adder", "2+2=");
    assert_eq!(fleet.ask(&question).await?.text, "4");
    let taken = collector
        .until("the request's spans", |taken| is_whole(taken, &question))
        .await;
    let trace = Trace::of(&taken, &question).context("a trace")?;
    let (request, attempt) = (trace.one("request"), trace.one("attempt"));
    trace.assert_is_a_tree_under(request);
    assert_eq!(request.span.parent_span_id, Vec::<u8>::new());
    for name in ["admission", "queue", "attempt"] {
        assert_eq!(
            trace.one(name).span.parent_span_id,
            request.span.span_id,
            "{name}"
        );
        assert_eq!(trace.one(name).service().as_deref(), Some("flotilla-dispatcher"));
    }
    let run = trace.one("text_completion adder");
    assert_eq!(run.span.parent_span_id, attempt.span.span_id);
    for name in ["load", "prepare", "prefill", "decode"] {
        assert_eq!(trace.one(name).span.parent_span_id, run.span.span_id, "{name}");
        assert_eq!(trace.one(name).service().as_deref(), Some("flotilla-worker"));
    }
    assert_eq!(
        trace.one("load").attribute("flotilla.load.tier").as_deref(),
        Some("disk")
    );
    for (name, value) in [
        ("gen_ai.request.model", "adder"),
        ("gen_ai.operation.name", "text_completion"),
        ("gen_ai.response.finish_reasons", "stop"),
        ("flotilla.worker.id", "w0"),
        ("flotilla.attempt", "1"),
    ] {
        assert_eq!(run.attribute(name).as_deref(), Some(value), "{name}");
    }
    let tokens = run.attribute("gen_ai.usage.input_tokens").context("tokens")?;
    assert!(tokens.parse::<u32>()? > 0);
    for taken in &trace.0 {
        assert_eq!((taken.error(), taken.team.as_deref()), (None, Some("a b")));
        assert!(!format!("{taken:?}").contains("2+2"), "{taken:?}");
    }
    Ok(())
}

#[tokio::test]
async fn caller_of_a_request_is_its_parent_and_says_whether_there_are_spans() -> Result<()> {
    let collector = Collector::start(Manner::Prompt).await?;
    let fleet = Fleet::builder().set(&collector.setting()).start().await?;
    let untold = Question::prompt("adder", "1+1=");
    let told = Question::prompt("adder", "2+2=");
    let refused = Question::new("adder", json!({"prompt": "2+2=", "max_tokens": -1}));
    for (question, flags) in [(&untold, "00"), (&told, "01"), (&refused, "01")] {
        let mut events = Events::subscribe(&fleet.connection, question.request.clone()).await?;
        submit_traced(&fleet.connection, question.as_new(), Some(&caller(flags)?)).await?;
        timeout(PATIENCE, Answer::collect(&mut events)).await??;
    }
    let taken = collector
        .until("the spans of what is told", |taken| {
            let requests = taken.iter().filter(|it| it.span.name == "request");
            requests.count() == 2 && taken.iter().any(|it| it.span.name == "text_completion adder")
        })
        .await;
    for it in &taken {
        assert_eq!(it.trace_id(), TRACE, "{it:?}");
        let request = it.attribute("flotilla.request.id");
        assert_ne!(request.as_deref(), Some(untold.request.as_str()));
    }
    let request = |question: &Question| {
        let mut requests = taken.iter().filter(|it| it.span.name == "request");
        requests
            .find(|it| it.attribute("flotilla.request.id").as_deref() == Some(question.request.as_str()))
            .context("its span")
    };
    for (question, error) in [(&told, None), (&refused, Some("invalid_request"))] {
        let request = request(question)?;
        assert_eq!(request.span.parent_span_id, CALLER.to_be_bytes());
        assert_eq!(request.error(), error);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_whose_worker_is_killed_has_both_attempts_in_one_trace() -> Result<()> {
    let (collector, models) = (Collector::start(Manner::Prompt).await?, slow_models()?);
    let mut fleet = Fleet::builder()
        .models_dir(models.path())
        .workers(2)
        .set(&collector.setting())
        .set("dispatcher.worker_lost_after_ms=1500")
        .set("worker.report_interval_ms=300")
        .start()
        .await?;
    let question = Question::new("slow", json!({"prompt": "w5 w9", "max_tokens": 400, "seed": 1}));
    let mut events = fleet.submit(&question).await?;
    let killed = loop {
        let delivered = timeout(PATIENCE, events.next()).await??.context("an event")?;
        if let Event::Tokens(_) = delivered.event {
            break worker_of(&fleet, &question, 0).await;
        }
    };
    fleet.workers[killed].kill()?;
    let answer = timeout(PATIENCE, Answer::collect(&mut events)).await??;
    assert_eq!(answer.attempts, Attempt(2), "the kill came in the middle");
    let taken = collector
        .until("the spans of two attempts", |taken| is_whole(taken, &question))
        .await;
    let trace = Trace::of(&taken, &question).context("a trace")?;
    let request = trace.one("request");
    trace.assert_is_a_tree_under(request);
    assert_eq!(request.error(), None, "it has an answer");
    let attempts = trace.named("attempt");
    let told = |attempt: &Taken| {
        let number = attempt.attribute("flotilla.attempt");
        (
            number,
            attempt.attribute("flotilla.worker.id"),
            attempt.error().map(str::to_owned),
        )
    };
    let mut told: Vec<_> = attempts.iter().map(|attempt| told(attempt)).collect();
    told.sort();
    let word = |word: &str| Some(word.to_owned());
    let (lost, other) = (format!("w{killed}"), format!("w{}", 1 - killed));
    assert_eq!(
        told,
        [
            (word("1"), Some(lost), word("worker_lost")),
            (word("2"), Some(other), None)
        ]
    );
    assert_eq!(trace.named("queue").len(), 2, "it waited before each");
    let second = attempts.iter().find(|it| it.error().is_none()).context("it")?;
    assert_eq!(
        trace.one("text_completion slow").span.parent_span_id,
        second.span.span_id
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_whose_leader_is_killed_has_one_span_from_its_publish_on() -> Result<()> {
    let (collector, models) = (Collector::start(Manner::Prompt).await?, slow_models()?);
    let mut fleet = Fleet::builder()
        .models_dir(models.path())
        .dispatchers(2)
        .set(&collector.setting())
        .start()
        .await?;
    let question = Question::new("slow", json!({"prompt": "w5 w9", "max_tokens": 900, "seed": 1}));
    let mut events = fleet.submit(&question).await?;
    worker_of(&fleet, &question, 1).await;
    let leader = leader(&fleet).await;
    fleet.dispatchers[leader].kill()?;
    timeout(PATIENCE, Answer::collect(&mut events)).await??;
    let taken = collector
        .until("the spans of both leaders", |taken| is_whole(taken, &question))
        .await;
    let trace = Trace::of(&taken, &question).context("a trace")?;
    let (request, attempt) = (trace.one("request"), trace.one("attempt"));
    trace.assert_is_a_tree_under(request);
    assert_eq!(
        attempt.attribute("flotilla.attempt.adopted").as_deref(),
        Some("true")
    );
    let run = trace.one("text_completion slow");
    assert_eq!(run.span.parent_span_id, attempt.span.span_id);
    assert!(
        request.span.start_time_unix_nano <= run.span.start_time_unix_nano,
        "it began before its worker had it"
    );
    Ok(())
}

/// Asks until a process has dropped spans. The first export never ends, and what it took from the queue until then is soon
/// followed by more than the queue holds.
async fn assert_drops_spans(fleet: &Fleet, name: &str) -> Result<()> {
    let mut processes = fleet.dispatchers.iter().chain(&fleet.workers);
    let process = processes.find(|it| it.name() == name).context("a process")?;
    for _ in 0..1000 {
        assert_eq!(fleet.ask(&Question::prompt("adder", "2+2=")).await?.text, "4");
        let told = process.scrape().await?;
        if told.sum("flotilla_process_spans_total", &[("outcome", "dropped")]) > Some(0.0) {
            return Ok(());
        }
    }
    bail!("{name} drops nothing")
}

/// Asks all roles to end, and waits until they have.
async fn end_cleanly(fleet: &mut Fleet) -> Result<()> {
    for process in fleet.workers.iter_mut().chain(&mut fleet.dispatchers) {
        process.signal(Signal::Term)?;
        let what = format!("the end of {}", process.name());
        let code = eventually(&what, || ready(process.exit_code().ok().flatten())).await;
        assert_eq!(code, 0, "{what}");
    }
    Ok(())
}

/// Nobody waits for a collector: requests are answered, what is too much is dropped and counted, and processes end.
#[tokio::test]
async fn collector_that_never_answers_costs_spans_and_nothing_else() -> Result<()> {
    let collector = Collector::start(Manner::Silent).await?;
    let mut fleet = Fleet::builder()
        .set(&collector.setting())
        .set("telemetry.otlp.queue_spans_max=4")
        .start()
        .await?;
    for process in ["d0", "w0"] {
        assert_drops_spans(&fleet, process).await?;
    }
    end_cleanly(&mut fleet).await
}

#[tokio::test]
async fn process_that_ends_sends_what_is_left() -> Result<()> {
    let collector = Collector::start(Manner::Prompt).await?;
    let mut fleet = Fleet::builder().set(&collector.setting()).start().await?;
    let question = Question::prompt("adder", "2+2=");
    fleet.ask(&question).await?;
    fleet.wait_for_an_empty_queue().await;
    end_cleanly(&mut fleet).await?;
    assert!(is_whole(&collector.taken(), &question), "{:?}", collector.taken());
    Ok(())
}
