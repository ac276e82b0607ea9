//! What the image is built from in a container, as far as that can be seen without one.

use std::path::Path;

use anyhow::{Context, Result};

fn read(path: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

fn quoted(line: &str) -> Option<&str> {
    line.split('"').nth(1)
}

#[test]
fn image_is_built_by_the_rust_of_the_workspace() -> Result<()> {
    let (dockerfile, manifest) = (read("deploy/Dockerfile")?, read("Cargo.toml")?);
    let found = dockerfile
        .lines()
        .find_map(|line| line.strip_prefix("FROM rust:"));
    let rust = manifest.lines().find(|line| line.starts_with("rust-version"));
    let rust = rust.and_then(quoted).context("a rust-version")?;
    let found = found.context("a stage that builds")?;
    assert!(found.starts_with(&format!("{rust}.")), "{found} is not {rust}");
    Ok(())
}

/// Whoever adds a crate in a folder of its own would find out only where the image is built.
#[test]
fn image_is_built_from_all_folders_of_crates() -> Result<()> {
    let (manifest, ignored) = (read("Cargo.toml")?, read(".dockerignore")?);
    let members = manifest.split("members = [").nth(1).context("members")?;
    let members = members.split(']').next().context("their end")?;
    for member in members.lines().filter_map(quoted) {
        let folder = member.split('/').next().context("a folder")?;
        assert!(
            ignored.lines().any(|line| line == format!("!{folder}")),
            ".dockerignore keeps {folder} out"
        );
    }
    Ok(())
}
