#!/usr/bin/env bash
# One message, two language models: the main job from a bare checkout. Arguments go to `latentwire demo`.
set -euo pipefail
# shellcheck source=scripts/setup_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env models
exec python -m latentwire demo "$@"
