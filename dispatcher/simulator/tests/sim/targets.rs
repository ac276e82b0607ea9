//! Which requests met their targets.

use std::time::Duration;

use flotilla_protocol::request::Slo;
use flotilla_protocol::{Class, Moment};
use flotilla_simulator::outcome::{RequestEnd, RequestRecord, meets_targets};
use flotilla_simulator::trace::TraceRequest;

use crate::scenarios::{model_name, request};

/// A request of 100 and 50 tokens, published at 1 s, with its first token 400 ms and its end 2 s after that moment.
fn ended(end: RequestEnd) -> (TraceRequest, RequestRecord) {
    let request = TraceRequest {
        at: Duration::from_secs(1),
        prompt_tokens: 100,
        ..request(1)
    };
    let at = |ms: u64| Some(Moment::after_origin(Duration::from_millis(1_000 + ms)));
    let record = RequestRecord {
        id: request.id.clone(),
        tenant: None,
        class: Class::Interactive,
        model: model_name("chat"),
        published: Moment::after_origin(request.at),
        assigned: at(300),
        first_token: at(400),
        ended: at(2_000),
        output_tokens: 50,
        worker: None,
        end,
    };
    (request, record)
}

fn met(slo: Slo, of_model: Option<Slo>) -> bool {
    let (request, record) = ended(RequestEnd::Finished);
    let slo = Some(slo);
    meets_targets(&TraceRequest { slo, ..request }, &record, of_model)
}

const NONE: Slo = Slo {
    e2e_ms: None,
    ttft_ms: None,
    tpot_ms: None,
    tpat_ms: None,
};

#[test]
fn each_target_counts_from_the_publish_to_its_own_limit() {
    let e2e = |ms| Slo {
        e2e_ms: Some(ms),
        ..NONE
    };
    let ttft = |ms| Slo {
        ttft_ms: Some(ms),
        ..NONE
    };
    let tpot = |ms| Slo {
        tpot_ms: Some(ms),
        ..NONE
    };
    let tpat = |ms| Slo {
        tpat_ms: Some(ms),
        ..NONE
    };
    assert!(met(NONE, None));
    assert!(met(e2e(2_000.0), None) && !met(e2e(1_999.0), None));
    assert!(met(ttft(400.0), None) && !met(ttft(399.0), None));
    assert!(
        met(tpot(40.0), None) && !met(tpot(39.9), None),
        "2 s for 50 tokens"
    );
    assert!(
        met(tpat(13.4), None) && !met(tpat(13.3), None),
        "2 s for 150 tokens"
    );
}

#[test]
fn a_limit_for_the_first_token_is_added_to_that_of_the_others() {
    let both = |ttft_ms, tpot_ms| Slo {
        ttft_ms: Some(ttft_ms),
        tpot_ms: Some(tpot_ms),
        ..NONE
    };
    assert!(met(both(500.0, 30.0), None));
    assert!(!met(both(500.0, 29.0), None));
    assert!(!met(both(300.0, 100.0), None), "all that are set must hold");
}

#[test]
fn targets_of_the_model_hold_for_requests_without_their_own() {
    let tight = Some(Slo {
        e2e_ms: Some(1.0),
        ..NONE
    });
    let (request, record) = ended(RequestEnd::Finished);
    assert!(!meets_targets(&request, &record, tight));
    assert!(met(NONE, tight), "its own say that anything goes");
}

#[test]
fn what_is_late_or_not_answered_met_nothing() {
    let (request, record) = ended(RequestEnd::Finished);
    let due = |ms| TraceRequest {
        deadline: Some(Duration::from_millis(ms)),
        ..request.clone()
    };
    assert!(meets_targets(&due(2_000), &record, None));
    assert!(!meets_targets(&due(1_999), &record, None));
    for end in [
        RequestEnd::DeadlineExceeded,
        RequestEnd::Refused,
        RequestEnd::Unfinished,
    ] {
        let (request, record) = ended(end);
        assert!(!meets_targets(&request, &record, None), "{end:?}");
    }
}
