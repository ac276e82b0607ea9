#!/usr/bin/env bash
# The fast loop: format, lints and the tests that need no other process.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. .ci/tools.sh
ensure_components
choose_runner

cargo fmt --all --check
cargo clippy --workspace --exclude flotilla-tests --all-targets -- -D warnings
"${runner[@]}" --workspace --exclude flotilla-tests
