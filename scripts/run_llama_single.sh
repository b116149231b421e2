#!/usr/bin/env bash
# One receiver of the Llama family, swept over the sizes of the message, in one table.
#   LATENT_LEN_LIST="16 32" D_Z_LIST="128 256" bash scripts/run_llama_single.sh
#   --hero   Llama-3.1-8B-Instruct on SQuAD (CUDA) in place of the built-in model on invented facts
# Anything else goes to latentwire.cli.run_ablation (--dry-run, --shard 1/4, --override KEY=VALUE, ...).
set -euo pipefail
# shellcheck source=scripts/setup_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env models

choose_config configs/ablation/llama_single.json configs/ablation/llama_single_hero.json "$@"
add_sweep() { # KEY "A B C"
    local values
    values="$(tr -s ' ' ',' <<<"$2")"
    args+=(--sweep "$1=$values")
}
[ -z "${LATENT_LEN_LIST:-}" ] || add_sweep encoder.latent_len "$LATENT_LEN_LIST"
[ -z "${D_Z_LIST:-}" ] || add_sweep encoder.d_z "$D_Z_LIST"
exec python -m latentwire.cli.run_ablation --config "$config" ${args[@]+"${args[@]}"}
