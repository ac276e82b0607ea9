#!/usr/bin/env bash
# Writes deploy/.env with a password for each user of deploy/nats/users.conf, unless it is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

[ ! -e .env ] || exit 0
(
    umask 077
    for user in DISPATCHER WORKER OPERATOR CLIENT; do
        # Begins with a letter: nats-server reads what looks like a number as one.
        printf 'FLOTILLA_%s_PASSWORD=p%s\n' "$user" "$(head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n')"
    done >.env
)
echo 'wrote passwords to deploy/.env' >&2
