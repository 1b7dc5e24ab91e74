#!/usr/bin/env bash
# Solve requirements.in in a fresh virtual environment and write down what came out: the lock, and
# the conda environment of the rules, which installs the same versions.
set -euo pipefail
cd "$(dirname "$0")"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/venv"
# torch first: a later resolution would take the newest build instead of the machine's.
"$scratch/venv/bin/pip" install --quiet "$(grep '^torch==' requirements.in)"
"$scratch/venv/bin/pip" install --quiet -r requirements.in
{
    echo "# Made by envs/lock.sh from requirements.in: do not edit, run 'make lock'."
    # A local build label (+cpu) names a build that only this machine has.
    "$scratch/venv/bin/pip" freeze --all --exclude pip | sed 's/+[a-z0-9.]*$//'
} > requirements.lock
{
    echo "# Made by envs/lock.sh from requirements.in: do not edit, run 'make lock'."
    echo "channels:"
    echo "  - conda-forge"
    echo "dependencies:"
    echo "  - python=3.11"
    echo "  - pip"
    echo "  - pip:"
    grep -v '^#' requirements.lock | sed 's/^/      - /'
} > iskd.yaml
