#!/usr/bin/env bash
# What the input embeddings can carry: the text's own embeddings in place of the text (embedding_replay, "raw"; equal to
# the text), the same behind an anchor text (embedding_anchor), and the trained embedding reader (latent, "adapter").
#   --hero   Llama-3.1-8B-Instruct and Qwen2.5-7B-Instruct on SQuAD (CUDA)
# Anything else goes to latentwire.cli.train.
set -euo pipefail
# shellcheck source=scripts/setup_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env models

choose_config configs/baseline/embedding_baselines.json configs/hero/embedding_baselines.json "$@"
exec python -m latentwire.cli.train --config "$config" ${args[@]+"${args[@]}"}
