//! Two candidates for one lease on a real server.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flotilla_dispatcher::{Candidate, Kept, ensure_topology};
use flotilla_tests::{Flow, Gate, PATIENCE, Verdict, Way, eventually};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::server::Server;

const TTL: Duration = Duration::from_secs(1);

async fn make_bucket(server: &Server, ttl: Duration) {
    let setting = format!("dispatcher.lease_ttl_ms={}", ttl.as_millis());
    let config = server.config(&[&setting]);
    ensure_topology(&server.connect().await, &config).await.unwrap();
}

async fn candidates(server: &Server) -> (Candidate, Candidate) {
    let connection = server.connect().await;
    make_bucket(server, TTL).await;
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

/// A leader that dies without a word is succeeded when its lease has expired and somebody tries: a standby that tries
/// seldom makes everybody wait. The holder renews every third of the lease's life, the standby tries every quarter.
#[tokio::test]
async fn standby_tries_for_the_lease_more_often_than_its_holder_renews_it() {
    const RENEWALS: u64 = 12;
    let server = Server::start();
    make_bucket(&server, TTL).await;
    let (renewals, tries) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (holder, _holders_proxy) = server.connect_through_gate(counting(WRITE, &renewals)).await;
    let (standby, _standbys_proxy) = server.connect_through_gate(counting(LOOK, &tries)).await;
    let holder = Candidate::open(&holder, "a", "host", TTL).await.unwrap();
    let standby = Candidate::open(&standby, "b", "host", TTL).await.unwrap();
    let lease = holder.try_take().await.unwrap().unwrap();
    let mut processes = JoinSet::new();
    processes.spawn(async move {
        lease.keep(CancellationToken::new()).await;
    });
    processes.spawn(async move {
        standby.wait().await;
    });
    let taken = renewals.load(Ordering::Relaxed);
    eventually("the lease to be renewed", async || {
        (renewals.load(Ordering::Relaxed) >= taken + RENEWALS).then_some(())
    })
    .await;
    let tries = tries.load(Ordering::Relaxed);
    assert!(
        tries >= RENEWALS,
        "{tries} tries in the time of {RENEWALS} renewals"
    );
    assert!(processes.try_join_next().is_none(), "the lease stays where it is");
}

/// Who holds the lease writes it anew.
const WRITE: &str = "$KV.flotilla_lease.leader";
/// Who wants it looks whether anybody does, and writes it only then.
const LOOK: &str = "$JS.API.STREAM.MSG.GET.KV_flotilla_lease";

/// Counts messages to a subject.
fn counting(subject: &'static str, messages: &Arc<AtomicU64>) -> Gate {
    let messages = Arc::clone(messages);
    Gate::new(move |message| {
        if message.way == Way::ToServer && message.subject == subject {
            messages.fetch_add(1, Ordering::Relaxed);
        }
        Verdict::Pass
    })
}

/// So long a lease would be tried for after the test's patience: what helps is the watch.
#[tokio::test]
async fn standby_hears_that_the_lease_was_given_back() {
    const LONG_TTL: Duration = Duration::from_secs(600);
    let server = Server::start();
    make_bucket(&server, LONG_TTL).await;
    let connection = server.connect().await;
    let open = async |name| {
        Candidate::open(&connection, name, "host", LONG_TTL)
            .await
            .unwrap()
    };
    let (holder, standby) = (open("a").await, open("b").await);
    let lease = holder.try_take().await.unwrap().unwrap();
    let stop = CancellationToken::new();
    let keeper = tokio::spawn(lease.keep(stop.clone()));
    let mut waits = pin!(standby.wait());
    assert!(timeout(TTL, &mut waits).await.is_err(), "somebody has it");
    stop.cancel();
    timeout(PATIENCE, waits).await.unwrap();
    assert_eq!(keeper.await.unwrap(), Kept::Released);
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

/// A chaos run stopped the server for longer than a lease lives: whoever had asked for it was answered when the
/// server went on, and led for some hundred milliseconds on a lease that had expired.
#[tokio::test]
async fn lease_whose_answer_came_after_its_life_is_not_believed() {
    let server = Server::start();
    make_bucket(&server, TTL).await;
    let (connection, proxy) = server.connect_through_proxy().await;
    let candidate = Candidate::open(&connection, "a", "host", TTL).await.unwrap();
    proxy.set_flows(Flow::Open, Flow::Delayed(TTL));
    assert!(candidate.try_take().await.is_err());
    proxy.heal();
    let lease = timeout(PATIENCE, candidate.wait()).await.unwrap();
    let kept = timeout(TTL * 2, lease.keep(CancellationToken::new())).await;
    assert!(kept.is_err(), "the next one is fresh and stays");
}

#[tokio::test]
async fn lease_that_was_confirmed_late_is_renewed_before_it_ends() {
    const LONG_TTL: Duration = Duration::from_secs(5);
    let server = Server::start();
    make_bucket(&server, LONG_TTL).await;
    let (connection, proxy) = server.connect_through_proxy().await;
    let candidate = Candidate::open(&connection, "a", "host", LONG_TTL).await.unwrap();
    // A third of a life after the answer it is over.
    proxy.set_flows(Flow::Open, Flow::Delayed(LONG_TTL * 6 / 10));
    let lease = candidate.try_take().await.unwrap().unwrap();
    proxy.heal();
    let kept = timeout(LONG_TTL, lease.keep(CancellationToken::new())).await;
    assert!(kept.is_err(), "it was renewed, not {kept:?}");
}
