#!/usr/bin/env bash
# Builds docs/clients/client.go with the Go and the nats.go of Debian's packages (golang-go, golang-github-nats-io-go-nats-dev)
# and prints the program's path. Nothing is installed: where they are not there it says so and prints nothing, and the
# program is not run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
program=$PWD/target/go-client
library=/usr/share/gocode

missing() { echo "go-client: $1; docs/clients/client.go is not run" >&2; exit 0; }

command -v go >/dev/null || missing 'there is no go'
[ -d "$library/src/github.com/nats-io/nats.go" ] || missing "there is no nats.go in $library"
mkdir -p target
GO111MODULE=off GOPATH=$library GOFLAGS= go build -o "$program" docs/clients/client.go >&2 || missing 'it cannot be built here'
printf '%s\n' "$program"
