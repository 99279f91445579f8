#!/usr/bin/env bash
# The one command: environment, preparation as far as it is missing or stale, then the search.
# Arguments go to scripts/03_run_search.py (--help lists them). REQUIREMENTS=requirements-gpu.txt picks another file,
# and the environment keeps to it.
set -euo pipefail

project="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$project/scripts/environment.sh"

lock_log() {  # Whether fd 9 is now this run's alone; the kernel frees it when the last process that holds it ends.
    local python="$project/.venv/bin/python"
    if command -v flock >/dev/null 2>&1; then
        flock -n 9
        return
    fi
    [[ -x "$python" ]] || python="$(find_python 2>/dev/null)" || return 0 # without a Python no other run has got this far
    "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null
}

# Sets log and opens it as fd 9: the first name that no other run is writing to. It is emptied only then.
choose_log() {
    local number
    for number in "" -2 -3 -4 -5 -6 -7 -8 -9; do
        log="$project/search_cross_encoder$number.log"
        if ! exec 9>>"$log"; then
            echo "ERROR: $log cannot be written. Make the project folder writable." >&2
            exit 2
        fi
        if lock_log; then
            : >"$log"
            return
        fi
    done
    echo "ERROR: search_cross_encoder.log to search_cross_encoder-9.log are in use by other runs. Let one end." >&2
    exit 2
}

run() {
    if [[ "$log" != "$project/search_cross_encoder.log" ]]; then
        echo "Another run is writing search_cross_encoder.log; the log of this one is ${log##*/}."
    fi
    prepare_environment "$project"
    "$PYTHON" "$project/scripts/01_preprocess.py" --if-stale "$@"
    "$PYTHON" "$project/scripts/02_build_indices.py" --if-stale "$@"
    "$PYTHON" "$project/scripts/03_run_search.py" "$@"
}

export SEARCH_OUTPUT_IS_LOGGED=1 PYTHONUNBUFFERED=1 PYTHONIOENCODING=utf-8

for argument in "$@"; do
    # Before the log is chosen: that of the last run stays.
    if [[ "$argument" == "-h" || "$argument" == "--help" ]]; then
        prepare_environment "$project"
        exec "$PYTHON" "$project/scripts/03_run_search.py" --help
    fi
done

choose_log
# tee outlives every signal, so that the last lines reach the log; it ends with its input, and the lock with it.
exec 3> >(trap '' INT TERM HUP && exec tee -a "$log")
tee=$!
# The work is a job with a process group of its own, to which signals are passed on; the shell waits for its end.
set -m
(
    trap 'exit 143' TERM
    trap 'exit 130' INT
    set -e
    run "$@" 3>&- 9>&-
) >&3 2>&1 3>&- 9>&- &
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
