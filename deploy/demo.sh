#!/usr/bin/env bash
# Starts a whole fleet on this machine, asks each demonstration model a question whose answer is
# known, and leaves the fleet running until Ctrl-C. With DEMO_EXIT=1 it stops the fleet at once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. .ci/tools.sh

log=.flotilla/demo.log
ready_within_s=60
# A worker may take 25 s to drain.
stopped_within_s=40
fleet=

say() { printf '%s\n' "$*"; }

start_fleet() {
    mkdir -p "$(dirname "$log")"
    # Job control gives the fleet a process group of its own: Ctrl-C reaches it once, through us.
    set -m
    "$flotilla" up --nats-server "$nats_server" >"$log" 2>&1 </dev/null &
    fleet=$!
    set +m
}

fleet_runs() { kill -0 "$fleet" 2>/dev/null; }

fail_with_log() {
    say "demo: $1; the end of $log:"
    tail -n 20 "$log"
    exit 1
}

has_worker() {
    "$flotilla" ps --json 2>/dev/null | python3 -c '
import json, sys
sys.exit(0 if json.load(sys.stdin)["workers"] else 1)' 2>/dev/null
}

wait_for_worker() {
    local deadline=$((SECONDS + ready_within_s))
    until has_worker; do
        fleet_runs || fail_with_log "the fleet ended"
        [ "$SECONDS" -lt "$deadline" ] || fail_with_log "no worker within $ready_within_s s"
        sleep 0.2
    done
}

# Asks a model, compares, prints; false when the answer is wrong.
ask() {
    local model=$1 prompt=$2 expected=$3 answer verdict=right
    answer=$("$flotilla" run "$model" "$prompt" </dev/null) || answer="(no answer)"
    answer="${answer#"${answer%%[![:space:]]*}"}"
    answer="${answer%"${answer##*[![:space:]]}"}"
    [ "$answer" = "$expected" ] || verdict="wrong, expected $expected"
    printf '  %-9s %-16s %-10s %s\n' "$model" "$prompt" "$answer" "$verdict"
    [ "$verdict" = right ]
}

stop_fleet() {
    local status=$? deadline=$((SECONDS + stopped_within_s))
    trap - EXIT
    [ -n "$fleet" ] || exit "$status"
    # Another Ctrl-C while it drains is passed on: the fleet then stops without waiting.
    trap 'kill -INT "$fleet" 2>/dev/null || true' INT TERM
    kill -INT "$fleet" 2>/dev/null || true
    while fleet_runs && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.1; done
    if kill -0 -- "-$fleet" 2>/dev/null; then
        say "demo: the fleet left processes behind after $stopped_within_s s at most; killing them"
        kill -KILL -- "-$fleet" 2>/dev/null || true
        status=1
    fi
    wait "$fleet" 2>/dev/null || true
    exit "$status"
}

cargo build -p flotilla-cli
flotilla=${CARGO_TARGET_DIR:-target}/debug/flotilla
nats_server=$(deploy/setup-nats-server.sh)

trap stop_fleet EXIT
trap 'exit 130' INT TERM
start_fleet
say "Starting a fleet (log: $log) ..."
wait_for_worker
say "Three models, three questions:"
wrong=0
ask adder '123+456=' 579 || wrong=1
ask sorter 'sort 52914=' 12459 || wrong=1
ask reverser 'reverse hello=' olleh || wrong=1
[ "$wrong" = 0 ] || fail_with_log "an answer is wrong"

if [ "${DEMO_EXIT:-}" = 1 ]; then
    say "Stopping the fleet."
    exit 0
fi
say "The fleet runs. Try, in another terminal:  $flotilla run adder '7+8='"
say "Ctrl-C drains and stops it."
trap 'exit 0' INT TERM
wait "$fleet" || fail_with_log "the fleet ended"
