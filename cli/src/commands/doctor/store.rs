//! Whether the server stores anything: one that could not write to its disk answers every other question.

use flotilla_client::Connection;
use flotilla_weights::CLAIMS;

use super::Finding;

/// Writes an entry that expires by itself to a bucket whose entries all do.
pub(super) async fn check(connection: &Connection) -> Finding {
    let bucket = connection.subjects.bucket(CLAIMS);
    let written = connection.within(async {
        let store = connection.jetstream.get_key_value(&bucket).await;
        let store = store.map_err(|_| Outcome::NoBucket)?;
        let stored = store.put(KEY, "".into()).await;
        stored.map_err(|error| Outcome::Refused(error.to_string()))
    });
    let outcome = match written.await {
        Ok(Ok(_)) => return Finding::ok("store", "the server stores what is written"),
        Ok(Err(outcome)) => outcome,
        Err(late) => Outcome::Refused(late.to_string()),
    };
    match outcome {
        Outcome::NoBucket => Finding::warn(
            "store",
            "whether the server stores anything is not known before its streams exist",
            "start a dispatcher, then ask again",
        ),
        Outcome::Refused(why) => Finding::fail(
            "store",
            format!("the server did not store an entry: {why}"),
            "its disk is full or broken, or it is at a limit, which its log says; make room, and start nats-server again: one \
             that could not write stores nothing until then",
        ),
    }
}

/// Why nothing is known to be stored.
enum Outcome {
    NoBucket,
    Refused(String),
}

/// No root is called that.
const KEY: &str = "doctor";
