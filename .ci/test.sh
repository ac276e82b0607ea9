#!/usr/bin/env bash
# The whole test: format, lints, purity of the cores, doc tests, then every test of the workspace.
# Sets up what the tests need. The test runner comes last, so that its summary closes the output.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. .ci/tools.sh

NATS_SERVER=$(deploy/setup-nats-server.sh)
FLOTILLA_TEST_PYTHON=$(deploy/python-env.sh nats-py==2.16.0 grafana-foundation-sdk==1769699241)
export NATS_SERVER FLOTILLA_TEST_PYTHON
FLOTILLA_TEST_MINILM=$(.ci/minilm.sh)
if [ -n "$FLOTILLA_TEST_MINILM" ]; then export FLOTILLA_TEST_MINILM; else unset FLOTILLA_TEST_MINILM; fi
FLOTILLA_TEST_PROMTOOL=$(.ci/promtool.sh)
if [ -n "$FLOTILLA_TEST_PROMTOOL" ]; then export FLOTILLA_TEST_PROMTOOL; else unset FLOTILLA_TEST_PROMTOOL; fi
FLOTILLA_TEST_GO_CLIENT=$(.ci/go-client.sh)
if [ -n "$FLOTILLA_TEST_GO_CLIENT" ]; then export FLOTILLA_TEST_GO_CLIENT; else unset FLOTILLA_TEST_GO_CLIENT; fi
ensure_components
choose_runner
# Tests that this machine cannot run are left out, and it is said which.
.ci/containers.sh || leave_out containers links::
.ci/images.sh || leave_out deploy of_containers

step() { printf '\n== %s\n' "$*"; "$@"; }
step cargo fmt --all --check
step cargo clippy --workspace --all-targets -- -D warnings
step .ci/core-purity.sh
step .ci/deny.sh --offline
step env RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --quiet
# Integration tests start the program itself.
step cargo build --workspace --bins
step cargo test --workspace --doc --quiet
step "${runner[@]}" --workspace "${chosen[@]}"
