//! Loading: which layer rules, what is refused, and what the faults say.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use flotilla_config::{
    Config, ConfigErrors, ConfigFile, Fault, KeepAlive, LoadOptions, LogFormat, Problem, ProfileFile, Source,
};
use tempfile::TempDir;

/// A configuration file that goes when the test ends.
struct FileFixture {
    _folder: TempDir,
    path: PathBuf,
}

impl FileFixture {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("flotilla.toml");
        fs::write(&path, text).expect("the folder is new and ours");
        Self {
            _folder: folder,
            path,
        }
    }

    fn options(&self) -> LoadOptions {
        LoadOptions {
            file: ConfigFile::At(self.path.clone()),
            ..LoadOptions::default()
        }
    }
}

fn variables(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    let pair = |(name, value): &(&str, &str)| ((*name).into(), (*value).into());
    pairs.iter().map(pair).collect()
}

fn from_environment(pairs: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    Config::load(&LoadOptions {
        environment: variables(pairs),
        ..LoadOptions::default()
    })
}

fn from_flag(flag: &str) -> Result<Config, ConfigErrors> {
    Config::load(&LoadOptions {
        flags: vec![flag.to_owned()],
        ..LoadOptions::default()
    })
}

/// The one fault of a setting that a flag brings about.
fn problem_of_flag(flag: &str) -> Problem {
    let errors = from_flag(flag).expect_err("the flag is wrong");
    match errors.faults() {
        [Fault::Setting { problem, .. }] => problem.as_ref().clone(),
        faults => panic!("{flag} should have one fault: {faults:?}"),
    }
}

fn source_of(config: &Config, key: &str) -> Source {
    let settings = config.show().settings();
    let setting = settings.iter().find(|setting| setting.key == key);
    setting.expect("the key is known").source.clone()
}

#[test]
fn defaults_are_valid_without_any_layer() {
    let config = Config::default();
    assert_eq!(config.nats.url, ["nats://127.0.0.1:4222"]);
    assert_eq!(config.nats.journal_max_bytes, 4 << 30);
    assert_eq!(config.dispatcher.ack_wait, Duration::from_secs(10));
    assert_eq!(config.worker.keep_alive, KeepAlive::For(Duration::from_secs(300)));
    assert_eq!(config.worker.models_per_device_max, None);
    assert!((config.worker.cpu.memory_fraction - 0.5).abs() < f64::EPSILON);
}

#[test]
fn stronger_layer_covers_weaker_one_and_its_source_is_shown() {
    let file = FileFixture::new(
        "[worker]\nslots = 2\nbatch_tokens_max = 100\ndrain_timeout_s = 7\n\n[log]\nformat = \"json\"\n",
    );
    let mut options = file.options();
    options.environment = variables(&[
        ("FLOTILLA__WORKER__SLOTS", "3"),
        ("FLOTILLA__WORKER__BATCH_TOKENS_MAX", "200"),
        ("PATH", "/bin"),
    ]);
    options.flags = vec!["worker.slots=4".to_owned()];
    let config = Config::load(&options).unwrap();

    assert_eq!(config.worker.slots, 4);
    assert_eq!(config.worker.batch_tokens_max, 200);
    assert_eq!(config.worker.drain_timeout, Duration::from_secs(7));
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.dispatcher.queue_max, 4096);

    let path = file.path.clone();
    let flag = Source::Flag("worker.slots".to_owned());
    let variable = Source::Environment("FLOTILLA__WORKER__BATCH_TOKENS_MAX".to_owned());
    assert_eq!(source_of(&config, "worker.slots"), flag);
    assert_eq!(source_of(&config, "worker.batch_tokens_max"), variable);
    assert_eq!(
        source_of(&config, "worker.drain_timeout_s"),
        Source::File {
            path: path.clone(),
            line: 4
        }
    );
    assert_eq!(source_of(&config, "log.format"), Source::File { path, line: 7 });
    assert_eq!(source_of(&config, "dispatcher.queue_max"), Source::Default);
}

#[test]
fn last_of_two_flags_for_one_key_rules() {
    let options = LoadOptions {
        flags: vec!["worker.slots=4".to_owned(), "worker.slots=5".to_owned()],
        ..LoadOptions::default()
    };
    assert_eq!(Config::load(&options).unwrap().worker.slots, 5);
}

#[test]
fn all_faults_of_all_layers_are_told_at_once_with_their_places() {
    let file = FileFixture::new(
        "[nats]\nreplicas = 2\nnamespase = \"x\"\n\n[dispatcher]\nqueue_max = \"many\"\n[worker]\nid = \"a b\"\n",
    );
    let mut options = file.options();
    options.environment = variables(&[("FLOTILLA__WORKER__SLOTS", "0")]);
    options.flags = vec!["log.level=loud".to_owned(), "nonsense".to_owned()];
    let errors = Config::load(&options).unwrap_err();
    let path = file.path.display();
    let told = errors.to_string();
    let expected = [
        "the configuration has 7 fault(s)".to_owned(),
        "flag nonsense: no '='; write it as section.key=value".to_owned(),
        format!("nats.namespase ({path}:3): unknown key; did you mean nats.namespace?"),
        format!("nats.replicas ({path}:2): found 2; give one of 1, 3, 5"),
        format!("dispatcher.queue_max ({path}:6): found the text \"many\"; give a whole number"),
        format!("worker.id ({path}:8): found \"a b\"; give 1 to 64 characters of A-Z, a-z, 0-9, '_' and '-'"),
        "worker.slots (variable FLOTILLA__WORKER__SLOTS): found 0; give a value from 1 to 4096".to_owned(),
        "log.level (flag log.level): found the text \"loud\"; give one of error, warn, info, debug, trace"
            .to_owned(),
    ];
    let lines: Vec<&str> = told.lines().map(str::trim).collect();
    assert_eq!(lines, expected);
}

#[test]
fn unknown_key_names_the_nearest_known_one() {
    let nearest = |flag: &str| match problem_of_flag(flag) {
        Problem::UnknownKey { nearest } => nearest,
        other => panic!("{flag}: {other}"),
    };
    assert_eq!(nearest("nats.urls=x"), "nats.url");
    assert_eq!(nearest("natz.url=x"), "nats.url");
    assert_eq!(nearest("queue_max=3"), "dispatcher.queue_max");
    assert_eq!(nearest("worker.cpu.enable=true"), "worker.cpu.enabled");
    assert_eq!(nearest("dispatcher.ack_wait_s=3"), "dispatcher.ack_wait_ms");
}

#[test]
fn quoted_key_with_dots_is_not_taken_for_a_path() {
    let file = FileFixture::new("\"worker.slots\" = 3\n");
    let errors = Config::load(&file.options()).unwrap_err();
    let place = format!("({}:1): unknown key", file.path.display());
    assert!(errors.to_string().contains(&place), "{errors}");
}

#[test]
fn value_in_place_of_a_section_is_refused() {
    let problem = problem_of_flag("nats=nats://elsewhere:4222");
    assert!(matches!(problem, Problem::NotASection { .. }), "{problem}");
}

#[test]
fn empty_unknown_section_is_refused() {
    let file = FileFixture::new("[dispacher]\n");
    let errors = Config::load(&file.options()).unwrap_err();
    assert!(errors.to_string().contains("dispacher"), "{errors}");
}

#[test]
fn variables_are_read_as_their_settings_expect() {
    let config = from_environment(&[
        ("FLOTILLA__NATS__URL", "nats://a:4222, tls://b:4222"),
        ("FLOTILLA__NATS__USER", "007"),
        ("FLOTILLA__NATS__PASSWORD", "0123"),
        ("FLOTILLA__NATS__JOURNAL_MAX_BYTES", "2 GiB"),
        ("FLOTILLA__WORKER__KEEP_ALIVE_S", "-1"),
        ("FLOTILLA__WORKER__CPU__ENABLED", "false"),
        ("FLOTILLA__WORKER__CPU__MEMORY_FRACTION", "1"),
        ("FLOTILLA__WORKER__MODELS_DIR", ""),
        ("FLOTILLA_TEST_PYTHON", "not ours"),
    ])
    .unwrap();
    assert_eq!(config.nats.url, ["nats://a:4222", "tls://b:4222"]);
    assert_eq!(config.nats.user.as_deref(), Some("007"));
    assert_eq!(config.nats.password.unwrap().expose(), "0123");
    assert_eq!(config.nats.journal_max_bytes, 2 << 30);
    assert_eq!(config.worker.keep_alive, KeepAlive::UntilEvicted);
    assert!(!config.worker.cpu.enabled);
    assert!((config.worker.cpu.memory_fraction - 1.0).abs() < f64::EPSILON);
    assert_eq!(config.worker.models_dir, None);
}

#[test]
fn unknown_variable_is_told_by_its_name() {
    let errors = from_environment(&[("FLOTILLA__NATS__URI", "nats://a:4222")]).unwrap_err();
    let told = errors.to_string();
    assert!(told.contains("variable FLOTILLA__NATS__URI"), "{told}");
    assert!(told.contains("did you mean nats.url?"), "{told}");
}

#[cfg(unix)]
#[test]
fn variable_that_is_not_utf8_is_told_by_its_name() {
    use std::os::unix::ffi::OsStringExt;
    let options = LoadOptions {
        environment: vec![("FLOTILLA__LOG__LEVEL".into(), OsString::from_vec(vec![0xff]))],
        ..LoadOptions::default()
    };
    let told = Config::load(&options).unwrap_err().to_string();
    assert!(
        told.contains("variable FLOTILLA__LOG__LEVEL: not valid UTF-8"),
        "{told}"
    );
}

#[test]
fn bounds_of_values_are_kept() {
    let refused = [
        "nats.replicas=4",
        "nats.namespace=",
        "nats.namespace=has.dot",
        "nats.namespace=a-name-of-thirty-three-characters",
        "nats.url=",
        "nats.url=http://a",
        "nats.url=nats://a,,nats://b",
        "nats.journal_max_bytes=1.5GiB",
        "nats.journal_max_bytes=99999999999999TiB",
        "dispatcher.request_bytes_max=65MiB",
        "dispatcher.strikes_max=-1",
        "dispatcher.ack_wait_ms=10s",
        "worker.keep_alive_s=-2",
        "worker.cpu.memory_fraction=0",
        "worker.cpu.memory_fraction=1.01",
        "worker.cpu.memory_fraction=nan",
        "worker.cpu.enabled=yes",
        "worker.cpu.threads=0",
        "worker.cpu.threads=1025",
        "worker.engine=gpu",
        "worker.simulated.profile=a.json,",
        "worker.simulated.profile=a.json,b.json",
        "worker.simulated.profile=m=a.json,m=b.json",
        "worker.simulated.profile==a.json",
        "worker.simulated.count=0",
        "worker.simulated.count=1001",
        "worker.simulated.seed=-1",
        "worker.simulated.memory_bytes=1MiB",
        "worker.simulated.answer_tokens_mean=0",
    ];
    for flag in refused {
        let problem = problem_of_flag(flag);
        let is_of_value = !matches!(problem, Problem::UnknownKey { .. } | Problem::Conflict { .. });
        assert!(is_of_value, "{flag}: {problem}");
    }
    let allowed = [
        "nats.namespace=a-name-of-thirty-two-characters_",
        "nats.url=[::1]:4222",
        "dispatcher.request_bytes_max=64MiB",
        "worker.keep_alive_s=0",
        "worker.cpu.memory_fraction=1.0",
        "worker.cpu.threads=",
        "worker.cpu.threads=1024",
    ];
    for flag in allowed {
        let errors = from_flag(flag).err();
        assert!(errors.is_none(), "{flag}: {errors:?}");
    }
}

#[test]
fn number_written_as_text_in_a_file_is_refused() {
    let file = FileFixture::new("[worker]\nslots = \"4\"\n");
    let told = Config::load(&file.options()).unwrap_err().to_string();
    assert!(
        told.contains("found the text \"4\"; give a whole number"),
        "{told}"
    );
}

#[test]
fn settings_that_exclude_or_need_each_other_are_refused() {
    let conflicts = [
        (&["nats.user=a"][..], "nats.password"),
        (&["nats.password=a"], "nats.user"),
        (&["nats.token=a", "nats.creds_file=b"], "nats.token"),
        (&["nats.tls.cert_file=a"], "nats.tls.key_file"),
        (
            &["dispatcher.prompt_bytes_max=8MiB"],
            "dispatcher.request_bytes_max",
        ),
        (&["worker.report_interval_ms=3000"], "worker.report_interval_ms"),
        (&["worker.engine=simulated"], "worker.simulated.profile"),
    ];
    for (flags, other_expected) in conflicts {
        let options = LoadOptions {
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            ..LoadOptions::default()
        };
        let errors = Config::load(&options).unwrap_err();
        let [Fault::Setting { problem, .. }] = errors.faults() else {
            panic!("{flags:?}: {errors}");
        };
        let Problem::Conflict { other, .. } = problem.as_ref() else {
            panic!("{flags:?}: {errors}");
        };
        assert_eq!(*other, other_expected, "{flags:?}");
    }
}

#[test]
fn missing_named_file_is_a_fault_that_names_it() {
    let options = LoadOptions {
        file: ConfigFile::At("/nowhere/flotilla.toml".into()),
        ..LoadOptions::default()
    };
    let told = Config::load(&options).unwrap_err().to_string();
    assert!(told.contains("/nowhere/flotilla.toml: cannot be read"), "{told}");
    assert!(told.contains("No such file"), "{told}");
}

#[test]
fn broken_toml_is_told_with_its_line_beside_other_faults() {
    let file = FileFixture::new("[nats]\nreplicas = 3\nurl = \n");
    let mut options = file.options();
    options.flags = vec!["worker.slots=0".to_owned()];
    let errors = Config::load(&options).unwrap_err();
    let place = format!("{}:3: not valid TOML", file.path.display());
    assert!(errors.to_string().contains(&place), "{errors}");
    assert_eq!(errors.faults().len(), 2);
}

#[test]
fn profiles_are_read_with_the_models_that_they_are_for() {
    let config =
        from_flag("worker.simulated.profile=all.json, org/large:7b = dir/large.json").expect("it is a list");
    let file = |model: Option<&str>, path: &str| ProfileFile {
        model: model.map(str::to_owned),
        path: path.into(),
    };
    assert_eq!(
        config.worker.simulated.profile,
        Some(vec![
            file(None, "all.json"),
            file(Some("org/large:7b"), "dir/large.json")
        ])
    );
    let told = from_flag("worker.simulated.profile=m=a,m=b")
        .unwrap_err()
        .to_string();
    assert!(
        told.contains(r#"gives a file for model "m" twice; keep one"#),
        "{told}"
    );
}

#[test]
fn secrets_are_hidden_wherever_they_could_be_seen() {
    let given = variables(&[
        ("FLOTILLA__NATS__USER", "flotilla"),
        ("FLOTILLA__NATS__PASSWORD", "open-sesame"),
    ]);
    let options = LoadOptions {
        environment: given,
        flags: vec!["nats.password=open-sesame".to_owned()],
        ..LoadOptions::default()
    };
    let config = Config::load(&options).unwrap();
    let json = serde_json::to_string(config.show()).unwrap();
    let seen = [
        format!("{options:?}"),
        format!("{config:?}"),
        config.show().to_string(),
        json.clone(),
    ];
    for text in seen {
        assert!(!text.contains("open-sesame"), "{text}");
    }
    assert!(
        json.contains(r#"{"key":"nats.password","value":"(hidden)","source":"flag nats.password"}"#),
        "{json}"
    );
}

#[test]
fn token_that_other_tools_of_the_hub_read_is_taken_unless_ours_is_given() {
    let shown = |pairs: &[(&str, &str)]| {
        let config = from_environment(pairs).unwrap();
        assert!(!format!("{config:?} {}", config.show()).contains("sesame"));
        config.worker.hub.token.map(|token| token.expose().to_owned())
    };
    let foreign = ("HF_TOKEN", "sesame-1");
    assert_eq!(shown(&[foreign]).as_deref(), Some("sesame-1"));
    let ours = ("FLOTILLA__WORKER__HUB__TOKEN", "sesame-2");
    assert_eq!(shown(&[ours, foreign]).as_deref(), Some("sesame-2"));
    assert_eq!(shown(&[("HF_TOKEN", "")]), None);
}

#[test]
fn repositories_and_the_hubs_address_are_checked() {
    for bad in [
        "worker.hub.allow=org/na me",
        "worker.hub.allow=a/b/c",
        "worker.hub.allow=org/*,,",
        "worker.hub.endpoint=ftp://hub",
        "worker.hub.endpoint=https://me:secret@hub",
        "worker.hub.endpoint=https://",
    ] {
        assert!(from_flag(bad).is_err(), "{bad}");
    }
    let config = from_flag("worker.hub.allow=org/*, other/name").unwrap();
    let allow = config.worker.hub.allow.unwrap();
    assert!(allow[0].matches("org/x") && allow[1].matches("other/name"));
    let config = from_flag("worker.hub.endpoint=http://mirror:8080/").unwrap();
    assert_eq!(config.worker.hub.endpoint, "http://mirror:8080");
}

#[test]
fn faults_do_not_repeat_secrets() {
    let flags = [
        "nats.url=nats://me:open-sesame@a:4222",
        "nats.pasword=open-sesame",
        "nats.password=open-sesame",
    ];
    for flag in flags {
        let errors = from_flag(flag).unwrap_err();
        let told = format!("{errors} {errors:?}");
        assert!(!told.contains("open-sesame"), "{told}");
    }
    let unquoted = FileFixture::new("[nats]\npassword = open-sesame\n");
    let errors = Config::load(&unquoted.options()).unwrap_err();
    assert!(!errors.to_string().contains("sesame"), "{errors}");
    let file = FileFixture::new("[nats]\ntoken = 5318008\npassword = [\"5318008\"]\n");
    let errors = Config::load(&file.options()).unwrap_err();
    assert!(!errors.to_string().contains("5318008"), "{errors}");
}

#[test]
fn report_shows_values_with_sources_as_text_and_json() {
    let config = from_environment(&[("FLOTILLA__WORKER__SLOTS", "7")]).unwrap();
    let text = config.show().to_string();
    let line = text.lines().find(|line| line.starts_with("worker.slots"));
    let words: Vec<&str> = line.unwrap().split_whitespace().collect();
    assert_eq!(
        words,
        [
            "worker.slots",
            "=",
            "7",
            "#",
            "variable",
            "FLOTILLA__WORKER__SLOTS"
        ]
    );
    let unset = text.lines().find(|line| line.starts_with("worker.models_dir"));
    assert!(unset.unwrap().contains("(unset)"), "{text}");

    let json = serde_json::to_value(config.show()).unwrap();
    let slots = json
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["key"] == "worker.slots");
    assert_eq!(slots.unwrap()["value"], 7);
    let unset = json
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["key"] == "nats.user");
    assert!(unset.unwrap()["value"].is_null());
}
