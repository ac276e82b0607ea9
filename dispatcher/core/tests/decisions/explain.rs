//! What people are told of decisions.

use flotilla_protocol::admin::{Decision, Standing};
use flotilla_protocol::fleet::WorkerState;
use flotilla_protocol::profile::{Profile, ProfileSource};

use crate::fleet::Fleet;
use crate::machine::Machine;
use crate::shared::{request, worker};
use crate::words::{ask, flat, per_token};

/// Without the few milliseconds that a prompt of 5 tokens takes.
fn about(ms: u64) -> u64 {
    (ms + 5) / 10 * 10
}

fn slack(ms: Option<i64>) -> Option<i64> {
    ms.map(|ms| (ms + 5).div_euclid(10) * 10)
}

/// A fast device that is full for another second, a slow one, one without the model and one that drains.
fn fleet() -> Fleet {
    let mut fleet = Fleet::new();
    let fast = flat("fast", 1.0, 1.0);
    fleet.profile("m", Profile { cost: 3.0, ..fast });
    fleet.profile("m", flat("slow", 4.0, 2.0));
    fleet.join(Machine::new("a", "fast").with("m"));
    fleet.send(ask("blocker"));
    fleet.join(Machine::new("b", "slow").with("m"));
    fleet.join(Machine::new("c", "fast").with("other").room_for(1));
    let mut draining = Machine::new("d", "slow").with("m");
    draining.state = WorkerState::Draining;
    fleet.join(draining);
    fleet.order();
    fleet
}

#[test]
fn a_waiting_request_is_explained_by_what_each_device_would_make_of_it() {
    let mut fleet = fleet();
    fleet.send(ask("r").batch().tenant("t").aged(0.25).within(3.0).estimated());
    let found = fleet.why("r");
    assert_eq!((found.prompt_tokens, found.prompt_estimated), (5, true));
    assert_eq!((found.age_ms, found.target_ms), (250, Some(3000)));
    assert_eq!(found.output_tokens, (16, 16));
    assert_eq!(found.tenant.unwrap().as_str(), "t");
    let expected = Standing::Queued {
        line: "in_time".into(),
        slack_ms: Some(1750),
        reserved: false,
        waits_for: "a faster device, or its turn".into(),
    };
    assert_eq!(found.standing, expected);
    assert_eq!(found.candidates_total, 4);
    let rooms = found
        .candidates
        .iter()
        .map(|it| (it.worker.as_str(), it.room.as_str()));
    let rooms: Vec<_> = rooms.collect();
    let expected = [
        ("b", "now"),
        ("a", "no_share"),
        ("c", "no_copy"),
        ("d", "draining"),
    ];
    assert_eq!(rooms, expected);
    let [slow, fast] = [&found.candidates[0], &found.candidates[1]];
    assert_eq!(
        (slow.starts_in_ms, about(slow.ends_in_ms), slack(slow.slack_ms)),
        (0, 4000, Some(-1250))
    );
    assert_eq!((slow.load, slow.share, slow.cost), (0.0, 0.5, 2.0));
    assert_eq!(
        (
            about(fast.starts_in_ms),
            about(fast.ends_in_ms),
            slack(fast.slack_ms)
        ),
        (1000, 2000, Some(750))
    );
    assert_eq!((fast.load, fast.share, fast.cost), (1.0, 1.0, 3.0));
    assert_eq!(fast.profile, Some(ProfileSource::Measured));
    assert_eq!(
        (fast.device_kind.as_str(), fast.model.as_str()),
        ("fast", "ready")
    );
}

#[test]
fn a_running_request_is_explained_by_how_it_was_decided() {
    let mut fleet = fleet();
    fleet.send(ask("r").within(9.0));
    let Standing::Assigned {
        worker: on, decision, ..
    } = fleet.why("r").standing
    else {
        panic!("it runs")
    };
    assert_eq!(on, worker("b"));
    let expected = Decision {
        device_kind: "slow".into(),
        starts_in_ms: 0,
        ends_in_ms: 4000,
        slack_ms: Some(5000),
        share: 0.5,
        load: 0.5,
        not_preferred: 0,
        too_late: 0,
        no_room: 1,
        no_copy: 0,
    };
    let decision = decision.expect("it was decided here");
    let rounded = Decision {
        ends_in_ms: about(decision.ends_in_ms),
        slack_ms: slack(decision.slack_ms),
        ..decision
    };
    assert_eq!(rounded, expected);
    fleet.new_leader();
    let Standing::Assigned { decision, .. } = fleet.why("r").standing else {
        panic!("it still runs")
    };
    assert_eq!(decision, None, "a former leader decided");
}

#[test]
fn what_is_not_held_has_no_explanation() {
    let mut fleet = fleet();
    fleet.end("blocker");
    let now = fleet.bench.now;
    assert_eq!(fleet.bench.dispatcher.why(now, &request("blocker")), None);
    assert_eq!(fleet.bench.dispatcher.why(now, &request("unknown")), None);
}

#[test]
fn a_lost_request_says_so_and_has_no_slack() {
    let mut fleet = fleet();
    fleet.send(ask("blocker2").within(9.0));
    fleet.send(ask("blocker3").within(9.0));
    fleet.send(ask("lost").aged(8.0).within(1.0));
    let Standing::Queued {
        line,
        slack_ms,
        waits_for,
        ..
    } = fleet.why("lost").standing
    else {
        panic!("it waits")
    };
    assert_eq!((line.as_str(), slack_ms), ("late", None));
    assert_eq!(waits_for, "a share of a device that has the model");
}

/// AIBrix case 6, the part that the dispatcher has in it: theirs prices 32,768 tokens as 2048, and nobody knows.
#[test]
fn prices_beyond_what_was_measured_are_counted() {
    let mut fleet = Fleet::new();
    fleet.profile("m", per_token("k", 0.001, 4.0));
    fleet.join(Machine::new("w", "k").with("m"));
    fleet.send(ask("inside").tokens(5, 500));
    assert_eq!(fleet.status("m", "k").extrapolated, 0);
    fleet.send(ask("beyond").tokens(2_000_000, 500));
    assert_eq!(fleet.status("m", "k").extrapolated, 1);
    assert_eq!(fleet.bench.dispatcher.stats().prompts_estimated, 0);
    fleet.send(ask("guessed").estimated());
    assert_eq!(fleet.bench.dispatcher.stats().prompts_estimated, 1);
}
