use flotilla_protocol::profile::Profile;
use flotilla_protocol::request::Slo;

use super::*;
use crate::rival::stage::{arriving, devices, done, fleet, in_trace, orders, profile, report, seconds};
use crate::trace::Trace;

/// A gateway whose requests all have these targets.
fn gateway(fleet: FleetSpec, picker: Picker, slo: Option<Slo>) -> Aibrix {
    let requests = fleet.models.iter().map(|model| {
        let mut request = arriving("any", model.name.as_str(), Moment::default(), 1);
        request.id = RequestId::new(format!("any-{}", model.name)).unwrap();
        in_trace(&Arriving { slo, ..request })
    });
    let trace = Trace {
        name: "agreed".to_owned(),
        requests: requests.collect(),
    };
    Aibrix::before(&Scenario::new(trace, fleet).unwrap(), picker, 1)
}

fn e2e(seconds: f64) -> Option<Slo> {
    Some(Slo {
        e2e_ms: Some(seconds * 1e3),
        ..Slo::default()
    })
}

/// Two pods of one kind, on which every request takes a quarter of a second of which `fits` find room at
/// once.
fn two_pods(fits: f64) -> FleetSpec {
    fleet(
        devices(&profile("fast", |_, _| (fits / 0.25, 0.25)), 2),
        &["chat"],
    )
}

/// Lets requests of one prompt token arrive, all at once; what is ordered then.
fn come(gateway: &mut Aibrix, at: f64, names: &[&str]) -> Vec<String> {
    for name in names {
        let now = seconds(at);
        gateway.handle_arrival(now, &arriving(name, "chat", now, 1));
    }
    orders(gateway)
}

fn end(gateway: &mut Aibrix, at: f64, worker: &str, request: &str) -> Vec<String> {
    gateway.handle_done(seconds(at), done(worker, request, 1, 1));
    orders(gateway)
}

#[test]
fn the_least_load_is_pulled_until_every_pod_is_full() {
    let mut gateway = gateway(two_pods(2.0), Picker::LeastLoad, e2e(1.0));
    let ordered = come(&mut gateway, 0.0, &["a", "b", "c", "d", "e"]);
    assert_eq!(ordered, ["a>fast-1", "b>fast-0", "c>fast-1", "d>fast-0"]);
    assert_eq!(gateway.loads(), [1.0, 1.0]);
    assert_eq!(end(&mut gateway, 0.2, "fast-0", "b"), ["e>fast-0"]);
}

#[test]
fn six_requests_of_the_published_cell_fit_a_pod() {
    let cell = profile("fast", |_, _| (62.477, 0.099_53));
    let mut gateway = gateway(fleet(devices(&cell, 2), &["chat"]), Picker::LeastLoad, e2e(1.0));
    let names: Vec<_> = (0..13).map(|number| format!("r{number}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    assert_eq!(come(&mut gateway, 0.0, &names).len(), 12);
}

#[test]
fn packing_fills_one_pod_before_the_next_and_waits_for_whoever_ends() {
    let mut gateway = gateway(two_pods(2.0), Picker::PackLoad, e2e(1.0));
    assert_eq!(come(&mut gateway, 0.0, &["a", "b"]), ["a>fast-0", "b>fast-0"]);
    assert_eq!(
        come(&mut gateway, 0.0, &["c", "d", "e"]),
        ["c>fast-1", "d>fast-1"]
    );
    assert_eq!(end(&mut gateway, 0.2, "fast-0", "a"), ["e>fast-0"]);
}

#[test]
fn with_one_pod_there_is_neither_queue_nor_booking() {
    let alone = fleet(devices(&profile("fast", |_, _| (4.0, 0.25)), 1), &["chat"]);
    let mut gateway = gateway(alone, Picker::LeastLoad, e2e(1.0));
    assert_eq!(
        come(&mut gateway, 0.0, &["a", "b", "c"]),
        ["a>fast-0", "b>fast-0", "c>fast-0"]
    );
    assert_eq!(gateway.loads(), [0.0]);
}

#[test]
fn requests_alike_share_a_line_and_others_have_their_own() {
    let mut queues = SubQueues::default();
    let lengths = [(100, 100), (1_000, 1_000), (120, 120)];
    for (output_tokens, prompt_tokens) in lengths {
        let waiting = Waiting {
            arriving: arriving("any", "chat", seconds(0.0), prompt_tokens),
            since: seconds(0.0),
            leaves_at: seconds(60.0),
        };
        let features = profile::Features {
            output_tokens,
            prompt_tokens,
        };
        queues.push(features, waiting);
    }
    let heads: Vec<_> = queues
        .heads()
        .map(|(_, head)| head.arriving.prompt_tokens)
        .collect();
    assert_eq!(heads, [100, 1_000]);
    queues.pop(0).unwrap();
    assert_eq!(queues.pop(0).unwrap().arriving.prompt_tokens, 120);
    assert!(queues.pop(0).is_none());
}

/// A pod of each kind; `fast` needs 0.25 s and `slow` as told, and each has room for one request.
fn two_kinds(slow: impl Fn(usize, usize) -> (f64, f64)) -> FleetSpec {
    let mut both = devices(&profile("fast", |_, _| (4.0, 0.25)), 1);
    both.extend(devices(&profile("slow", slow), 1));
    fleet(both, &["chat"])
}

#[test]
fn another_kind_is_taken_only_while_it_meets_the_target() {
    let mut in_time = gateway(two_kinds(|_, _| (2.0, 0.5)), Picker::LeastLoad, e2e(1.0));
    assert_eq!(come(&mut in_time, 0.0, &["a", "b"]), ["a>fast-0", "b>slow-0"]);
    let mut too_late = gateway(two_kinds(|_, _| (0.5, 2.0)), Picker::LeastLoad, e2e(1.0));
    assert_eq!(come(&mut too_late, 0.0, &["a", "b"]), ["a>fast-0"]);
}

#[test]
fn a_request_that_is_lost_goes_before_those_that_are_not() {
    // Prompts of 2048 tokens take 3 s of a second: lost from the start. The others have slack.
    let cell = profile("fast", |_, input| (1.0, if input == 4 { 3.0 } else { 1.0 }));
    let mut gateway = gateway(fleet(devices(&cell, 2), &["chat"]), Picker::LeastLoad, e2e(2.0));
    come(&mut gateway, 0.0, &["a", "b"]);
    for (at, name, prompt) in [(0.1, "good", 1), (0.2, "lost", 2_048)] {
        gateway.handle_arrival(seconds(at), &arriving(name, "chat", seconds(at), prompt));
    }
    assert_eq!(orders(&mut gateway), Vec::<String>::new());
    assert_eq!(end(&mut gateway, 1.0, "fast-1", "a"), ["lost>fast-1"]);
}

#[test]
fn whoever_does_not_fit_is_passed_by_smaller_ones() {
    // A prompt of 2048 tokens takes a whole pod, one of one token a quarter.
    let cell = profile("fast", |_, input| (if input == 4 { 4.0 } else { 16.0 }, 0.25));
    let mut gateway = gateway(fleet(devices(&cell, 2), &["chat"]), Picker::LeastLoad, e2e(2.0));
    come(&mut gateway, 0.0, &["a", "b"]);
    gateway.handle_arrival(seconds(0.1), &arriving("large", "chat", seconds(0.1), 2_048));
    assert_eq!(come(&mut gateway, 0.2, &["c"]), ["c>fast-1"]);
}

#[test]
fn what_the_last_deployment_says_decides_between_waiting_and_an_error() {
    // The slow kind would be in time, but its tokens are too slow unless they are many: its error is the
    // last.
    let only_long = |seconds| move |output, _| (if output == 7 { 1.0 } else { 0.0 }, seconds);
    let slo = Some(Slo {
        ttft_ms: Some(1_000.0),
        tpot_ms: Some(0.1),
        ..Slo::default()
    });
    let mut rejects = gateway(two_kinds(only_long(0.5)), Picker::LeastLoad, slo);
    assert_eq!(come(&mut rejects, 0.0, &["a", "b"]), ["a>fast-0", "b!refused"]);
    // It promises to be faster than the fast one, so it is asked first.
    let mut waits = gateway(two_kinds(only_long(0.1)), Picker::LeastLoad, slo);
    assert_eq!(come(&mut waits, 0.0, &["a", "b"]), ["a>fast-0"]);
}

#[test]
fn an_answer_that_is_predicted_into_an_infeasible_cell_is_an_error() {
    let cell = profile("fast", |output, _| (if output == 7 { 0.0 } else { 8.0 }, 0.25));
    let mut gateway = gateway(fleet(devices(&cell, 2), &["chat"]), Picker::LeastLoad, e2e(0.2));
    gateway.handle_arrival(seconds(0.0), &arriving("first", "chat", seconds(0.0), 2_048));
    assert_eq!(
        orders(&mut gateway),
        ["first>fast-1"],
        "cold, an answer has one token"
    );
    gateway.handle_done(seconds(1.0), done("fast-1", "first", 2_048, 512));
    gateway.handle_arrival(seconds(1.0), &arriving("next", "chat", seconds(1.0), 2_048));
    assert_eq!(orders(&mut gateway), ["next!refused"]);
}

#[test]
fn without_targets_the_pod_with_the_fewest_requests_is_taken_at_once() {
    let mut gateway = gateway(two_pods(1.0), Picker::LeastLoad, None);
    let ordered = come(&mut gateway, 0.0, &["a", "b", "c", "d"]);
    assert_eq!(ordered.len(), 4, "nobody waits, however full the pods are");
    let on_first = ordered.iter().filter(|order| order.ends_with(">fast-0"));
    assert_eq!(on_first.count(), 2);
}

#[test]
fn a_kind_whose_profile_cannot_rank_gets_nothing_while_another_can() {
    let ttft = |kind: &str, tput| Profile {
        ttft: Some(vec![vec![0.1; 5]; 8]),
        ..profile(kind, move |_, _| (tput, 0.25))
    };
    let mut both = devices(&profile("bare", |_, _| (40.0, 0.25)), 1);
    both.extend(devices(&ttft("fast", 4.0), 1));
    let first_token = Some(Slo {
        ttft_ms: Some(500.0),
        ..Slo::default()
    });
    let mut ranked = gateway(fleet(both, &["chat"]), Picker::LeastLoad, first_token);
    assert_eq!(come(&mut ranked, 0.0, &["a", "b"]), ["a>fast-0"]);
    let bare = fleet(devices(&profile("bare", |_, _| (4.0, 0.25)), 2), &["chat"]);
    let mut unranked = gateway(bare, Picker::LeastLoad, first_token);
    assert_eq!(come(&mut unranked, 0.0, &["a", "b", "c"]).len(), 3);
}

#[test]
fn only_arrivals_and_ends_of_the_same_model_move_a_line() {
    let cell = profile("fast", |_, _| (4.0, 0.25));
    let both = fleet(devices(&cell, 2), &["chat", "code"]);
    let mut gateway = gateway(both, Picker::LeastLoad, e2e(1.0));
    come(&mut gateway, 0.0, &["a"]);
    gateway.handle_arrival(seconds(0.1), &arriving("x", "code", seconds(0.1), 1));
    assert_eq!(orders(&mut gateway), ["x>fast-0"]);
    assert_eq!(come(&mut gateway, 0.2, &["b"]), Vec::<String>::new());
    gateway.handle_report(seconds(0.3), report("fast-0", 1, &[]));
    gateway.handle_timeout(seconds(0.4));
    assert_eq!(end(&mut gateway, 0.5, "fast-0", "x"), Vec::<String>::new());
    assert_eq!(gateway.loads(), [0.0, 1.0]);
    assert_eq!(
        come(&mut gateway, 0.6, &["c"]),
        ["b>fast-0"],
        "an arrival, and b was first"
    );
}

#[test]
fn whoever_needs_more_than_a_pod_waits_until_the_proxy_gives_up() {
    let mut gateway = gateway(two_pods(0.83), Picker::LeastLoad, e2e(1.0));
    assert_eq!(come(&mut gateway, 0.0, &["a"]), Vec::<String>::new());
    assert_eq!(gateway.poll_timeout(), Some(seconds(60.0)));
    gateway.handle_timeout(seconds(60.0));
    assert_eq!(orders(&mut gateway), ["a!refused"]);
    assert_eq!(gateway.poll_timeout(), None);
}

#[test]
fn load_is_given_back_once_whatever_was_drawn_for_it() {
    let cell = profile("fast", |output, input| (3.0 + output as f64 + input as f64, 0.3));
    let mut gateway = gateway(fleet(devices(&cell, 3), &["chat"]), Picker::LeastLoad, e2e(9.0));
    let mut running: Vec<(String, String)> = Vec::new();
    let mut random = Random::new(5, 5);
    for number in 0..2_000_u32 {
        let now = seconds(f64::from(number) * 0.1);
        let prompt_tokens = random.between(1, 3_000);
        let name = format!("r{number}");
        gateway.handle_arrival(now, &arriving(&name, "chat", now, prompt_tokens));
        if running.len() > 4 {
            let (request, worker) = running.remove(random.between(0, 4) as usize);
            gateway.handle_done(
                now,
                done(&worker, &request, prompt_tokens, random.between(1, 600)),
            );
        }
        for order in orders(&mut gateway) {
            let (request, worker) = order.split_once('>').unwrap();
            running.push((request.to_owned(), worker.to_owned()));
        }
    }
    while let Some((request, worker)) = running.pop() {
        gateway.handle_done(seconds(300.0), done(&worker, &request, 10, 10));
        for order in orders(&mut gateway) {
            let (request, worker) = order.split_once('>').unwrap();
            running.push((request.to_owned(), worker.to_owned()));
        }
    }
    assert!(gateway.loads().iter().all(|load| load.abs() < 1e-9));
}
