//! Two candidates for one lease on a real server.

use std::time::Duration;

use flotilla_dispatcher::{Candidate, Kept, ensure_topology};
use flotilla_tests::PATIENCE;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::server::Server;

const TTL: Duration = Duration::from_secs(1);

async fn candidates(server: &Server) -> (Candidate, Candidate) {
    let connection = server.connect().await;
    let config = server.config(&["dispatcher.lease_ttl_ms=1000"]);
    ensure_topology(&connection, &config).await.unwrap();
    let open = async |name| Candidate::open(&connection, name, "host", TTL).await.unwrap();
    (open("a").await, open("b").await)
}

#[tokio::test]
async fn lease_that_is_given_back_goes_to_the_other_with_a_larger_epoch() {
    let server = Server::start();
    let (a, b) = candidates(&server).await;
    let first = a.try_take().await.unwrap().unwrap();
    let epoch = first.epoch();
    let stop = CancellationToken::new();
    let keeper = tokio::spawn(first.keep(stop.clone()));
    assert!(b.try_take().await.unwrap().is_none());
    // Longer than the lease lives without renewal.
    assert!(timeout(TTL * 3, b.wait()).await.is_err(), "a renewed lease stays");
    stop.cancel();
    let second = timeout(PATIENCE, b.wait()).await.unwrap();
    assert_eq!(keeper.await.unwrap(), Kept::Released);
    assert!(second.epoch() > epoch);
}

#[tokio::test]
async fn lease_of_a_process_that_died_expires() {
    let server = Server::start();
    let (a, b) = candidates(&server).await;
    let first = a.try_take().await.unwrap().unwrap();
    let second = timeout(PATIENCE, b.wait()).await.unwrap();
    assert!(second.epoch() > first.epoch());
}

#[tokio::test]
async fn holder_whose_lease_was_taken_notices() {
    let server = Server::start();
    let (a, b) = candidates(&server).await;
    let first = a.try_take().await.unwrap().unwrap();
    let connection = server.connect().await;
    let bucket = connection
        .jetstream
        .get_key_value("flotilla_lease")
        .await
        .unwrap();
    bucket.purge("leader").await.unwrap();
    let _second = b.try_take().await.unwrap().unwrap();
    let kept = timeout(PATIENCE, first.keep(CancellationToken::new())).await;
    assert_eq!(kept.unwrap(), Kept::Lost);
}

#[tokio::test]
async fn own_lease_is_taken_again_when_the_answer_to_taking_it_was_lost() {
    let server = Server::start();
    let (a, b) = candidates(&server).await;
    let unheard = a.try_take().await.unwrap().unwrap();
    let again = a.try_take().await.unwrap().unwrap();
    assert!(again.epoch() > unheard.epoch());
    assert!(b.try_take().await.unwrap().is_none());
}
