//! Devices that fail.

use flotilla_protocol::fleet::{DepartureReason, DeviceState};
use flotilla_worker_core::residency::{LoadFailure, ResidencySettings};

use crate::bench::Bench;

fn two_devices() -> Bench {
    Bench::with(ResidencySettings {
        device_pages: vec![100, 50],
        ..Bench::settings()
    })
}

#[test]
fn leases_on_a_failed_device_end_with_a_reason_and_its_models_are_absent() {
    let mut bench = two_devices();
    bench.run("r1", "a", 60);
    bench.want("r2", "a", None);
    bench.actions();
    bench.break_device(0);
    assert_eq!(
        bench.actions(),
        ["lost r1: device 0 broke", "lost r2: device 0 broke"]
    );
    assert!(bench.residency.is_empty());
    let reason = "device 0 broke".to_owned();
    assert_eq!(
        bench.residency.device_reports()[0].state,
        DeviceState::Failed {
            reason: reason.clone()
        }
    );
    assert_eq!(
        bench.departures(),
        [("a".to_owned(), DepartureReason::DeviceFailed { reason })]
    );
    bench.release_all(&["r1", "r2"]);
    assert_eq!(bench.actions(), [""; 0], "their ends change nothing any more");
}

#[test]
fn who_waits_is_served_by_a_device_that_works_or_learns_why_none_does() {
    let mut bench = two_devices();
    bench.want("r1", "large", None);
    bench.inspect("large", 60);
    bench.want("r2", "small", None);
    bench.inspect("small", 20);
    bench.actions();
    bench.break_device(0);
    assert_eq!(bench.actions(), ["cancel large", "cancel small"]);
    bench.not_loaded("large", LoadFailure::Cancelled);
    bench.loaded("small");
    assert_eq!(
        bench.actions(),
        ["inspect large", "inspect small"],
        "what was loaded there is lost"
    );
    bench.inspect("small", 20);
    bench.inspect("large", 60);
    bench.loaded("small");
    assert_eq!(
        bench.actions(),
        ["load small", "failed r1 1000", "lease r2 small"],
        "large fits the other device only"
    );
    bench.break_device(1);
    assert_eq!(bench.actions(), ["lost r2: device 1 broke"]);
    bench.want("r3", "small", None);
    bench.inspect("small", 20);
    assert_eq!(bench.actions(), ["inspect small", "failed r3 1000"]);
    let fault = bench.residency.model_reports(bench.now);
    let told = format!("{fault:?}");
    assert!(told.contains("no device works: device 0 broke"), "{told}");
}

#[test]
fn an_unload_under_way_on_a_failed_device_ends_as_any_other() {
    let mut bench = two_devices();
    bench.run("r1", "a", 60);
    bench.order_out("a");
    bench.release("r1");
    bench.break_device(0);
    bench.break_device(0);
    assert_eq!(bench.actions(), ["unload a"]);
    bench.unloaded("a");
    assert!(bench.residency.is_empty());
}
