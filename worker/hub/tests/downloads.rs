//! Downloads from a hub that behaves, and from one that does not.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::fs;
use std::path::Path;

use flotilla_config::{Config, LoadOptions, WorkerHub};
use flotilla_hub::{Hub, HubError, Repository};
use flotilla_protocol::hub::HubModel;
use flotilla_tests::{HubOptions, HubServer, ModelFolderBuilder};
use flotilla_weights::FetchProgress;
use tempfile::TempDir;

const WEIGHTS: &str = "model.safetensors";

struct Bench {
    origin: TempDir,
    server: HubServer,
    hub: Hub,
    into: TempDir,
}

impl Bench {
    async fn start(options: HubOptions) -> Self {
        Self::start_with(options, &[]).await
    }

    async fn start_with(options: HubOptions, settings: &[&str]) -> Self {
        let origin = tempfile::tempdir().unwrap();
        let model = ModelFolderBuilder {
            hidden: 256,
            ..ModelFolderBuilder::default()
        };
        model.write(origin.path()).unwrap();
        assert!(fs::metadata(origin.path().join(WEIGHTS)).unwrap().len() > 256 << 10);
        let server = HubServer::start(origin.path(), options).await.unwrap();
        Self {
            hub: Hub::new(&configured(&server.url(), settings)).unwrap(),
            origin,
            server,
            into: tempfile::tempdir().unwrap(),
        }
    }

    async fn repository(&self) -> Result<Repository, HubError> {
        self.hub.repository(&model("hf:org/name")).await
    }

    async fn download(&self) -> Result<FetchProgress, HubError> {
        let (repository, progress) = (self.repository().await?, FetchProgress::default());
        self.hub
            .download(&repository, self.into.path(), &progress)
            .await?;
        Ok(progress)
    }

    fn assert_same_files(&self) {
        for file in fs::read_dir(self.origin.path()).unwrap() {
            let file = file.unwrap();
            let copy = self.into.path().join(file.file_name());
            assert!(
                fs::read(file.path()).unwrap() == fs::read(copy).unwrap(),
                "{file:?}"
            );
        }
        assert!(!self.into.path().join("README.md").exists(), "no load reads it");
    }
}

fn configured(url: &str, settings: &[&str]) -> WorkerHub {
    let mut flags = vec![format!("worker.hub.endpoint={url}")];
    flags.extend(settings.iter().map(|setting| format!("worker.hub.{setting}")));
    let options = LoadOptions {
        flags,
        ..LoadOptions::default()
    };
    Config::load(&options).unwrap().worker.hub
}

fn model(name: &str) -> HubModel {
    name.parse().unwrap()
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

#[tokio::test]
async fn files_that_loading_reads_come_once_and_are_the_same() {
    let bench = Bench::start(HubOptions::default()).await;
    let progress = bench.download().await.unwrap();
    bench.assert_same_files();
    assert_eq!(Some(progress.bytes()), progress.bytes_total());
    assert_eq!(progress.percent(), Some(100));
    assert_eq!(bench.server.requests_of("README.md"), []);
    bench.download().await.unwrap();
    assert_eq!(bench.server.requests_of(WEIGHTS).len(), 1, "it was there");
}

#[tokio::test]
async fn connection_that_breaks_in_the_middle_is_gone_on_with_where_it_broke() {
    let bench = Bench::start(HubOptions {
        cut_after: Some(100_000),
        ..HubOptions::default()
    })
    .await;
    let progress = bench.download().await.unwrap();
    bench.assert_same_files();
    let froms: Vec<usize> = bench
        .server
        .requests_of(WEIGHTS)
        .iter()
        .map(|request| request.from)
        .collect();
    assert_eq!(froms, [0, 100_000]);
    assert_eq!(Some(progress.bytes()), progress.bytes_total());
}

#[tokio::test]
async fn download_that_is_dropped_is_gone_on_with_by_the_next_one() {
    let bench = Bench::start(HubOptions {
        hold_after: Some(100_000),
        ..HubOptions::default()
    })
    .await;
    let (repository, progress) = (bench.repository().await.unwrap(), FetchProgress::default());
    let part = bench.into.path().join("model.safetensors.part");
    tokio::select! {
        _ = bench.hub.download(&repository, bench.into.path(), &progress) => panic!("the hub holds it"),
        () = async { flotilla_tests::eventually("bytes on disk", async || {
            (part.exists() && size(&part) >= 100_000).then_some(())
        }).await } => {}
    }
    bench.server.release();
    bench.download().await.unwrap();
    bench.assert_same_files();
    let froms: Vec<usize> = bench
        .server
        .requests_of(WEIGHTS)
        .iter()
        .map(|request| request.from)
        .collect();
    assert_eq!(froms, [0, 100_000]);
}

#[tokio::test]
async fn silent_hub_is_asked_again() {
    let bench = Bench::start_with(
        HubOptions {
            hold_after: Some(100_000),
            ..HubOptions::default()
        },
        &["stall_timeout_s=1"],
    )
    .await;
    let released = async {
        flotilla_tests::eventually("a second request", async || {
            (bench.server.requests_of(WEIGHTS).len() >= 2).then_some(())
        })
        .await;
        bench.server.release();
    };
    let (downloaded, ()) = tokio::join!(bench.download(), released);
    downloaded.unwrap();
    bench.assert_same_files();
}

#[tokio::test]
async fn wrong_bytes_are_found_and_come_again() {
    let bench = Bench::start(HubOptions {
        spoils_once: true,
        ..HubOptions::default()
    })
    .await;
    let progress = bench.download().await.unwrap();
    bench.assert_same_files();
    assert_eq!(bench.server.requests_of(WEIGHTS).len(), 2);
    assert_eq!(Some(progress.bytes()), progress.bytes_total());
}

#[tokio::test]
async fn hub_that_has_too_many_requests_is_asked_again() {
    let bench = Bench::start(HubOptions {
        busy: 3,
        ..HubOptions::default()
    })
    .await;
    bench.download().await.unwrap();
    bench.assert_same_files();
    let never = Bench::start(HubOptions {
        busy: 100,
        ..HubOptions::default()
    })
    .await;
    let error = never.repository().await.unwrap_err();
    assert!(matches!(error, HubError::Interrupted { .. }), "{error}");
}

#[tokio::test]
async fn gated_repository_wants_a_token_which_its_storage_never_sees() {
    let options = HubOptions {
        token: Some("sesame".to_owned()),
        ..HubOptions::default()
    };
    let stranger = Bench::start(options.clone()).await;
    let error = stranger.repository().await.unwrap_err().to_string();
    assert!(
        error.contains("worker.hub.token") && error.contains("HF_TOKEN"),
        "{error}"
    );
    let wrong = Bench::start_with(options.clone(), &["token=open"]).await;
    let error = wrong.repository().await.unwrap_err().to_string();
    assert!(
        error.contains("must belong to somebody") && !error.contains("open"),
        "{error}"
    );
    let friend = Bench::start_with(options, &["token=sesame"]).await;
    friend.download().await.unwrap();
    friend.assert_same_files();
    let seen = friend.server.requests();
    assert!(
        seen.iter()
            .all(|request| request.has_token != request.path.starts_with("/cdn/")),
        "{seen:?}"
    );
    assert!(!format!("{:?}", friend.hub).contains("sesame"));
}

#[tokio::test]
async fn what_the_hub_has_not_is_told() {
    let bench = Bench::start(HubOptions::default()).await;
    let told = async |name: &str| bench.hub.repository(&model(name)).await.unwrap_err().to_string();
    let error = told("hf:org/name@v9").await;
    assert!(
        error.contains("hf:org/name@v9") && error.contains("no such revision"),
        "{error}"
    );
    let error = told("hf:org/other").await;
    assert!(error.contains("no such repository"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    fs::write(empty.path().join("config.json"), "{}").unwrap();
    let server = HubServer::start(empty.path(), HubOptions::default())
        .await
        .unwrap();
    let hub = Hub::new(&configured(&server.url(), &[])).unwrap();
    let error = hub
        .repository(&model("hf:org/name"))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("model.safetensors"), "{error}");
}

#[tokio::test]
async fn outline_has_the_lengths_of_all_files_and_the_bytes_of_small_ones() {
    let bench = Bench::start(HubOptions::default()).await;
    let repository = bench.repository().await.unwrap();
    assert_eq!(repository.model.revision.as_str(), HubServer::COMMIT);
    bench.hub.outline(&repository, bench.into.path()).await.unwrap();
    for file in &repository.files {
        let (original, outline) = (
            bench.origin.path().join(&file.path),
            bench.into.path().join(&file.path),
        );
        assert_eq!(size(&original), size(&outline), "{}", file.path);
        if file.path != WEIGHTS {
            assert_eq!(
                fs::read(&original).unwrap(),
                fs::read(&outline).unwrap(),
                "{}",
                file.path
            );
        }
    }
}
