//! Profiles in their bucket: what is refused at the door, what is replaced, and what others hear of it.

use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context, Result};
use flotilla_client::{ProfileChange, Profiles, ProfilesError};
use flotilla_profile::{DeviceProfile, Signature};
use flotilla_protocol::ModelName;
use flotilla_protocol::profile::Profile;
use flotilla_tests::{Fleet, PATIENCE, flotilla_binary};
use futures_util::future::join_all;
use futures_util::{Stream, StreamExt};
use serde_json::{Value, json};

const CHAT: Signature = Signature {
    prompt_tokens: 512,
    output_tokens: 128,
};

/// A fleet without workers: profiles need a dispatcher only for their bucket.
async fn fleet() -> Result<Fleet> {
    Fleet::builder().workers(0).start().await
}

fn flotilla(fleet: &Fleet, command: &[&str]) -> Result<Output> {
    Ok(Command::new(flotilla_binary())
        .args(fleet.arguments(command))
        .current_dir(fleet.folder())
        .output()?)
}

fn stdout(output: Output) -> Result<String> {
    assert!(output.status.success(), "{}", stderr(&output));
    Ok(String::from_utf8(output.stdout)?)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn sample(name: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../config/profiles");
    folder.join(name).display().to_string()
}

fn sample_document(name: &str) -> Result<Profile> {
    Ok(Profile::from_json(&std::fs::read(sample(name))?)?)
}

fn made_at(created: f64) -> Result<DeviceProfile> {
    Ok(DeviceProfile::try_from(Profile {
        created,
        ..sample_document("sample-fast.json")?
    })?)
}

fn model() -> Result<ModelName> {
    Ok(ModelName::new("org/llama3.1:8b")?)
}

async fn next(changes: &mut (impl Stream<Item = ProfileChange> + Unpin)) -> Result<ProfileChange> {
    tokio::time::timeout(PATIENCE, changes.next())
        .await?
        .context("the watch goes on")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_imported_profile_is_listed_and_exported_as_it_was() -> Result<()> {
    let fleet = fleet().await?;
    let (fast, slow) = (sample("sample-fast.json"), sample("sample-slow.json"));
    let told = stdout(flotilla(
        &fleet,
        &["profile", "import", &fast, "--model", "a/b:1"],
    )?)?;
    assert!(told.contains("a/b:1 on sim-fast"), "{told}");
    let as_kind = ["profile", "import", &slow, "--model", "c", "--kind", "NVIDIA A10"];
    stdout(flotilla(&fleet, &as_kind)?)?;

    let table = stdout(flotilla(&fleet, &["profile", "show"])?)?;
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("MODEL"), "{table}");
    for (line, words) in lines[1..]
        .iter()
        .zip([["a/b:1", "sim-fast"], ["c", "NVIDIA A10"]])
    {
        let all = ["imported", "2026-01-01T00:00:00Z", "tpot 0.05 s p99"];
        assert!(
            words.iter().chain(&all).all(|word| line.contains(word)),
            "{table}"
        );
    }
    let listed = stdout(flotilla(&fleet, &["profile", "show", "--model", "c", "--json"])?)?;
    let listed: Value = serde_json::from_str(&listed)?;
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!(listed[0]["kind"], "NVIDIA A10");
    assert_eq!(listed[0]["cost"], 0.3);
    assert_eq!(listed[0]["slos"], json!({"percentile": 99.0, "tpot": 0.05}));

    let export = ["profile", "export", "--model", "a/b:1", "--kind", "sim-fast"];
    let exported = Profile::from_json(stdout(flotilla(&fleet, &export)?)?.as_bytes())?;
    assert_eq!(exported, sample_document("sample-fast.json")?);
    let to_file = [
        "profile",
        "export",
        "--model",
        "c",
        "--kind",
        "NVIDIA A10",
        "-o",
        "a10.json",
    ];
    stdout(flotilla(&fleet, &to_file)?)?;
    let written = Profile::from_json(&std::fs::read(fleet.folder().join("a10.json"))?)?;
    let expected = Profile {
        gpu: "NVIDIA A10".to_owned(),
        ..sample_document("sample-slow.json")?
    };
    assert_eq!(written, expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_profile_is_gone_and_cannot_be_removed_again() -> Result<()> {
    let fleet = fleet().await?;
    let which = ["--model", "m", "--kind", "sim-slow"];
    let import = ["profile", "import", &sample("sample-slow.json"), "--model", "m"];
    stdout(flotilla(&fleet, &import)?)?;
    let remove = [&["profile", "remove"][..], &which].concat();
    stdout(flotilla(&fleet, &remove)?)?;
    for command in [remove, [&["profile", "export"][..], &which].concat()] {
        let refused = flotilla(&fleet, &command)?;
        assert_eq!(refused.status.code(), Some(4));
        let told = stderr(&refused);
        assert!(told.contains("no profile of m on sim-slow"), "{told}");
    }
    stdout(flotilla(&fleet, &import)?)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_file_is_refused_with_every_fault_and_nothing_is_stored() -> Result<()> {
    let fleet = fleet().await?;
    let file = fleet.folder().join("bad.json");
    let import = ["profile", "import", "bad.json", "--model", "m"];
    std::fs::write(
        &file,
        r#"{"gpu": "x", "cost": -1, "indexes": [[4, 4], [128]], "tputs": [[1.0], [NaN]], "created": 1.0,
            "e2e": [[0.0], [1.0, 2.0]]}"#,
    )?;
    let refused = flotilla(&fleet, &import)?;
    assert_eq!(refused.status.code(), Some(4));
    let told = stderr(&refused);
    for fault in [
        "bad.json is refused",
        "5 fault(s)",
        "cost: found -1",
        "indexes[0][1]: 4 does not come after 4",
        "tputs[1][0]: found no number (NaN",
        "e2e[0][0]: found 0",
        "e2e[1]: has 2 entries; give 1",
    ] {
        assert!(told.contains(fault), "{fault}: {told}");
    }
    std::fs::write(&file, "{\"tputs\": [[\"many\"]]}")?;
    let told = stderr(&flotilla(&fleet, &import)?);
    assert!(told.contains("tputs[0][0]"), "{told}");
    let told = stderr(&flotilla(
        &fleet,
        &["profile", "import", "none.json", "--model", "m"],
    )?);
    assert!(told.contains("cannot read none.json"), "{told}");
    assert_eq!(stdout(flotilla(&fleet, &["profile", "show", "--json"])?)?, "[]\n");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newer_profile_stays_whoever_writes_last() -> Result<()> {
    let fleet = fleet().await?;
    let profiles = Profiles::open(&fleet.connection).await?;
    let model = model()?;
    let newer = made_at(2e9)?;
    profiles.put(&model, &newer).await?;
    let error = profiles.put(&model, &made_at(1e9)?).await;
    assert!(
        matches!(&error, Err(ProfilesError::Older { stored, given, .. }) if (*stored, *given) == (2e9, 1e9)),
        "{error:?}"
    );
    assert_eq!(profiles.entry(&model, "sim-fast").await?, Some(newer.clone()));
    profiles.put(&model, &newer).await?;

    let import = [
        "profile",
        "import",
        &sample("sample-fast.json"),
        "--model",
        model.as_str(),
    ];
    let refused = flotilla(&fleet, &import)?;
    assert_eq!(refused.status.code(), Some(4));
    assert!(stderr(&refused).contains("is newer"), "{}", stderr(&refused));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_writers_at_once_the_newest_wins() -> Result<()> {
    let fleet = fleet().await?;
    let profiles = Profiles::open(&fleet.connection).await?;
    let model = model()?;
    let made: Vec<DeviceProfile> = (0..10).map(|n| made_at(f64::from(n))).collect::<Result<_>>()?;
    let written = join_all(made.iter().map(|profile| profiles.put(&model, profile))).await;
    for (profile, outcome) in made.iter().zip(written) {
        let is_newest = profile.created() == 9.0;
        assert!(
            matches!(&outcome, Err(ProfilesError::Older { .. }) if !is_newest) || outcome.is_ok(),
            "{outcome:?}"
        );
    }
    let stored = profiles.entry(&model, "sim-fast").await?.context("it is there")?;
    assert_eq!(stored.created(), 9.0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_heard_and_what_is_broken_is_skipped() -> Result<()> {
    let fleet = fleet().await?;
    let profiles = Profiles::open(&fleet.connection).await?;
    let (model, kind) = (model()?, "sim-fast".to_owned());
    let first = made_at(1.0)?;
    profiles.put(&model, &first).await?;
    let mut changes = profiles.changes().await?;
    let put = |profile: DeviceProfile| ProfileChange::Put {
        model: model.clone(),
        kind: kind.clone(),
        profile: Box::new(profile),
    };
    assert_eq!(
        next(&mut changes).await?,
        put(first.clone()),
        "what was there before"
    );

    let store = fleet
        .connection
        .jetstream
        .get_key_value("flotilla_profiles")
        .await?;
    let key = "org=2Fllama3=2E1=3A8b.sim-fast";
    store
        .put(key, "{\"gpu\": \"sim-fast\", \"cost\": NaN}".into())
        .await?;
    store.put("not-two-tokens", "{}".into()).await?;
    let second = made_at(0.5)?;
    profiles.put(&model, &second).await?;
    assert_eq!(
        next(&mut changes).await?,
        put(second.clone()),
        "what is no profile is replaced by any that is one"
    );
    profiles.remove(&model, &kind).await?;
    let removed = ProfileChange::Removed {
        model: model.clone(),
        kind: kind.clone(),
    };
    assert_eq!(next(&mut changes).await?, removed);
    profiles.put(&model, &second).await?;
    assert_eq!(next(&mut changes).await?, put(second));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_profile_hides_no_other_from_the_list() -> Result<()> {
    let fleet = fleet().await?;
    let profiles = Profiles::open(&fleet.connection).await?;
    profiles.put(&model()?, &made_at(1.0)?).await?;
    let store = fleet
        .connection
        .jetstream
        .get_key_value("flotilla_profiles")
        .await?;
    store.put("other.sim-fast", "{}".into()).await?;
    let shown = flotilla(&fleet, &["profile", "show"])?;
    let told = stderr(&shown);
    assert!(
        told.contains("the profile of other on sim-fast is not used"),
        "{told}"
    );
    assert!(told.contains("e2e: is missing"), "{told}");
    assert!(stdout(shown)?.contains("org/llama3.1:8b"));
    stdout(flotilla(
        &fleet,
        &["profile", "rm", "--model", "other", "--kind", "sim-fast"],
    )?)?;
    let stored = profiles.list().await?;
    assert_eq!(stored.len(), 1);
    let profile = stored.into_iter().next().context("one")?.profile?;
    assert!(profile.is_feasible(CHAT));
    Ok(())
}
