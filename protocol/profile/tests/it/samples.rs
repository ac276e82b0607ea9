//! The two sample profiles of `config/profiles`: invented devices, for trying things without a model.
//!
//! They are made here from the steps of `device.rs`, over 4 to 1,024 output and 64 to 8,192 prompt tokens, and
//! compared with what is kept; `BLESS=1 cargo test -p flotilla-profile` writes them anew.

use std::path::PathBuf;

use flotilla_profile::{DeviceProfile, LoadTier, Signature};
use flotilla_protocol::profile::Profile;

use crate::device::{Device, TPOT_SLO_S, ticks};

#[test]
fn the_samples_are_what_their_devices_would_be_measured_as() {
    for device in [Device::fast(), Device::slow()] {
        let made = rounded(device.profile(&ticks(2..=10), &ticks(6..=13)));
        let json = serde_json::to_string(&made).unwrap().replace("]],", "]],\n ");
        let path = sample(device.kind);
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, json.clone() + "\n").unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap();
        assert_eq!(kept, json + "\n", "{} differs", path.display());
    }
}

#[test]
fn the_samples_pass_the_check_and_say_all_that_a_profile_can() {
    let [fast, slow] = ["sim-fast", "sim-slow"].map(|kind| {
        let json = std::fs::read_to_string(sample(kind)).unwrap();
        DeviceProfile::try_from(Profile::from_json(json.as_bytes()).unwrap()).unwrap()
    });
    assert_eq!((fast.kind(), fast.cost()), ("sim-fast", 1.0));
    assert_eq!((slow.kind(), slow.cost()), ("sim-slow", 0.3));
    let chat = Signature {
        prompt_tokens: 512,
        output_tokens: 128,
    };
    for profile in [&fast, &slow] {
        assert_eq!(profile.slos().tpot, Some(TPOT_SLO_S));
        assert_eq!(profile.slos().percentile, Some(99.0));
        assert!(profile.load_time(LoadTier::Host) < profile.load_time(LoadTier::Peer));
        assert!(profile.load_time(LoadTier::Peer) < profile.load_time(LoadTier::Origin));
        assert!(profile.is_feasible(chat) && profile.idle_speedup(chat) < 1.0);
    }
    // Neither may be the better choice for everything, or there were nothing to choose.
    let cost = |profile: &DeviceProfile, prompt_tokens, output_tokens| {
        let signature = Signature {
            prompt_tokens,
            output_tokens,
        };
        profile.work(signature).as_secs_f64() * profile.cost()
    };
    assert!(fast.work(chat) < slow.work(chat));
    assert!(
        cost(&slow, 128, 512) < cost(&fast, 128, 512) * 0.9,
        "long answers are cheap on the slow one"
    );
    assert!(
        cost(&slow, 4096, 64) > cost(&fast, 4096, 64) * 1.5,
        "long prompts are not"
    );
}

fn sample(kind: &str) -> PathBuf {
    let name = kind.replace("sim-", "sample-");
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../../config/profiles/{name}.json"))
}

/// Six significant digits: more only make the files hard to read.
fn rounded(mut profile: Profile) -> Profile {
    let matrices = [&mut profile.e2e, &mut profile.ttft, &mut profile.tpot];
    let optional = matrices.into_iter().flatten();
    for figure in optional.chain([&mut profile.tputs]).flatten().flatten() {
        *figure = format!("{figure:.5e}").parse().unwrap();
    }
    for (_, seconds) in profile.tpot_by_batch.iter_mut().flatten() {
        *seconds = format!("{seconds:.5e}").parse().unwrap();
    }
    profile
}
