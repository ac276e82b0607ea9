#!/usr/bin/env bash
# Prints the path of promtool: the one on PATH, or that of Debian's package, unpacked once without starting a server.
# Where it cannot be had it says so and prints nothing: the test that tries the alerts is left out then.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=$PWD/target/prometheus

if command -v promtool; then exit 0; fi
if [ ! -x "$folder/usr/bin/promtool" ]; then
    mkdir -p "$folder"
    unpack() (
        cd "$folder"
        apt-get update -qq && apt-get download -qq prometheus && dpkg -x prometheus_*.deb . && rm prometheus_*.deb
    )
    if ! command -v apt-get >/dev/null || ! unpack >&2; then
        echo "promtool: Debian's package prometheus cannot be had here; the alerts are not tried" >&2
        exit 0
    fi
fi
printf '%s\n' "$folder/usr/bin/promtool"
