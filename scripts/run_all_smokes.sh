#!/usr/bin/env bash
# Train and evaluate every configuration of configs/smoke, one after the other; a list of what passed and failed at the end.
# Arguments go to latentwire.cli.train (--dry-run, --fresh, --override KEY=VALUE, ...).
set -euo pipefail
# shellcheck source=scripts/setup_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env models

summary=()
failed=0
for config in configs/smoke/*.json; do
    echo "== $config"
    SECONDS=0
    python -m latentwire.cli.train --config "$config" --tag smoke "$@" && status=0 || status=$?
    [ "$status" != 130 ] || exit 130 # Ctrl-C means all of it
    [ "$status" = 0 ] || failed=1
    summary+=("$([ "$status" = 0 ] && echo passed || echo FAILED) $config, $SECONDS s")
done
printf '%s\n' "${summary[@]}"
exit "$failed"
