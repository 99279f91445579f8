# Sourced by run_cross_encoder_search.sh and tests/run.sh: sets PYTHON to an interpreter that has the project's packages.
#
# The active virtual environment is used where there is one, else .venv in the project folder, made by uv or by
# venv + pip. A requirements file is installed once per content: its hash is kept in the environment, and so is the
# name of the one that REQUIREMENTS named last.

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

any_exists() {  # paths; a pattern that matches nothing comes as it was written
    local path
    for path in "$@"; do
        [[ ! -e "$path" ]] || return 0
    done
    return 1
}

is_usable() {  # environment
    [[ -x "$1/bin/python" ]] || return 1
    # pip takes a while to start: it is asked only where nothing has been installed yet.
    any_exists "$1"/.installed-*.sha256 && return
    [[ -f "$1/pyvenv.cfg" ]] || return 1
    command -v uv >/dev/null 2>&1 || "$1/bin/python" -m pip --version >/dev/null 2>&1
}

make_environment() {  # folder; what is there is mended, and removed only where it holds no packages
    local system kept=
    any_exists "$1"/lib/python*/site-packages/* && kept=1
    echo "Making the virtual environment $1 ..."
    rm -f "$1"/.installed-*.sha256
    if command -v uv >/dev/null 2>&1; then
        uv venv --quiet --python '>=3.11' --seed --allow-existing "$1" && return
    else
        system="$(find_python)" || return
        "$system" -m venv "$1" && return
    fi
    if [[ -n "$kept" ]]; then
        echo "ERROR: $1 could not be mended; the lines above say why. Delete that folder, or mend it by hand." >&2
    else
        rm -rf "$1"
        echo "ERROR: $1 could not be made; the lines above say why. Mend that, then give the same command again." >&2
    fi
    return 2
}

remembered_requirements() {  # environment
    if [[ -f "$1/.requirements" ]]; then
        cat "$1/.requirements"
    elif [[ -f "$1/.installed-requirements-gpu.txt.sha256" ]]; then
        # From before the name was kept. Nobody gets the GPU build without asking for it.
        echo requirements-gpu.txt
    else
        echo requirements.txt
    fi
}

was_overwritten() {  # environment: from before the name was kept, with one build of faiss installed over the other
    [[ ! -f "$1/.requirements" && -f "$1/.installed-requirements.txt.sha256" &&
        -f "$1/.installed-requirements-gpu.txt.sha256" ]]
}

# Both builds of faiss own the same files: where the other one is there, pip would overwrite them, and uninstalling it
# afterwards would take them away. So both go.
remove_other_faiss() {  # environment, requirements file
    local other
    case $'\n'"$(cat "$2")" in
        *$'\n'faiss-gpu*) other=faiss_cpu ;;
        *$'\n'faiss-cpu*) other=faiss_gpu ;;
        *) return 0 ;;
    esac
    any_exists "$1"/lib/python*/site-packages/"$other"-*.dist-info || return 0
    echo "Uninstalling the other build of faiss ..."
    if command -v uv >/dev/null 2>&1; then
        uv pip uninstall --quiet --python "$PYTHON" faiss-cpu faiss-gpu
    else
        # Quiet twice: that one of the two is not there is no news.
        "$PYTHON" -m pip uninstall --quiet --quiet --disable-pip-version-check --yes faiss-cpu faiss-gpu
    fi
}

install_requirements() {  # project folder, environment, requirements file
    local stamp="$2/.installed-$3.sha256" hash
    # The common file is included by the others, so its content counts too.
    hash="$(cat "$1/requirements-common.txt" "$1/$3" | "$PYTHON" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')"
    [[ "$hash" != "$(cat "$stamp" 2>/dev/null || true)" ]] || return 0
    remove_other_faiss "$2" "$1/$3"
    echo "Installing $3 (once; a few minutes) ..."
    if command -v uv >/dev/null 2>&1; then
        uv pip install --quiet --python "$PYTHON" -r "$1/$3"
    else
        "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$1/$3"
    fi
    echo "$hash" >"$stamp"
}

prepare_environment() {  # project folder, requirements files beside that of the environment ...
    local project="$1" base remembered main file
    shift
    if [[ -n "${VIRTUAL_ENV:-}" && -x "$VIRTUAL_ENV/bin/python" ]]; then
        base="$VIRTUAL_ENV"
    else
        base="$project/.venv"
        is_usable "$base" || make_environment "$base"
    fi
    export PYTHON="$base/bin/python"
    remembered="$(remembered_requirements "$base")"
    main="${REQUIREMENTS:-$remembered}"
    if [[ ! -f "$project/$main" ]]; then
        echo "ERROR: $project/$main: no such file. Name one that is there: REQUIREMENTS=requirements.txt" >&2
        return 2
    fi
    if [[ -z "${REQUIREMENTS:-}" && "$main" != requirements.txt ]]; then
        echo "The environment was made from $main, which is kept (another: REQUIREMENTS=requirements.txt)."
    fi
    if [[ "$main" != "$remembered" ]] || was_overwritten "$base"; then
        # Until the install is through, no stamp may say that all is there.
        echo "$remembered" >"$base/.requirements"
        rm -f "$base"/.installed-*.sha256
    fi
    for file in "$main" "$@"; do
        install_requirements "$project" "$base" "$file"
    done
    [[ "$main" == "$remembered" ]] || echo "$main" >"$base/.requirements"
}
