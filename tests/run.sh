#!/usr/bin/env bash
# The test command: environment, lint, types, quick tests. Arguments go to pytest.
set -euo pipefail

project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$project/scripts/environment.sh"
cd "$project"

prepare_environment "$project" requirements-dev.txt requirements-int8.txt
echo "== lint"
"$PYTHON" -m ruff format --check .
"$PYTHON" -m ruff check .
echo "== types"
"$PYTHON" -m mypy
echo "== tests"
# One process per core, one thread each.
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -n 2 -m "not slow" "$@"
