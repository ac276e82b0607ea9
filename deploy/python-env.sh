#!/usr/bin/env bash
# Makes ./.venv if it is not there, installs the given pinned packages into it, prints its Python.
#   deploy/python-env.sh nats-py==2.16.0
# FLOTILLA_VENV names another folder beside it:
#   FLOTILLA_VENV=.venv-bench deploy/python-env.sh gguf==0.19.0
# Without the venv module it does the same with `pip install --target` and a small wrapper.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
venv=$root/${FLOTILLA_VENV:-.venv}
export PIP_ROOT_USER_ACTION=ignore
python=$venv/bin/python

say() { printf 'python-env: %s\n' "$*" >&2; }

make_with_venv() { python3 -m venv "$venv" >&2 && "$python" -m pip --version >/dev/null 2>&1; }

# The wrapper takes the place of the venv's interpreter: same path, same packages.
make_with_target() {
    python3 -m pip --version >/dev/null 2>&1 || return 1
    mkdir -p "$venv/bin" "$venv/site"
    printf '#!/bin/sh\nPYTHONPATH=%q${PYTHONPATH:+:$PYTHONPATH} exec %q "$@"\n' \
        "$venv/site" "$(command -v python3)" >"$python"
    chmod +x "$python"
}

install() {
    local quiet=(--quiet --disable-pip-version-check --no-input)
    if [ -d "$venv/site" ]; then
        "$python" -m pip install "${quiet[@]}" --upgrade --target "$venv/site" "$@" >&2
        if [ -d "$venv/site/bin" ]; then cp -p "$venv/site/bin/"* "$venv/bin/"; fi
    else
        "$python" -m pip install "${quiet[@]}" "$@" >&2
    fi
}

# Looks in ./.venv alone: what else this Python can import is not ours to rely on.
has_all() {
    "$python" - "$venv" "$@" <<'PY'
import glob, re, sys
from importlib.metadata import distributions

venv, *pins = sys.argv[1:]
folders = [venv + "/site", *glob.glob(venv + "/lib/python*/site-packages")]
# A package writes its own name with "_" or "-", whichever the index does.
plain = lambda pin: re.sub("[-_.]+", "-", pin.partition("==")[0]).lower() + "==" + pin.partition("==")[2]
present = {plain(f"{found.metadata['Name']}=={found.version}") for found in distributions(path=folders)}
sys.exit(0 if present.issuperset(map(plain, pins)) else 1)
PY
}

command -v python3 >/dev/null || { say "no python3; install Python 3"; exit 1; }
# Two set-ups at once would install over each other.
if command -v flock >/dev/null; then
    exec 9>"$venv.lock"
    flock 9
fi
if ! "$python" -c '' 2>/dev/null; then
    say "making $venv"
    rm -rf "$venv"
    make_with_venv || { rm -rf "$venv"; make_with_target; } || {
        rm -rf "$venv"
        say "neither 'python3 -m venv' nor 'python3 -m pip' works; install python3-venv or python3-pip"
        exit 1
    }
fi
if ! has_all "$@"; then
    say "installing $*"
    install "$@" || { say "pip could not install $*; is the package index reachable?"; exit 1; }
fi
printf '%s\n' "$python"
