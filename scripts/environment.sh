# Sourced by run_cross_encoder_search.sh and tests/run.sh: sets PYTHON to an interpreter that has the project's packages.
#
# The active virtual environment is used where there is one, else .venv in the project folder, made by uv or by
# venv + pip. A requirements file is installed once per content: its hash is kept in the environment.

find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 python; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "ERROR: Python 3.11 or later is needed, and none was found. Install it, or install uv, which brings its own." >&2
    return 2
}

prepare_environment() {  # project folder, requirements files ...
    local project="$1" base hash stamp wanted file
    shift
    if [[ -n "${VIRTUAL_ENV:-}" && -x "$VIRTUAL_ENV/bin/python" ]]; then
        base="$VIRTUAL_ENV"
    else
        base="$project/.venv"
        if [[ ! -x "$base/bin/python" ]]; then
            echo "Making the virtual environment $base ..."
            if command -v uv >/dev/null 2>&1; then
                uv venv --quiet --python '>=3.11' --seed "$base"
            else
                local system
                system="$(find_python)"
                "$system" -m venv "$base"
            fi
        fi
    fi
    PYTHON="$base/bin/python"
    for file in "$@"; do
        # The common file is included by the others, so its content counts too.
        hash="$(cat "$project/requirements-common.txt" "$project/$file" | "$PYTHON" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')"
        stamp="$base/.installed-$file.sha256"
        wanted="$(cat "$stamp" 2>/dev/null || true)"
        if [[ "$hash" != "$wanted" ]]; then
            echo "Installing $file (once; a few minutes) ..."
            if command -v uv >/dev/null 2>&1; then
                uv pip install --quiet --python "$PYTHON" -r "$project/$file"
            else
                "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$project/$file"
            fi
            echo "$hash" >"$stamp"
        fi
    done
    export PYTHON
}
