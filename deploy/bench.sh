#!/usr/bin/env bash
# Builds for speed and runs `flotilla bench`, with what a benchmark is compared with at hand.
#   deploy/bench.sh                     every benchmark
#   deploy/bench.sh engine --threads 2  one of them, with arguments of its own
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. .ci/tools.sh
target=${CARGO_TARGET_DIR:-target}
flotilla=$target/release/flotilla

say() { printf 'bench: %s\n' "$*" >&2; }

bench_dispatch() {
    NATS_SERVER=$(deploy/setup-nats-server.sh)
    export NATS_SERVER
    "$flotilla" bench dispatch "$@"
}

# The models' weights are written once and kept.
bench_swap() {
    NATS_SERVER=$(deploy/setup-nats-server.sh)
    export NATS_SERVER
    "$flotilla" bench swap --folder "$target/bench-models/swap" "$@"
}

bench_weights() {
    NATS_SERVER=$(deploy/setup-nats-server.sh)
    export NATS_SERVER
    "$flotilla" bench weights "$@"
}

# Real processes are killed: what they said goes to a file, and is shown when the benchmark fails.
bench_pauses() {
    local log=$target/pauses.log
    NATS_SERVER=$(deploy/setup-nats-server.sh)
    export NATS_SERVER
    cargo build --release -p flotilla-tests --bin pauses
    "$target/release/pauses" "$@" 2>"$log" || {
        tail -n 40 "$log" >&2
        return 1
    }
}

bench_decide() { "$flotilla" bench decide "$@"; }

# Placement policies against each other and the bound, on the traces that are built in.
bench_simulate() {
    local trace traces=("$@")
    [ $# -gt 0 ] || traces=(composite overload long-tail)
    for trace in "${traces[@]}"; do
        "$flotilla" simulate "$trace" --policy all
    done
}

# llama.cpp is compiled for this very processor, which takes some minutes the first time.
bench_engine() {
    local python peer=()
    if python=$(CMAKE_ARGS='-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF' FLOTILLA_VENV=.venv-bench \
        deploy/python-env.sh llama-cpp-python==0.3.36 gguf==0.19.0); then
        peer=(--llama-cpp "$python")
    else
        say "llama.cpp cannot be had (see above); the engine is compared with the memory alone"
    fi
    "$flotilla" bench engine --folder "$target/bench-models" "${peer[@]}" "$@"
}

cargo build --release -p flotilla-cli
if [ $# = 0 ]; then
    for name in dispatch decide swap weights pauses engine simulate; do
        say "$name"
        "bench_$name"
    done
    exit 0
fi
name=$1
shift
case $name in
    dispatch | decide | swap | weights | pauses | engine | simulate) "bench_$name" "$@" ;;
    *) exec "$flotilla" bench "$name" "$@" ;;
esac
