#!/usr/bin/env bash
# toolkit.sh headers|nvcc: prints the folder of a CUDA toolkit that has cuda.h of CUDA 12 or newer, or also a compiler from 12.8, the
# first that knows every card we compile for, to 13.0, the last whose PTX the driver 580 takes. It looks at $CUDA_HOME, the nvcc on the
# path and /usr/local/cuda; else it installs the compiler as Python wheels in a virtual environment, $CUDA_VENV or .cuda/venv.
set -euo pipefail
need="${1:?usage: toolkit.sh headers|nvcc}"
root="$(cd "$(dirname "$0")/../.." && pwd)"

has_headers() { # CUDA 12.0 calls itself 12000
  local version
  version=$(sed -n 's/^#define CUDA_VERSION //p' "$1/include/cuda.h" 2>/dev/null | head -1)
  [ "${version:-0}" -ge 12000 ]
}
has_nvcc() {
  local version
  version=$("$1/bin/nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
  # shellcheck disable=SC2086
  set -- ${version:-0 0}
  [ "$(($1 * 100 + $2))" -ge 1208 ] && [ "$(($1 * 100 + $2))" -le 1300 ]
}
fits() { [ -n "$1" ] && has_headers "$1" && { [ "$need" = headers ] || has_nvcc "$1"; }; }

if [ -z "${CUDA_VENV:-}" ]; then
  onpath=$(command -v nvcc || true)
  [ -z "$onpath" ] || onpath=$(dirname "$(dirname "$(readlink -f "$onpath")")")
  for folder in "${CUDA_HOME:-}" "$onpath" /usr/local/cuda; do
    if fits "$folder"; then
      echo "$folder"
      exit
    fi
  done
fi

venv="${CUDA_VENV:-$root/.cuda/venv}"
wheels() { echo "$venv"/lib/python3*/site-packages/nvidia/cu13; }
if ! fits "$(wheels)"; then
  echo "no CUDA toolkit that fits: installing nvcc 13.0 as Python wheels in $venv" >&2
  python3 -m venv "$venv" >&2
  "$venv/bin/pip" install -q nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 \
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 >&2
fi
fits "$(wheels)" || { echo "$venv: no usable toolkit after installation; remove that folder and try again" >&2; exit 1; }
wheels
