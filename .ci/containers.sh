#!/usr/bin/env bash
# Says which tests in containers cannot run here and why, and fails then. They need a Docker engine, and the right and
# the means to shape a container's link: netem, or tbf and netfilter's queues (tests/containers/link.rs).
set -euo pipefail

missing() { printf 'containers: %s; tests/containers are left out\n' "$1" >&2; exit 1; }

[ "$(id -u)" = 0 ] || missing 'not root, who alone shapes links'
for tool in docker nsenter unshare tc; do
    command -v "$tool" >/dev/null || missing "there is no $tool"
done
timeout 20 docker info >/dev/null 2>&1 || missing 'no Docker engine answers'

probe() { unshare --net sh -ec "ip link set lo up; $1" >/dev/null 2>&1; }
netem='tc qdisc add dev lo root netem delay 10ms loss 1% rate 1000mbit'
parts='tc qdisc add dev lo root tbf rate 1000mbit burst 256kb latency 50ms
iptables -t raw -A PREROUTING -m statistic --mode random --probability 0.01 -j DROP
iptables -t raw -A PREROUTING -j NFQUEUE --queue-num 0'
if probe "$netem"; then
    echo 'containers: links are shaped by netem'
elif probe "$parts"; then
    echo 'containers: the kernel has no netem; links are shaped by tbf and netfilter'
else
    missing 'the kernel has neither netem nor tbf with iptables statistic and NFQUEUE'
fi
