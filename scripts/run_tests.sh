#!/usr/bin/env bash
# Run the linters and all tests; makes its own .venv where there is none.
#   --quick     only the fast tests, without linters
#   --coverage  also measure coverage, which must be 90 % of all lines
# Anything else goes to pytest.
set -euo pipefail
# shellcheck source=scripts/setup_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

quick=0
args=()
for word in "$@"; do
    case "$word" in
        --quick) quick=1 ;;
        --coverage) args+=(--cov=latentwire --cov-report=term-missing:skip-covered --cov-fail-under=90) ;;
        *) args+=("$word") ;;
    esac
done
setup_env dev

export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
if [ "$quick" = 1 ]; then
    exec python -m pytest -q -n auto -m "not slow" ${args[@]+"${args[@]}"}
fi
ruff check .
ruff format --check .
mypy
lint-imports
python -m pytest -n auto ${args[@]+"${args[@]}"}
