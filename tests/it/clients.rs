//! Clients that are not ours: README's program and those of `docs/clients`, run as they are printed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use flotilla_client::{Answer, Connection, Journal};
use flotilla_protocol::admin::{Standing, WhyReply};
use flotilla_protocol::event::FinishReason;
use flotilla_protocol::subject::Subjects;
use flotilla_protocol::{Class, ModelName, Namespace, RequestId, headers};
use flotilla_tests::{Fleet, PATIENCE, Process, Question, eventually};
use serde_json::{Value, json};
use tokio::time::timeout;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(repository().join(path)).with_context(|| path.to_owned())
}

/// `make test` names a Python that has nats-py; without it these tests would have nothing to say.
fn python() -> OsString {
    std::env::var_os("FLOTILLA_TEST_PYTHON").unwrap_or_else(|| "python3".into())
}

/// Runs a program to its end.
fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(said)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_client_gets_right_answers_by_the_public_contract() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let program = repository().join("tests/it/clients.py");
    let said = output(Command::new(python()).arg(program).arg(fleet.cluster.url()))?;
    assert!(said.contains("every answer was right"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn program_of_the_readme_prints_an_answer() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let readme = read("README.md")?;
    let block = readme
        .split("```python\n")
        .nth(1)
        .context("no Python in README.md")?;
    let shown = block.split("```").next().context("its end")?;
    let url = "nats://127.0.0.1:4222";
    ensure!(
        shown.contains(url),
        "README's program connects elsewhere: {shown}"
    );
    let program = fleet.folder().join("readme.py");
    std::fs::write(&program, shown.replace(url, &fleet.cluster.url()))?;
    let said = output(Command::new(python()).arg(program))?;
    let lines: Vec<(&str, Value)> = said
        .lines()
        .map(|line| {
            let (kind, body) = line.split_once(' ').context("an event and its body")?;
            Ok((kind, serde_json::from_str(body)?))
        })
        .collect::<Result<_>>()?;
    let texts = lines.iter().filter(|(kind, _)| *kind == "tokens");
    let text: String = texts.filter_map(|(_, body)| body["text"].as_str()).collect();
    assert_eq!(text, "579", "{said}");
    assert_eq!(lines.last().map(|(kind, _)| *kind), Some("finished"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_program_waits_resumes_cancels_and_infers() -> Result<()> {
    let program = repository().join("docs/clients/client.py");
    does_what_it_shows(&[python(), program.into()]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rust_program_waits_resumes_cancels_and_infers() -> Result<()> {
    does_what_it_shows(&[env!("CARGO_BIN_EXE_client").into()]).await
}

/// `FLOTILLA_TEST_GO_CLIENT` names the program in continuous integration where Go and nats.go are installed
/// (.ci/go-client.sh); elsewhere only its names are compared, below.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_program_waits_resumes_cancels_and_infers() -> Result<()> {
    let Some(program) = std::env::var_os("FLOTILLA_TEST_GO_CLIENT") else {
        println!("skipped: FLOTILLA_TEST_GO_CLIENT names no program");
        return Ok(());
    };
    does_what_it_shows(&[program]).await
}

/// One of the programs of `docs/clients`, which all know the same words.
struct Program<'a> {
    words: &'a [OsString],
    folder: PathBuf,
    url: String,
}

impl Program<'_> {
    fn start(&self, name: &str, words: &[&str]) -> Result<Process> {
        let mut all = self.words.to_vec();
        all.push(self.url.clone().into());
        all.extend(words.iter().map(OsString::from));
        Process::program(name, &self.folder, &all)
    }

    /// What it says, with the code 0.
    async fn run(&self, name: &str, words: &[&str]) -> Result<String> {
        let mut process = self.start(name, words)?;
        let status = process.wait().await?;
        ensure!(status.success(), "{words:?}: {status}\n{}", process.log());
        Ok(process.log())
    }
}

/// Busy, cancelled, cut off from the server while the answer is made, resumed, request-reply.
async fn does_what_it_shows(words: &[OsString]) -> Result<()> {
    let builder = Fleet::builder().proxied();
    let mut fleet = builder.set("nats.requests_max_messages=1").start().await?;
    let own = fleet.connect_directly().await?;
    // Its models stay in the catalog.
    fleet.workers[0].kill()?;
    let filler = Question::prompt("adder", "1+1=");
    let mut filling = fleet.submit(&filler).await?;
    until_queued(&fleet, &filler.request).await;

    let program = Program {
        words,
        folder: fleet.folder().to_owned(),
        url: fleet.proxies["client"].url(),
    };
    let mut asking = program.start("ask", &["ask", "adder", "123+456="])?;
    eventually("a program that is told that the queue is full", async || {
        asking.log().contains("busy").then_some(())
    })
    .await;
    program
        .run("cancel", &["cancel", filler.request.as_str()])
        .await?;
    let cancelled = timeout(PATIENCE, Answer::collect(&mut filling)).await??;
    let end = cancelled.end.expect("cancelled is no failure");
    assert_eq!(end.finish_reason, FinishReason::Cancelled);

    let log = asking.log();
    let named = log.lines().find_map(|line| line.strip_prefix("request "));
    let request = RequestId::new(named.context("it names its request")?)?;
    until_queued(&fleet, &request).await;
    fleet.proxies["client"].cut();
    fleet.add_worker()?;
    let accepted = until_ended(&own, &request).await;
    fleet.proxies["client"].heal();
    let status = asking.wait().await?;
    ensure!(status.success(), "{status}\n{}", asking.log());
    assert_eq!(
        events_of(&asking.log())?,
        ("accepted tokens finished".into(), "579".into())
    );

    let after = accepted.to_string();
    let resumed = program
        .run("follow", &["follow", request.as_str(), &after])
        .await?;
    assert_eq!(events_of(&resumed)?, ("tokens finished".into(), "579".into()));
    fleet.wait_for_an_empty_queue().await;
    let inferred = program.run("infer", &["infer", "adder", "2+2="]).await?;
    assert_eq!(inferred.trim(), "4");
    Ok(())
}

async fn until_queued(fleet: &Fleet, request: &RequestId) {
    eventually("a queued request", async || {
        let reply = fleet.admin("why", &json!({ "request": request })).await.ok()?;
        let why: WhyReply = serde_json::from_slice(&reply.payload).ok()?;
        matches!(why.found?.standing, Standing::Queued { .. }).then_some(())
    })
    .await;
}

/// Waits until the journal has an end, and tells the sequence of its first entry.
async fn until_ended(connection: &Connection, request: &RequestId) -> u64 {
    eventually("an answer", async || {
        let content = Journal::new(connection).read_all(request).await.ok()?;
        let first = content.entries.first()?.sequence;
        content.has_end().then_some(first)
    })
    .await
}

/// The kinds of stored events in what a program has said, each once in a row, and the text of the answer.
fn events_of(said: &str) -> Result<(String, String)> {
    let (mut kinds, mut text, mut newest) = (Vec::new(), String::new(), 0);
    for line in said.lines() {
        let mut words = line.splitn(3, ' ');
        let Some(Ok(sequence)) = words.next().map(str::parse::<u64>) else {
            continue;
        };
        let (kind, body) = (words.next().context("a kind")?, words.next().context("a body")?);
        let body: Value = serde_json::from_str(body)?;
        if sequence > 0 {
            ensure!(sequence > newest, "{said}");
            newest = sequence;
            kinds.push(kind);
        }
        if kind == "tokens" {
            text.push_str(body["text"].as_str().context("a text")?);
        }
    }
    kinds.dedup();
    Ok((kinds.join(" "), text))
}

/// What cannot be run everywhere, as the commands for `nats`, has the protocol's names at least.
#[test]
fn names_in_the_documents_of_clients_are_those_of_the_protocol() -> Result<()> {
    let subjects = Subjects::new(Namespace::new("flotilla")?);
    let (request, model) = (RequestId::from_random(1), ModelName::new("m")?);
    let of_request = |subject: String| subject.trim_end_matches(request.as_str()).to_owned();
    let of_model = |subject: String| subject.trim_end_matches('m').to_owned();
    let known_subjects = [
        of_request(subjects.events(&request)),
        of_request(subjects.replay(&request)),
        of_model(subjects.request(Class::Interactive, &model)),
        of_model(subjects.infer(&model)),
        subjects.cancel(),
    ];
    let known_headers = [headers::EVENT, headers::ATTEMPT, headers::WORKER];
    for file in ["README.md", "client.py", "client.rs", "client.go"] {
        let text = read(&format!("docs/clients/{file}"))?;
        for subject in &known_subjects {
            assert!(text.contains(subject.as_str()), "{file} does without {subject}");
        }
        for found in words_that_begin_with(&text, "flotilla.") {
            let is_known = |known: &String| known.starts_with(found) || found.starts_with(known.as_str());
            assert!(
                known_subjects.iter().any(is_known),
                "{file} names {found}, which is no subject"
            );
        }
        let names_events = text.contains(headers::EVENT);
        assert!(names_events, "{file} does without {}", headers::EVENT);
        for found in words_that_begin_with(&text, "Flotilla-") {
            assert!(
                known_headers.contains(&found),
                "{file} names {found}, which is no header"
            );
        }
    }
    Ok(())
}

fn words_that_begin_with<'a>(text: &'a str, start: &'a str) -> impl Iterator<Item = &'a str> {
    text.match_indices(start).map(|(at, _)| {
        let rest = &text[at..];
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        rest[..end].trim_end_matches('.')
    })
}
