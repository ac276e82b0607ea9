#!/usr/bin/env bash
# A core decides and does nothing else: no async, clock, environment, file, network or thread.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cores=(dispatcher/core dispatcher/profiling dispatcher/simulator worker/core worker/weights/core protocol protocol/profile)
crates='^(tokio|async-nats|cudarc|figment|metrics|tracing)(-[a-z0-9-]+)? v'
calls='(SystemTime|Instant)::now|\bstd::(env|fs|net|thread)\b|\bstd::\{[^}]*\b(env|fs|net|thread)\b'
impure=0

for core in "${cores[@]}"; do
    tree=$(cargo tree --quiet --manifest-path "$core/Cargo.toml" --edges normal --prefix none)
    if found=$(grep -E "$crates" <<<"$tree" | sort -u); then
        printf '%s must not depend on:\n%s\n' "$core" "$found" >&2
        impure=1
    fi
    if found=$(grep -rnE --include='*.rs' "$calls" "$core/src"); then
        printf '%s must not use:\n%s\n' "$core" "$found" >&2
        impure=1
    fi
done
[ "$impure" = 0 ] && printf 'core purity: %s are pure\n' "${cores[*]}"
exit "$impure"
