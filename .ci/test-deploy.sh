#!/usr/bin/env bash
# The compose files with this machine's Docker engine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. .ci/tools.sh

NATS_SERVER=$(deploy/setup-nats-server.sh)
export NATS_SERVER
.ci/images.sh
cargo build -p flotilla-cli
exec cargo test -p flotilla-tests --test deploy
