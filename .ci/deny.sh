#!/usr/bin/env bash
# Licences, sources, withdrawn and doubled versions of what we depend on, and known holes. For the holes cargo-deny fetches
# its database from the network; `--offline` leaves them out. Without cargo-deny it says so, and how to get it: with
# `--offline` that is no failure, as a test looks at licences and sources as well (tests/it/dependencies.rs).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. .ci/tools.sh

checks=(licenses bans sources)
if [ "${1:-}" != --offline ]; then checks+=(advisories); fi

if ! cargo deny --version >/dev/null 2>&1; then
    echo 'deny: there is no cargo-deny; `cargo install cargo-deny --locked` builds it, which takes some minutes' >&2
    [ "${1:-}" = --offline ] && exit 0
    exit 1
fi
exec cargo deny --log-level warn check --hide-inclusion-graph "${checks[@]}"
