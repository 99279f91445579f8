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

# tee outlives every signal, so that the last lines reach the log; it ends with its input.
exec 3> >(trap '' INT TERM HUP && exec tee "$log")
tee=$!
# The work is a job with a process group of its own, to which signals are passed on; the shell waits for its end.
set -m
(
    trap 'exit 143' TERM
    trap 'exit 130' INT
    set -e
    run "$@" 3>&-
) >&3 2>&1 3>&- &
job=$!
set +em
pass_on() {
    signalled=1
    kill "-$1" -- "-$job" 2>/dev/null
}
trap 'pass_on TERM' TERM HUP
trap 'pass_on INT' INT
while true; do
    signalled=
    wait "$job"
    code=$?
    # A trapped signal ends the wait, not the job.
    [[ -n "$signalled" ]] || break
done
exec 3>&-
wait "$tee" 2>/dev/null
exit "$code"
