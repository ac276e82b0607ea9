//! What is built comes from the registry, and may be shipped with software under Apache-2.0. `make deny` says more, where
//! cargo-deny is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

#[test]
fn every_dependency_comes_from_the_registry() {
    let lock = fs::read_to_string(repository().join("Cargo.lock")).unwrap();
    let mut sources = lock.lines().filter_map(|line| line.strip_prefix("source = "));
    let foreign = sources.find(|source| source.trim_matches('"') != REGISTRY);
    assert_eq!(foreign, None, "a dependency comes from elsewhere");
    for package in packages() {
        let manifest = PathBuf::from(package["manifest_path"].as_str().unwrap());
        let is_ours = manifest.starts_with(repository().canonicalize().unwrap());
        assert!(
            package["source"] == REGISTRY || is_ours,
            "{manifest:?} is neither ours nor of the registry"
        );
    }
}

#[test]
fn licence_of_every_dependency_is_one_that_deny_toml_allows() {
    let rules = fs::read_to_string(repository().join("deny.toml")).unwrap();
    let (_, rest) = rules.split_once("allow = [").unwrap();
    let (list, _) = rest.split_once(']').unwrap();
    let allowed: Vec<&str> = list.split('"').skip(1).step_by(2).collect();
    assert!(allowed.contains(&"Apache-2.0"), "{allowed:?}");
    for package in packages() {
        let licence = package["license"].as_str().unwrap_or("none");
        assert!(
            permits(licence, &allowed),
            "{} is under {licence}",
            package["name"]
        );
    }
}

#[test]
fn of_a_choice_of_licences_one_is_enough_and_of_several_all_are_needed() {
    let permits = |licence| permits(licence, &["MIT", "Apache-2.0", "Zlib"]);
    for good in [
        "MIT",
        "GPL-3.0 OR MIT",
        "MIT/X",
        "(GPL-3.0 OR MIT) AND Zlib",
        "MIT AND Zlib OR GPL-3.0",
    ] {
        assert!(permits(good), "{good}");
    }
    for bad in [
        "none",
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "GPL-3.0 WITH MIT",
        "GPL-3.0 OR (MIT AND X)",
        "",
    ] {
        assert!(!permits(bad), "{bad}");
    }
}

/// Whether an SPDX expression can be met with these licences.
fn permits(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let permitted = choice(&mut words, allowed);
    permitted && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

/// `AND` binds before `OR`.
fn choice(words: &mut Words<'_>, allowed: &[&str]) -> bool {
    let mut permitted = all(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        permitted |= all(words, allowed);
    }
    permitted
}

fn all(words: &mut Words<'_>, allowed: &[&str]) -> bool {
    let mut permitted = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        permitted &= one(words, allowed);
    }
    permitted
}

fn one(words: &mut Words<'_>, allowed: &[&str]) -> bool {
    if words.next_if_eq(&"(").is_some() {
        let permitted = choice(words, allowed);
        return permitted && words.next() == Some(")");
    }
    let mut permitted = words.next().is_some_and(|name| allowed.contains(&name));
    if words.next_if_eq(&"WITH").is_some() {
        // An exception makes another licence of it.
        permitted = false;
        words.next();
    }
    permitted
}

/// Every package that is built here, as cargo knows it without asking anybody.
fn packages() -> Vec<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let told = Command::new(cargo)
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--offline",
            "--filter-platform",
        ])
        .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
        .current_dir(repository())
        .output()
        .expect("cargo runs this test");
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let told: Value = serde_json::from_slice(&told.stdout).expect("cargo tells JSON");
    let packages = told["packages"].as_array().expect("packages").clone();
    assert!(packages.len() > 100, "{} packages", packages.len());
    packages
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";
