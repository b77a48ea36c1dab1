#!/usr/bin/env bash
# env.sh: prints what a shell must export so that Go builds with the tag gpu: eval "$(scripts/cuda/env.sh)". It finds or fetches CUDA's
# headers and makes the library to link with.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
root="$(cd "$here/../.." && pwd)"
toolkit=$("$here/toolkit.sh" headers)
lib="$root/.cuda/lib"
stamp=$(cat "$here/libcuda.sh" "$here/libcuda.c" "$toolkit/include/cuda.h" | sha256sum)
if [ "$(cat "$lib/stamp" 2>/dev/null)" != "$stamp" ]; then
  "$here/libcuda.sh" "$toolkit/include" "$lib"
  echo "$stamp" >"$lib/stamp"
fi
printf 'export CGO_ENABLED=1 CGO_CFLAGS=%q CGO_LDFLAGS=%q\n' \
  "-O2 -I$here/include -I$here -I$toolkit/include" "-L$lib"
