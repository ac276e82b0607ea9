//! Benchmarks in short: real runs, whose figures mean nothing.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::Result;
use flotilla_tests::flotilla_binary;
use flotilla_tests::pauses::{self, PausesOptions};
use serde_json::Value;

use crate::points::QUICK;

/// On a model so small that it takes no time.
fn bench_engine(folder: &Path, more: &[&str]) -> Result<Output> {
    let small = "bench engine --json --shape tiny --threads 2 --rounds 2 --memory-mib 4 --prefill 40 \
        --decode 1 --decode 3 --decode-context 20 --decode-steps 5 --folder";
    Ok(Command::new(flotilla_binary())
        .args(small.split_whitespace())
        .arg(folder)
        .args(more)
        .current_dir(folder)
        .output()?)
}

#[test]
fn every_measure_of_the_engine_has_a_speed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // The second run finds the weights of the first.
    for _ in 0..2 {
        let output = bench_engine(folder.path(), &[])?;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        assert!(errors.contains("measuring the engine alone"), "{errors}");
        let outcome: Value = serde_json::from_slice(&output.stdout)?;
        let measures = outcome["figures"]["measures"].as_array().unwrap();
        for weights in ["bf16", "int8", "int4"] {
            let alike = measures.iter().filter(|measure| measure["weights"] == weights);
            let names: Vec<&Value> = alike.map(|measure| &measure["measure"]).collect();
            assert_eq!(names, ["load", "prefill_40", "decode_1", "decode_3"]);
        }
        for measure in measures {
            assert!(measure["ours"].as_f64().unwrap() > 0.0, "{measure}");
            assert_eq!(measure["llama_cpp"], Value::Null);
        }
        assert!(outcome["figures"]["memory_gb_per_s"].as_f64().unwrap() > 0.0);
        let ratios = outcome["ratios"].as_object().unwrap();
        let names: Vec<&str> = ratios.keys().map(String::as_str).collect();
        // Each way of keeping the weights has two against the memory, and the quantised ones four against bf16.
        assert_eq!(names.len(), 3 * 2 + 2 * 4, "{names:?}");
        for name in [
            "tiny.bf16.load.vs_memory",
            "tiny.bf16.decode_1.vs_memory",
            "tiny.int4.decode_3.vs_bf16",
        ] {
            assert!(names.contains(&name), "{names:?}");
        }
        assert!(ratios.values().all(|ratio| ratio.as_f64().unwrap() > 0.0));
    }
    Ok(())
}

#[test]
fn a_python_without_llama_cpp_is_named_and_nothing_is_compared_in_secret() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let output = bench_engine(folder.path(), &["--llama-cpp", "/nowhere/python"])?;
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("cannot start /nowhere/python"), "{errors}");
    Ok(())
}

#[test]
fn a_context_beyond_the_shapes_positions_is_refused_before_anything_is_written() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let output = bench_engine(folder.path(), &["--prefill", "300"])?;
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("positions for 256 tokens"), "{errors}");
    assert!(!folder.path().join("tiny").exists());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_pause_is_measured() -> Result<()> {
    let options = PausesOptions {
        rounds: 1,
        settings: QUICK.map(str::to_owned).to_vec(),
    };
    let figures = pauses::run(&options).await?.figures();
    assert_eq!(figures["rounds"], 1);
    for name in [
        "worker_killed_pause",
        "leader_killed_first_token",
        "leader_killed_pause",
        "leader_killed_pause_before",
        "leader_stopped_first_token",
        "leader_stopped_pause",
        "leader_stopped_pause_before",
    ] {
        for of in ["p50", "p99", "max"] {
            let figure = figures[&format!("{name}_ms_{of}")].as_f64();
            assert!(figure > Some(0.0), "{name} {of}: {figure:?}");
        }
    }
    Ok(())
}
