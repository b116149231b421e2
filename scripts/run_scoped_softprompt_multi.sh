#!/usr/bin/env bash
# One message for two receivers, read as soft prompts at the input, with LoRA scoped to the attention of the first layers.
#   --hero   Llama-3.1-8B-Instruct and Qwen2.5-7B-Instruct on SQuAD (CUDA)
# Anything else goes to latentwire.cli.train.
set -euo pipefail
# shellcheck source=scripts/setup_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env models

choose_config configs/softprompt_multi.json configs/hero/softprompt_multi.json "$@"
exec python -m latentwire.cli.train --config "$config" ${args[@]+"${args[@]}"}
