//! Starts that cannot work: each part says what is wrong and what to do, and ends with the right code.

use std::net::TcpListener;

use anyhow::{Context, Result};
use flotilla_tests::{NatsServer, Process, ServerOptions, free_port, nats_server_binary};

async fn run(folder: &std::path::Path, arguments: &[&str]) -> Result<(i32, String)> {
    let arguments: Vec<String> = arguments.iter().map(|&word| word.to_owned()).collect();
    let mut process = Process::flotilla("start", folder, &arguments)?;
    let status = process.wait().await?;
    Ok((status.code().context("it ended by itself")?, process.log()))
}

#[tokio::test]
async fn unreachable_server_is_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let url = format!("nats://127.0.0.1:{}", free_port());
    for role in ["dispatcher", "worker"] {
        let (code, log) = run(folder.path(), &[role, "--nats", &url]).await?;
        assert_eq!(code, 3, "{log}");
        assert!(log.contains(&url), "{log}");
    }
    Ok(())
}

#[tokio::test]
async fn server_without_jetstream_is_refused_with_what_to_do() -> Result<()> {
    let server = NatsServer::start(&ServerOptions {
        jetstream: false,
        ..ServerOptions::default()
    })?;
    let folder = tempfile::tempdir()?;
    let (code, log) = run(folder.path(), &["dispatcher", "--nats", &server.url()]).await?;
    assert_ne!(code, 0);
    assert!(log.contains("JetStream") && log.contains("-js"), "{log}");
    Ok(())
}

#[tokio::test]
async fn taken_port_is_named() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port().to_string();
    let folder = tempfile::tempdir()?;
    let server = nats_server_binary().display().to_string();
    let (code, log) = run(folder.path(), &["up", "--port", &port, "--nats-server", &server]).await?;
    assert_ne!(code, 0);
    assert!(log.contains(&port) && log.contains("in use"), "{log}");
    Ok(())
}

#[tokio::test]
async fn data_folder_that_cannot_be_written_is_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // A file where a folder must be: unwritable for root too.
    std::fs::write(folder.path().join("data"), "")?;
    let server = nats_server_binary().display().to_string();
    let data = folder.path().join("data").display().to_string();
    let setting = format!("worker.data_dir={data}");
    let (code, log) = run(
        folder.path(),
        &["up", "--set", &setting, "--nats-server", &server],
    )
    .await?;
    assert_ne!(code, 0);
    assert!(log.contains(&data), "{log}");
    Ok(())
}

#[tokio::test]
async fn store_that_the_server_cannot_use_is_told_in_the_servers_words() -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::create_dir(folder.path().join(".flotilla"))?;
    std::fs::write(folder.path().join(".flotilla/nats"), "")?;
    let (server, port) = (
        nats_server_binary().display().to_string(),
        free_port().to_string(),
    );
    let (code, log) = run(folder.path(), &["up", "--port", &port, "--nats-server", &server]).await?;
    assert_eq!(code, 1, "{log}");
    assert!(
        log.contains("storage directory is not a directory") && log.contains("nats-server.log"),
        "{log}"
    );
    Ok(())
}

#[tokio::test]
async fn every_fault_of_the_configuration_is_told_at_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("bad.toml");
    std::fs::write(
        &file,
        "[worker]\nslotz = 3\nbatch_tokens_max = -1\n[log]\nlevel = \"loud\"\n",
    )?;
    let (code, log) = run(
        folder.path(),
        &["worker", "--config", &file.display().to_string()],
    )
    .await?;
    assert_eq!(code, 2, "{log}");
    for word in [
        "worker.slotz",
        "slots",
        "worker.batch_tokens_max",
        "log.level",
        "loud",
        "bad.toml",
    ] {
        assert!(log.contains(word), "{word} is missing in {log}");
    }
    Ok(())
}
