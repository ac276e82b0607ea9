#!/usr/bin/env bash
# Builds for speed and runs `flotilla bench` with the given arguments, with a real nats-server at hand.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. .ci/tools.sh
NATS_SERVER=$(deploy/setup-nats-server.sh)
export NATS_SERVER
cargo build --release -p flotilla-cli
exec "${CARGO_TARGET_DIR:-target}/release/flotilla" bench "$@"
