//! Every way in which a profile can be wrong is named, all at once.

use flotilla_profile::{DeviceProfile, EstimateFrom};
use flotilla_protocol::profile::{LoadSeconds, Profile, ProfileSlos, ProfileSource};

use crate::device::{Device, checked};

/// A small profile that passes.
fn sound() -> Profile {
    Device::fast().profile(&[4.0, 8.0], &[128.0, 256.0])
}

/// The faults of a changed profile, without the heading.
fn faults(change: impl FnOnce(&mut Profile)) -> Vec<String> {
    let mut profile = sound();
    change(&mut profile);
    match DeviceProfile::try_from(profile) {
        Ok(_) => Vec::new(),
        Err(faults) => faults.faults().iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn a_sound_profile_has_no_fault_and_comes_back_as_it_was() {
    assert_eq!(Profile::from(&checked(sound())), sound());
    assert_eq!(faults(|_| ()), Vec::<String>::new());
}

#[test]
fn an_empty_document_lacks_everything_it_needs() {
    let faults = DeviceProfile::try_from(Profile::from_json(b"{}").unwrap()).unwrap_err();
    assert_eq!(
        faults.to_string(),
        "the profile has 6 fault(s)\n  \
         gpu: is missing; give the device kind\n  \
         cost: found no number (NaN, null or nothing); give a number that is not negative\n  \
         created: found no number (NaN, null or nothing); give Unix seconds\n  \
         indexes: is missing; give [output ticks, input ticks], in tokens\n  \
         tputs: is missing; give requests a second, [output][input]\n  \
         e2e: is missing; give mean seconds of a request, [output][input]"
    );
}

#[test]
fn the_faults_of_all_fields_come_together() {
    let found = faults(|profile| {
        profile.cost = -1.0;
        profile.created = f64::INFINITY;
        profile.indexes = vec![vec![8.0, 8.0], vec![128.0, 0.0]];
        profile.tputs[1][0] = -2.0;
        profile.e2e.as_mut().unwrap()[0][1] = 0.0;
        profile.ttft.as_mut().unwrap().pop();
        profile.tpot.as_mut().unwrap()[1].push(0.1);
        profile.slos = Some(ProfileSlos {
            percentile: Some(101.0),
            tpat: Some(-1.0),
            ..ProfileSlos::default()
        });
        profile.prefill_tokens_per_s = Some(0.0);
        profile.tpot_by_batch = Some(vec![(4.0, 0.1), (4.0, f64::NAN)]);
        profile.load_seconds_by_tier = Some(LoadSeconds {
            peer: Some(-1.0),
            ..LoadSeconds::default()
        });
    });
    assert_eq!(
        found,
        [
            "cost: found -1; give a number that is not negative",
            "created: found inf; give Unix seconds",
            "indexes[0][1]: 8 does not come after 8; give ascending ticks",
            "indexes[1][1]: found 0; give a number of tokens from 1",
            "indexes[1][1]: 0 does not come after 128; give ascending ticks",
            "tputs[1][0]: found -2; give requests a second above 0, or 0 where the targets cannot be met",
            "e2e[0][1]: found 0; give a number of seconds above 0",
            "ttft: has 1 entry; give 2, one row for each output tick",
            "tpot[1]: has 3 entries; give 2, one column for each input tick",
            "slos.percentile: found 101; give a percentile from 0 to 100",
            "slos.tpat: found -1; give a number of seconds above 0",
            "prefill_tokens_per_s: found 0; give tokens a second above 0",
            "tpot_by_batch[1][1]: found no number (NaN, null or nothing); give a number of seconds above 0",
            "tpot_by_batch[1]: 4 does not come after 4; give ascending batch sizes",
            "load_seconds_by_tier.peer: found -1; give a number of seconds above 0",
        ]
    );
}

#[test]
fn a_time_in_milliseconds_is_none_in_seconds() {
    assert_eq!(
        faults(|profile| profile.created = 1_767_225_600_000.0),
        ["created: found 1767225600000; give Unix seconds"]
    );
}

#[test]
fn a_document_that_cannot_be_read_names_the_field_and_one_that_can_takes_the_kind_it_is_given() {
    let error = DeviceProfile::from_json(br#"{"tputs": 3}"#, None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the profile is no JSON document of the expected shape; mend tputs"
    );
    let json = serde_json::to_vec(&sound()).unwrap();
    assert_eq!(DeviceProfile::from_json(&json, None).unwrap().kind(), "sim-fast");
    assert_eq!(
        DeviceProfile::from_json(&json, Some("a40")).unwrap().kind(),
        "a40"
    );
    assert!(DeviceProfile::from_json(&json, Some("")).is_err());
}

#[test]
fn axes_without_ticks_and_with_too_many_are_refused() {
    assert_eq!(
        faults(|profile| profile.indexes = vec![vec![], vec![128.0, 256.0], vec![1.0]]),
        [
            "indexes: has 3 entries; give 2, output ticks and input ticks",
            "indexes[0]: is missing; give at least one tick, in tokens",
        ]
    );
    let many: Vec<f64> = (1..=65).map(f64::from).collect();
    let found = faults(|profile| profile.indexes[0] = many);
    assert_eq!(found[0], "indexes[0]: has 65 entries; give at most 64");
    assert!(found.contains(&"tputs: has 2 entries; give 65, one row for each output tick".to_owned()));
}

#[test]
fn what_is_as_large_as_allowed_is_no_fault() {
    let many: Vec<f64> = (1..=64).map(f64::from).collect();
    let mut document = Device::fast().profile(&many, &[128.0]);
    document.gpu = "x".repeat(128);
    document.tpot_by_batch = Some((1..=1024).map(|batch| (f64::from(batch), 0.1)).collect());
    checked(document);
}

#[test]
fn a_device_that_can_serve_nothing_is_refused() {
    assert_eq!(
        faults(|profile| profile.tputs = vec![vec![0.0; 2]; 2]),
        ["tputs: all are 0, so the device can serve nothing; measure under looser slos"]
    );
    assert_eq!(
        faults(|profile| profile.tputs = vec![vec![f64::NAN, 0.0], vec![0.0; 2]]).len(),
        1
    );
}

#[test]
fn names_and_empty_lists_are_faults_too() {
    assert_eq!(
        faults(|profile| {
            profile.gpu = "a\nb".to_owned();
            profile.e2e = Some(Vec::new());
            profile.tpot_by_batch = Some(Vec::new());
        }),
        [
            "gpu: the name has 3 bytes or a control character; give 1 to 128 printable bytes",
            "e2e: is missing; give mean seconds of a request, [output][input]",
            "tpot_by_batch: is missing; give at least one [batch size, seconds], or leave the field out",
        ]
    );
    assert_eq!(faults(|profile| profile.gpu = "x".repeat(129)).len(), 1);
    let many = (1..=1025).map(|batch| (f64::from(batch), 0.1)).collect();
    assert_eq!(
        faults(|profile| profile.tpot_by_batch = Some(many)),
        ["tpot_by_batch: has 1025 entries; give at most 1024"]
    );
}

#[test]
fn a_target_of_zero_is_none_and_stays_in_the_document() {
    let document = Profile {
        slos: Some(ProfileSlos {
            percentile: Some(0.0),
            e2e: Some(0.0),
            tpot: Some(0.1),
            tput: Some(3.0),
            ..ProfileSlos::default()
        }),
        ..sound()
    };
    let profile = checked(document.clone());
    assert_eq!((profile.slos().e2e, profile.slos().tpot), (None, Some(0.1)));
    assert_eq!(profile.slos().tput, Some(3.0));
    assert_eq!(Profile::from(&profile), document);
    assert_eq!(
        profile.source(),
        ProfileSource::Imported,
        "nothing else is known of it"
    );
}

#[test]
fn an_estimate_refuses_figures_that_cannot_be() {
    let from = EstimateFrom {
        kind: String::new(),
        cost: f64::NAN,
        weights_bytes: 1 << 30,
        memory_bytes_per_s: 0,
        slots: 0,
        created: 0.0,
    };
    let faults = DeviceProfile::estimated(from).unwrap_err();
    let fields: Vec<_> = faults.faults().iter().map(ToString::to_string).collect();
    assert_eq!(
        fields,
        [
            "memory_bytes_per_s: found 0; give a number above 0",
            "slots: found 0; give a number above 0",
            "gpu: is missing; give the device kind",
            "cost: found no number (NaN, null or nothing); give a number that is not negative",
        ]
    );
}
