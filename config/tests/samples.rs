//! The sample files load, and the one that lists every setting says what the defaults are.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use flotilla_config::{Config, ConfigFile, LoadOptions, Source};

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn load(path: PathBuf) -> Config {
    let options = LoadOptions {
        file: ConfigFile::At(path),
        ..LoadOptions::default()
    };
    Config::load(&options).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn sample_file_equals_the_defaults() {
    let (loaded, default) = (load(sample("flotilla.toml")), Config::default());
    assert_eq!(loaded.nats, default.nats);
    assert_eq!(loaded.dispatcher, default.dispatcher);
    assert_eq!(loaded.worker, default.worker);
    assert_eq!(loaded.log, default.log);
}

#[test]
fn sample_file_lists_every_setting_that_has_a_default() {
    let loaded = load(sample("flotilla.toml"));
    let unlisted: Vec<&str> = loaded
        .show()
        .settings()
        .iter()
        .filter(|setting| {
            setting.source == Source::Default && setting.value != flotilla_config::ReportedValue::Unset
        })
        .map(|setting| setting.key)
        .collect();
    assert_eq!(unlisted, Vec::<&str>::new());
}

/// A setting without a default stands behind `# ` with an example: with those lines taken in, every
/// setting has a value from the file.
#[test]
fn sample_file_has_a_valid_example_of_every_optional_setting() {
    let text = fs::read_to_string(sample("flotilla.toml")).unwrap();
    let is_example = |line: &str| line.starts_with("# ") && line.contains(" = ");
    let taken_in: Vec<&str> = text
        .lines()
        .map(|line| {
            line.strip_prefix("# ")
                .filter(|_| is_example(line))
                .unwrap_or(line)
        })
        // One way to log in excludes the others.
        .filter(|line| {
            !["token = \"change me\"", "nkey_seed_file", "creds_file"]
                .iter()
                .any(|key| line.starts_with(key))
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.toml");
    fs::write(&path, taken_in.join("\n")).unwrap();

    let loaded = load(path);
    let left: BTreeSet<&str> = loaded
        .show()
        .settings()
        .iter()
        .filter(|setting| setting.source == Source::Default)
        .map(|setting| setting.key)
        .collect();
    assert_eq!(
        left,
        BTreeSet::from(["nats.creds_file", "nats.nkey_seed_file", "nats.token"])
    );
    for way in left {
        let key = way.rsplit('.').next().unwrap();
        assert!(text.contains(&format!("# {key} = ")), "{way}");
    }
}

#[test]
fn production_file_asks_for_encryption_and_three_copies() {
    let config = load(sample("production.toml"));
    assert!(config.nats.tls.required);
    assert_eq!(config.nats.replicas, 3);
    assert_eq!(config.nats.url.len(), 3);
}
