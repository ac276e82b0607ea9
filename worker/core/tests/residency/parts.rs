//! Models that no device can hold alone.

use flotilla_protocol::fleet::DepartureReason;
use flotilla_worker_core::residency::ResidencySettings;

use crate::bench::Bench;

fn devices(pages: &[u64]) -> Bench {
    Bench::with(ResidencySettings {
        device_pages: pages.to_vec(),
        host_pages: 0,
        ..Bench::settings()
    })
}

/// The layers of a model on each device that has any.
fn layers(bench: &Bench, model: &str) -> Vec<(u32, u32)> {
    let reports = bench.residency.model_reports(bench.now).into_iter();
    let report = reports.into_iter().find(|it| it.model.as_str() == model);
    let shards = report.unwrap().shards.into_iter();
    shards.map(|shard| (shard.device, shard.layers)).collect()
}

fn free(bench: &Bench) -> Vec<u64> {
    let devices = bench.residency.device_reports();
    devices.iter().map(|device| device.pages_free()).collect()
}

/// Ollama's case 49 has a table of layers that fit on each of two devices, and what each gets of 5 layers and the
/// output layer, which goes on a full device there. Here a model is whole on one device or fits in parts, and each has
/// about as much of it as it has room for.
#[test]
fn each_device_has_about_as_much_of_a_model_as_it_has_room_for() {
    for (pages, expected) in [
        ([40, 40], vec![(0, 3), (1, 3)]),
        ([20, 50], vec![(0, 2), (1, 4)]),
        ([50, 20], vec![(0, 4), (1, 2)]),
        ([30, 30], vec![(0, 3), (1, 3)]),
        ([60, 60], vec![]),
    ] {
        let mut bench = devices(&pages);
        bench.want("r", "m", None);
        bench.inspect_in_layers("m", 6, 10);
        assert_eq!(bench.actions(), ["inspect m", "load m"], "{pages:?}");
        assert_eq!(layers(&bench, "m"), expected, "{pages:?}");
    }
}

/// Ollama's case 51: there is the best brand, here the fewest devices.
#[test]
fn the_fewest_devices_that_can_hold_a_model_together_have_it() {
    let mut bench = devices(&[30, 40, 30, 40]);
    bench.want("r", "m", None);
    bench.inspect_in_layers("m", 8, 10);
    assert_eq!(layers(&bench, "m"), [(1, 4), (3, 4)]);
    assert_eq!(free(&bench), [30, 0, 30, 0]);
}

#[test]
fn a_model_too_large_for_all_devices_is_refused_with_the_numbers_and_nobody_leaves() {
    let mut bench = devices(&[40, 40]);
    bench.run("r", "small", 30);
    bench.release("r");
    bench.want("s", "m", None);
    bench.inspect_in_layers("m", 9, 10);
    assert_eq!(bench.actions(), ["inspect m", "failed s 1000"]);
    let name = flotilla_protocol::ModelName::new("m").unwrap();
    let fault = bench
        .residency
        .unloadable(bench.now, &name)
        .unwrap()
        .fault
        .to_string();
    assert!(fault.contains("all 2 devices, which have 80 for it"), "{fault}");
}

#[test]
fn idle_models_leave_only_where_a_part_needs_their_room() {
    let mut bench = devices(&[40, 40, 40]);
    for (request, model) in [("ra", "a"), ("rb", "b"), ("rc", "c")] {
        bench.run(request, model, 25);
    }
    bench.release_all(&["ra", "rc"]);
    bench.want("r", "m", None);
    bench.inspect_in_layers("m", 7, 10);
    assert_eq!(
        bench.actions(),
        ["inspect m", "unload a", "unload c"],
        "b is in use"
    );
    bench.unloaded("a");
    assert_eq!(bench.actions(), [""; 0], "all of it or none");
    assert_eq!(free(&bench), [40, 15, 15]);
    bench.unloaded("c");
    assert_eq!(bench.actions(), ["load m"]);
    let placed = layers(&bench, "m");
    assert_eq!(
        placed.iter().map(|(device, _)| *device).collect::<Vec<_>>(),
        [0, 2]
    );
}

#[test]
fn a_model_in_parts_leaves_from_all_its_devices_for_a_newcomer_on_one() {
    let mut bench = devices(&[40, 40]);
    bench.want("r", "m", None);
    bench.inspect_in_layers("m", 6, 10);
    bench.loaded("m");
    bench.release("r");
    assert_eq!(bench.unloads_for("small", 35), ["m"]);
    bench.unloaded("m");
    assert_eq!(bench.actions(), ["load small"]);
    assert_eq!(bench.pages_free(), 45);
}

#[test]
fn with_one_of_its_devices_a_model_in_parts_is_lost_and_the_others_get_their_memory_back() {
    let mut bench = devices(&[40, 40]);
    bench.want("r", "m", None);
    bench.inspect_in_layers("m", 6, 10);
    bench.loaded("m");
    bench.actions();
    bench.break_device(1);
    assert_eq!(bench.actions(), ["lost r: device 1 broke", "unload m"]);
    assert_eq!(
        free(&bench)[0],
        10,
        "the other part is there until it is told to be gone"
    );
    bench.unloaded("m");
    assert_eq!(free(&bench)[0], 40);
    let reason = "device 1 broke".to_owned();
    let departed = ("m".to_owned(), DepartureReason::DeviceFailed { reason });
    assert_eq!(bench.departures(), [departed]);
    bench.want("s", "m", None);
    bench.inspect_in_layers("m", 6, 10);
    assert_eq!(
        bench.actions(),
        ["inspect m", "failed s 1000"],
        "one device is not enough"
    );
}

#[test]
fn a_load_in_parts_that_lost_a_device_meanwhile_is_taken_back() {
    let mut bench = devices(&[40, 40]);
    bench.want("r", "m", None);
    bench.inspect_in_layers("m", 6, 10);
    bench.actions();
    bench.break_device(0);
    assert_eq!(bench.actions(), ["cancel m"]);
    bench.loaded("m");
    assert_eq!(
        bench.actions(),
        ["unload m"],
        "the load had ended before the word came"
    );
    bench.unloaded("m");
    assert_eq!(free(&bench)[1], 40);
    assert_eq!(bench.actions(), ["inspect m"]);
}

#[test]
fn a_copy_in_host_memory_is_used_by_a_load_that_is_cut_alike_and_dropped_by_another() {
    let mut bench = Bench::with(ResidencySettings {
        device_pages: vec![40, 40],
        host_pages: 200,
        ..Bench::settings()
    });
    let load = |bench: &mut Bench, request: &str| {
        bench.want(request, "m", None);
        bench.inspect_in_layers("m", 6, 10);
        bench.loaded("m");
        bench.release(request);
        bench.actions()
    };
    load(&mut bench, "r1");
    bench.order_out("m");
    assert_eq!(bench.actions(), ["unload m to host"]);
    bench.unloaded_to_host("m");
    assert!(load(&mut bench, "r2").contains(&"load m from host".to_owned()));
    bench.order_out("m");
    bench.unloaded_to_host("m");
    // Somebody in use takes a part of the first device, so the cut has to be another one.
    bench.run("rs", "small", 15);
    bench.actions();
    let seen = load(&mut bench, "r3");
    assert!(
        seen.contains(&"load m".to_owned()) && seen.contains(&"drop m".to_owned()),
        "{seen:?}"
    );
    assert_eq!(layers(&bench, "m"), [(0, 2), (1, 4)]);
}

#[test]
fn keys_and_values_of_a_model_in_parts_are_its_own_and_no_pools() {
    let mut bench = devices(&[40, 40]);
    bench.want("r", "m", None);
    bench.inspect_in_layers_with_kv("m", 6, 10, 4);
    assert_eq!(
        bench.actions(),
        ["inspect m", "load m"],
        "no pool is resized for it"
    );
    let devices = bench.residency.device_reports();
    assert!(
        devices
            .iter()
            .all(|it| it.pages_kv >= 6 && it.pages_kv_kept == Some(it.pages_kv))
    );
    let model = &bench.residency.model_reports(bench.now)[0];
    assert!(model.kv_tokens_max.unwrap() >= 4 * 16);
}
