//! No input makes loading panic.

use std::fs;

use flotilla_config::{Config, ConfigFile, LoadOptions};
use proptest::prelude::*;

/// A line of TOML that is often near a real setting.
fn line() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        prop::sample::select(vec![
            "url",
            "slots",
            "replicas",
            "enabled",
            "memory_fraction",
            "keep_alive_s",
            "level",
            "tls",
            "cpu",
            "\"a.b\"",
            "\"\"",
            "journal_max_bytes",
            "worker.cpu",
        ])
        .prop_map(str::to_owned),
        "[a-z_.]{1,12}",
    ];
    let value = prop_oneof![
        any::<i64>().prop_map(|whole| whole.to_string()),
        any::<f64>().prop_map(|part| format!("{part:?}")),
        "[0-9]{1,20}(KiB|GiB|TB|x)?".prop_map(|size| format!("{size:?}")),
        prop::sample::select(vec![
            "nan",
            "-inf",
            "true",
            "[]",
            "{}",
            "{ a = 1 }",
            "[1, \"x\"]",
            "1979-05-27T07:32:00Z"
        ])
        .prop_map(str::to_owned),
        ".{0,12}".prop_map(|text| format!("{text:?}")),
    ];
    let section = prop::sample::select(vec![
        "nats",
        "nats.tls",
        "dispatcher",
        "worker",
        "worker.cpu",
        "log",
        "x",
        "worker.cpu.y",
    ]);
    prop_oneof![
        4 => (key, value).prop_map(|(key, value)| format!("{key} = {value}")),
        1 => section.prop_map(|section| format!("[{section}]")),
    ]
}

proptest! {
    #[test]
    fn any_file_loads_or_is_refused_with_faults(lines in prop::collection::vec(line(), 0..8), noise in ".{0,8}") {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flotilla.toml");
        fs::write(&path, format!("{}\n{noise}", lines.join("\n"))).unwrap();
        let options = LoadOptions { file: ConfigFile::At(path), ..LoadOptions::default() };
        match Config::load(&options) {
            Ok(config) => prop_assert!(!config.show().to_string().is_empty()),
            Err(errors) => prop_assert!(!errors.faults().is_empty() && !errors.to_string().is_empty()),
        }
    }

    #[test]
    fn any_variable_and_flag_loads_or_is_refused_with_faults(
        name in "(NATS|WORKER|LOG|[A-Z_.]{0,6})(__)?(URL|SLOTS|CPU|[A-Z_.]{0,6})",
        value in ".{0,12}",
        flag in "(nats|worker|[a-z.]{0,6})[.]?(url|slots|cpu|[a-z.]{0,6})=?.{0,8}",
    ) {
        let options = LoadOptions {
            environment: vec![(format!("FLOTILLA__{name}").into(), value.into())],
            flags: vec![flag],
            ..LoadOptions::default()
        };
        if let Err(errors) = Config::load(&options) {
            prop_assert!(!errors.faults().is_empty());
        }
    }

    #[test]
    fn every_slot_count_within_bounds_is_taken_as_it_is(slots in 1_usize..=4096) {
        let options = LoadOptions {
            flags: vec![format!("worker.slots={slots}")],
            ..LoadOptions::default()
        };
        prop_assert_eq!(Config::load(&options).unwrap().worker.slots, slots);
    }
}
