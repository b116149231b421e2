#!/usr/bin/env bash
# The whole way to a checkpoint that can be passed on: train and evaluate, export, evaluate the export, write its card.
#   CONFIG=configs/default.json EVAL_PATH=squad_dev.json RUN=runs/default OUT=checkpoints/mine \
#       DATA_LICENCE="SQuAD 1.1, CC BY-SA 4.0" bash scripts/run_pipeline.sh --data_path squad_train.json
#   --hero      Llama-3.1-8B-Instruct and Qwen2.5-7B-Instruct on SQuAD (CUDA)
#   --dry-run   print the configuration of the training and stop
# Anything else goes to latentwire.cli.train.
set -euo pipefail
# shellcheck source=scripts/setup_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env models

choose_config "${CONFIG:-configs/smoke/lora.json}" configs/hero/base.json "$@"
run="${RUN:-runs/pipeline}"
out="${OUT:-$run/export}"
held_out="${EVAL_PATH:-}"
python -m latentwire.cli.train --config "$config" --out_dir "$run" ${held_out:+--eval_path "$held_out"} \
    ${args[@]+"${args[@]}"}
case " ${args[*]-} " in *" --dry-run "*) exit ;; esac
export=(python -m latentwire export --ckpt "$run" --out_dir "$out" ${DATA_LICENCE:+--data_licence "$DATA_LICENCE"})
"${export[@]}"
# An exported checkpoint knows nothing of this machine: where local models and the held-out file lie, and its devices.
mapfile -t here < <(
    python - "$run/config.json" "$out/checkpoint.json" <<'PYTHON'
import json, sys
here, there = (json.load(open(name)) for name in sys.argv[1:])
for section in ("model", "encoder", "system", "data"):
    for key in ["eval_path"] if section == "data" else here[section]:
        if there["config"][section].get(key) != here[section][key]:
            print(f"--override={section}.{key}={json.dumps(here[section][key])}")
PYTHON
)
python -m latentwire.cli.eval --ckpt "$out" --out_dir "$run/exported" ${held_out:+--data_path "$held_out"} \
    ${here[@]+"${here[@]}"}
"${export[@]}" --results "$run/exported/eval.json"
python scripts/compare_baselines.py --latent "$run/exported/eval.json" --text "$run/eval.json"
