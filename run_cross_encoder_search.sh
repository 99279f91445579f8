#!/usr/bin/env bash
# The one command: environment, preparation as far as it is missing or stale, then the search.
# Arguments go to scripts/03_run_search.py (--help lists them). REQUIREMENTS=requirements-gpu.txt picks another file.
set -euo pipefail

project="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$project/scripts/environment.sh"
log="$project/search_cross_encoder.log"

run() {
    prepare_environment "$project" "${REQUIREMENTS:-requirements.txt}"
    local argument
    for argument in "$@"; do
        if [[ "$argument" == "-h" || "$argument" == "--help" ]]; then
            exec "$PYTHON" "$project/scripts/03_run_search.py" --help
        fi
    done
    "$PYTHON" "$project/scripts/01_preprocess.py" --if-stale "$@"
    "$PYTHON" "$project/scripts/02_build_indices.py" --if-stale "$@"
    "$PYTHON" "$project/scripts/03_run_search.py" "$@"
}

export SEARCH_OUTPUT_IS_LOGGED=1 PYTHONUNBUFFERED=1 PYTHONIOENCODING=utf-8
# tee outlives an interrupt, so that the last lines reach the log.
set +e
(
    set -e
    run "$@"
) 2>&1 | tee -i "$log"
exit "${PIPESTATUS[0]}"
