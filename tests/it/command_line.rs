//! The command line against a live fleet, and `flotilla up` from start to Ctrl-C.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result};
use flotilla_tests::{
    Fleet, Process, Question, Signal, demo_models_dir, eventually, flotilla_binary, free_port,
    nats_server_binary,
};
use serde_json::Value;

pub fn flotilla(fleet: &Fleet, command: &[&str]) -> Result<Output> {
    Ok(Command::new(flotilla_binary())
        .args(fleet.arguments(command))
        .current_dir(fleet.folder())
        .stdin(Stdio::null())
        .output()?)
}

pub fn stdout(output: &Output) -> Result<String> {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout.clone())?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_prints_the_answer_and_reads_a_prompt_from_a_pipe() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    assert_eq!(
        stdout(&flotilla(&fleet, &["run", "adder", "123+456="])?)?,
        "579\n"
    );
    let mut piped = Command::new(flotilla_binary())
        .args(fleet.arguments(&["run", "adder"]))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    piped.stdin.take().context("a pipe")?.write_all(b"20+22=")?;
    assert_eq!(stdout(&piped.wait_with_output()?)?, "42\n");
    let json: Value =
        serde_json::from_str(&stdout(&flotilla(&fleet, &["run", "adder", "2+2=", "--json"])?)?)?;
    assert_eq!(json["text"], "4");
    let refused = flotilla(&fleet, &["run", "nobody", "x"])?;
    assert_eq!(refused.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("unknown_model"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_commands_show_the_fleet() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let question = Question::prompt("adder", "1+1=");
    fleet.ask(&question).await?;
    // The worker's next report may be a moment behind the answer.
    eventually("the adder in ps", async || {
        let ps = stdout(&flotilla(&fleet, &["ps"]).ok()?).ok()?;
        (ps.contains("w0") && ps.contains("adder")).then_some(())
    })
    .await;
    let ps: Value = serde_json::from_str(&stdout(&flotilla(&fleet, &["ps", "--json"])?)?)?;
    assert!(ps.to_string().contains("\"w0\""), "{ps}");
    let models = stdout(&flotilla(&fleet, &["models", "list"])?)?;
    assert!(
        ["adder", "sorter", "reverser"]
            .iter()
            .all(|name| models.contains(name)),
        "{models}"
    );
    let journal = stdout(&flotilla(&fleet, &["journal", question.request.as_str()])?)?;
    let kinds: Vec<&str> = ["accepted", "tokens", "finished"]
        .into_iter()
        .filter(|kind| journal.contains(kind))
        .collect();
    assert_eq!(kinds.len(), 3, "{journal}");
    assert!(stdout(&flotilla(&fleet, &["queue", "--json"])?)?.contains("\"queued_total\": 0"));
    stdout(&flotilla(&fleet, &["doctor"])?)?;
    let config = stdout(&flotilla(&fleet, &["config", "show"])?)?;
    assert!(
        config.contains("nats.url") && config.contains(&fleet.cluster.url()),
        "{config}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn model_is_added_served_and_removed() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let folder = demo_models_dir()
        .join("adder")
        .canonicalize()?
        .display()
        .to_string();
    stdout(&flotilla(&fleet, &["models", "add", "org/adder:2", &folder])?)?;
    assert_eq!(
        stdout(&flotilla(&fleet, &["run", "org/adder:2", "2+3="])?)?,
        "5\n"
    );
    let shown = stdout(&flotilla(&fleet, &["models", "show", "org/adder:2"])?)?;
    assert!(
        shown.contains("LlamaForCausalLM") && !shown.contains("int8"),
        "{shown}"
    );
    let twice = flotilla(&fleet, &["models", "add", "org/adder:2", &folder])?;
    assert!(!twice.status.success());
    stdout(&flotilla(&fleet, &["models", "rm", "org/adder:2"])?)?;
    let gone = flotilla(&fleet, &["run", "org/adder:2", "2+3="])?;
    assert_eq!(
        gone.status.code(),
        Some(4),
        "{}",
        String::from_utf8_lossy(&gone.stderr)
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quantised_model_is_added_shown_and_served() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let folder = demo_models_dir()
        .join("adder")
        .canonicalize()?
        .display()
        .to_string();
    let add = |quantize| {
        flotilla(
            &fleet,
            &["models", "add", "small", &folder, "--quantize", quantize],
        )
    };
    let refused = add("int3")?;
    assert_eq!(refused.status.code(), Some(2));
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        told.contains("quantize is \"int3\"; allowed are int8 and int4"),
        "{told}"
    );
    stdout(&add("int4")?)?;
    for command in [&["models", "list"][..], &["models", "show", "small"]] {
        let shown = stdout(&flotilla(&fleet, command)?)?;
        assert!(shown.contains("int4"), "{shown}");
    }
    let strict = ["--min-p", "0.5", "--repetition-penalty", "1"];
    let run = [&["run", "small", "123+456="][..], &strict].concat();
    assert_eq!(stdout(&flotilla(&fleet, &run)?)?, "579\n");
    Ok(())
}

fn children_of(parent: u32) -> Result<Vec<u32>> {
    let output = Command::new("ps")
        .args(["-o", "pid=", "--ppid", &parent.to_string()])
        .output()?;
    let mut found = Vec::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let child: u32 = line.trim().parse()?;
        found.push(child);
        found.extend(children_of(child)?);
    }
    Ok(found)
}

fn is_alive(process: u32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The state follows the name in parentheses; a zombie is dead.
    state
        .rsplit_once(')')
        .is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

/// Starts `flotilla up` in a folder of its own and waits until it answers.
async fn up(folder: &std::path::Path) -> Result<Process> {
    let (server, port) = (
        nats_server_binary().display().to_string(),
        free_port().to_string(),
    );
    let arguments = ["up", "--nats-server", &server, "--port", &port].map(str::to_owned);
    let process = Process::flotilla("up", folder, &arguments)?;
    // Until this file is there, a command in the folder would ask whatever server listens on 4222.
    eventually("the fleet to be up", async || {
        folder.join(".flotilla/up.json").exists().then_some(())
    })
    .await;
    let output = Command::new(flotilla_binary())
        .args(["run", "adder", "123+456="])
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()?;
    assert_eq!(stdout(&output)?, "579\n");
    Ok(process)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn up_answers_and_leaves_no_process_behind() -> Result<()> {
    for how in [Signal::Int, Signal::Term] {
        let folder = tempfile::tempdir()?;
        let mut process = up(folder.path()).await?;
        let children = children_of(process.id())?;
        assert!(
            children.len() >= 3,
            "nats-server, dispatcher and worker: {children:?}"
        );
        process.signal(how)?;
        assert!(process.wait().await?.success(), "{}", process.log());
        eventually("every child to end", async || {
            children.iter().all(|&c| !is_alive(c)).then_some(())
        })
        .await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn up_that_is_killed_takes_its_children_with_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut process = up(folder.path()).await?;
    let children = children_of(process.id())?;
    process.kill()?;
    eventually("every child to end", async || {
        children.iter().all(|&c| !is_alive(c)).then_some(())
    })
    .await;
    Ok(())
}
