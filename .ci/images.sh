#!/usr/bin/env bash
# Makes the images that deploy/compose.yaml names, out of Debian's packages and the real nats-server, where the registry of
# images is not to be had. Says what is missing, and fails then. An image that is there is left as it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

missing() { printf 'images: %s; tests/deploy is left out\n' "$1" >&2; exit 1; }
have() { [ -n "$(docker images --quiet "$1")" ]; }

[ "$(id -u)" = 0 ] || missing 'not root, who alone can run debootstrap'
command -v docker >/dev/null && timeout 20 docker info >/dev/null 2>&1 || missing 'no Docker engine answers'
docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null || missing 'there is no docker compose'

debian=debian:bookworm-slim
nats=$(sed -n 's/^ *image: "\(nats:[^"]*\)"$/\1/p' deploy/compose.yaml | sort -u)
prometheus=$(sed -n 's/^ *image: "\(prom\/prometheus:[^"]*\)"$/\1/p' deploy/compose.yaml | sort -u)
if have "$debian" && have "$nats" && have "$prometheus"; then exit 0; fi

if ! command -v debootstrap >/dev/null; then
    apt-get install -y -qq debootstrap >/dev/null 2>&1 || missing 'debootstrap cannot be installed'
fi
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=busybox,prometheus --exclude=init,systemd bookworm "$root/debian" >"$root/log" 2>&1 ||
    { tail -n 5 "$root/log" >&2; missing 'debootstrap failed'; }
server=$(deploy/setup-nats-server.sh)
install -D "$server" "$root/debian/usr/local/bin/nats-server"
# As in the images that they stand for: programs where their entry points look for them, and busybox's wget.
ln -s busybox "$root/debian/bin/wget"
ln -s ../usr/bin/prometheus "$root/debian/bin/prometheus" 2>/dev/null || true
install -d -o 65534 -g 65534 "$root/debian/prometheus"
rm -rf "$root"/debian/var/cache/apt/archives/*.deb "$root"/debian/usr/share/{doc,man,locale}

import() {
    local image=$1
    shift
    have "$image" || tar -C "$root/debian" -c . | docker import "$@" - "$image" >/dev/null
}
import "$debian" --change 'CMD ["bash"]'
import "$nats" --change 'ENTRYPOINT ["/usr/local/bin/nats-server"]' --change 'EXPOSE 4222'
import "$prometheus" --change 'ENTRYPOINT ["/usr/bin/prometheus"]' --change 'USER nobody' --change 'VOLUME /prometheus' \
    --change 'WORKDIR /prometheus'
echo "images: $debian, $nats and $prometheus were made here"
