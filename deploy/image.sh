#!/usr/bin/env bash
# Makes the image flotilla:<version> and flotilla:latest of a program that is built on this machine, and deploy/.env with
# passwords where there is none. FLOTILLA_BINARY names a program that was built already; it must run on Debian 12.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'image: %s\n' "$*" >&2; }

command -v docker >/dev/null || { say 'there is no docker; install Docker Engine first'; exit 1; }
binary=${FLOTILLA_BINARY:-}
if [ -z "$binary" ]; then
    cargo build --release -p flotilla-cli
    binary=${CARGO_TARGET_DIR:-target}/release/flotilla
fi
authorities=/etc/ssl/certs/ca-certificates.crt
[ -f "$authorities" ] || { say "there is no $authorities; install the package ca-certificates"; exit 1; }

context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
mkdir "$context/cli"
cp deploy/Dockerfile "$authorities" "$context/"
cp "$binary" "$context/flotilla"
cp -r cli/demo-models "$context/cli/"
rm -f "$context/cli/demo-models/train.py"
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
# The builder's own notice about its successor is of no use to anybody here.
DOCKER_BUILDKIT=${DOCKER_BUILDKIT:-0} docker build --quiet --target prebuilt -t "flotilla:$version" -t flotilla:latest "$context" >/dev/null
if ! docker run --rm --network none flotilla:latest --version; then
    say 'the program does not run in the image: it was built on a newer system than Debian 12; build it there, or on one as old'
    exit 1
fi

deploy/passwords.sh
