//! Streams and buckets on a real server.

use std::time::Duration;

use async_nats::jetstream::stream::{Config as StreamConfig, Republish, RetentionPolicy};
use flotilla_dispatcher::{TopologyError, ensure_topology};
use futures_util::StreamExt;
use tokio::time::timeout;

use crate::server::Server;

#[tokio::test]
async fn topology_is_made_once_and_found_unchanged_afterwards() {
    let server = Server::start();
    let connection = server.connect().await;
    let config = server.config(&[]);
    ensure_topology(&connection, &config).await.unwrap();
    let stream = connection.jetstream.get_stream("FLOTILLA_JOURNAL").await.unwrap();
    let republish = stream.cached_info().config.republish.clone().unwrap();
    assert_eq!(republish.source, "flotilla.journal.>");
    assert_eq!(republish.destination, "flotilla.events.>");
    ensure_topology(&connection, &config).await.unwrap();
    let again = connection.jetstream.get_stream("FLOTILLA_JOURNAL").await.unwrap();
    assert_eq!(again.cached_info().config, stream.cached_info().config);
    for bucket in ["lease", "models", "profiles", "workers", "holders", "claims"] {
        let bucket = format!("flotilla_{bucket}");
        connection.jetstream.get_key_value(&bucket).await.expect(&bucket);
    }
}

/// Until requests had owners, their ids were one token.
#[tokio::test]
async fn journals_of_the_version_before_are_kept_and_take_requests_of_owners() {
    let server = Server::start();
    let connection = server.connect().await;
    let config = server.config(&[]);
    ensure_topology(&connection, &config).await.unwrap();
    let jetstream = &connection.jetstream;
    let stream = jetstream.get_stream("FLOTILLA_JOURNAL").await.unwrap();
    let before = StreamConfig {
        subjects: vec!["flotilla.journal.*".to_owned()],
        republish: Some(Republish {
            source: "flotilla.journal.*".to_owned(),
            destination: "flotilla.events.{{wildcard(1)}}".to_owned(),
            headers_only: false,
        }),
        ..stream.cached_info().config.clone()
    };
    jetstream.update_stream(before).await.unwrap();
    let store = async |id: &str| {
        let sent = jetstream.publish(format!("flotilla.journal.{id}"), "".into());
        sent.await.unwrap().await.map(|ack| ack.sequence)
    };
    assert_eq!(store("old").await.unwrap(), 1);
    ensure_topology(&connection, &config).await.unwrap();
    let mut events = connection
        .client
        .subscribe("flotilla.events.team.new")
        .await
        .unwrap();
    assert_eq!(store("team.new").await.unwrap(), 2);
    let event = timeout(Duration::from_secs(20), events.next())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(event.headers.unwrap().get("Nats-Sequence").unwrap().as_str(), "2");
    let kept = stream
        .direct_get_last_for_subject("flotilla.journal.old")
        .await
        .unwrap();
    assert_eq!(kept.sequence, 1);
}

#[tokio::test]
async fn changed_setting_is_taken_over_and_a_foreign_one_is_kept() {
    let server = Server::start();
    let connection = server.connect().await;
    ensure_topology(&connection, &server.config(&[])).await.unwrap();
    let stream = connection
        .jetstream
        .get_stream("FLOTILLA_REQUESTS")
        .await
        .unwrap();
    let described = StreamConfig {
        description: Some("ours".to_owned()),
        ..stream.cached_info().config.clone()
    };
    connection.jetstream.update_stream(described).await.unwrap();
    let config = server.config(&["nats.requests_max_messages=7"]);
    ensure_topology(&connection, &config).await.unwrap();
    let stream = connection
        .jetstream
        .get_stream("FLOTILLA_REQUESTS")
        .await
        .unwrap();
    let found = &stream.cached_info().config;
    assert_eq!(found.max_messages, 7);
    assert_eq!(found.description.as_deref(), Some("ours"));
}

#[tokio::test]
async fn stream_of_another_retention_is_an_error_that_names_it() {
    let server = Server::start();
    let connection = server.connect().await;
    let foreign = StreamConfig {
        name: "FLOTILLA_REQUESTS".to_owned(),
        subjects: vec!["flotilla.request.*.*".to_owned()],
        retention: RetentionPolicy::Limits,
        ..Default::default()
    };
    connection.jetstream.create_stream(foreign).await.unwrap();
    let error = ensure_topology(&connection, &server.config(&[]))
        .await
        .unwrap_err();
    let TopologyError::Mismatch { object, field, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!((object.as_str(), *field), ("FLOTILLA_REQUESTS", "retention"));
}

#[tokio::test]
async fn more_replicas_than_servers_is_an_error_that_names_the_setting() {
    let server = Server::start();
    let connection = server.connect().await;
    let error = ensure_topology(&connection, &server.config(&["nats.replicas=3"])).await;
    let error = error.unwrap_err();
    assert!(
        matches!(error, TopologyError::Replicas { replicas: 3, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn stream_larger_than_the_disk_is_an_error_that_names_the_limits() {
    let server = Server::start();
    let connection = server.connect().await;
    let error = ensure_topology(&connection, &server.config(&["nats.requests_max_bytes=900TiB"])).await;
    let error = error.unwrap_err();
    assert!(matches!(error, TopologyError::NoRoom { .. }), "{error}");
}
