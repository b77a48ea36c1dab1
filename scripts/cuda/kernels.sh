#!/usr/bin/env bash
# kernels.sh: compiles kernels/cuda/*.cu into kernels/cuda/compiled, only what changed; kernels.sh --check says what that would be and fails if
# there is anything. Of each NAME.cu there come
#   NAME.ptx     for the driver to compile, on every card since A100
#   NAME.fatbin  compiled code for A100, H100, B200 and RTX 50, and the cards that run those
#   NAME.txt     the SHA-256 of the sources and of these files, and the kernels with the bytes of each parameter
# NAME_sm90.cu is for Hopper alone and may use what no other card has.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
cd "$here/../../kernels/cuda"

sources() { # the files that make up $1, each once
  local file
  printf '%s\n' "$1"
  for file in $(sed -n 's/^ *#include "\(.*\)".*/\1/p' "$1"); do
    [ ! -f "$file" ] || sources "$file"
  done
}
hashes() { # "source FILE SHA-256" for all files that make up $1
  sources "$1" | LC_ALL=C sort -u | while read -r file; do
    printf 'source %s %s\n' "$file" "$(sha256sum <"$file" | cut -d' ' -f1)"
  done
}
output() { printf 'output %s %s\n' "$1" "$(sha256sum <"compiled/$1" | cut -d' ' -f1)"; }
fresh() {
  [ -f "compiled/$1.ptx" ] && [ -f "compiled/$1.fatbin" ] &&
    [ "$(grep -E '^(source|output) ' "compiled/$1.txt" 2>/dev/null)" = "$(hashes "$1.cu" && output "$1.ptx" && output "$1.fatbin")" ]
}

compile() { # one file, named without its ending
  local name=$1 target=compute_80 codes="80 90 100 120" level=-O0 code gencode=()
  temp=$(mktemp -d)
  trap 'rm -rf "$temp"' EXIT
  # Unoptimized, wgmma is taken too, but with a page of complaints.
  case "$name" in *_sm90) target=compute_90a codes=90a level=-O3 ;; esac
  for code in $codes; do gencode+=(-gencode "arch=compute_$code,code=sm_$code"); done
  "$nvcc" -std=c++17 -O3 -ptx -arch="$target" -o "$temp/$name.ptx" "$name.cu"
  # Declared as old as drivers of CUDA 12.0 take it, without the one hint that is newer; the assembler refuses it if anything else is.
  sed -i -e 's/^\.version .*/.version 8.0/' -e '/^\/\/ Compiler Build ID/d' -e '/\.pragma "used_bytes_mask/d' "$temp/$name.ptx"
  "$(dirname "$nvcc")/ptxas" -arch="sm_${target#compute_}" "$level" -o "$temp/check.cubin" "$temp/$name.ptx"
  "$nvcc" -std=c++17 -O3 -fatbin -Xfatbin -compress-all "${gencode[@]}" -o "$temp/$name.fatbin" "$name.cu"
  mv "$temp/$name.ptx" "$temp/$name.fatbin" compiled/
  {
    hashes "$name.cu"
    output "$name.ptx"
    output "$name.fatbin"
    awk '
      /^\.visible \.entry/ { kernel = $3; sub(/\(.*/, "", kernel); line = "kernel " kernel }
      kernel && /^[ \t]*\.param/ {
        size = 0
        if (match($0, /\[[0-9]+\]/)) size = substr($0, RSTART + 1, RLENGTH - 2)
        if (match($0, /\.param( \.align [0-9]+)? \.[busf][0-9]+/)) {
          type = substr($0, RSTART, RLENGTH); sub(/.*\.[busf]/, "", type)
          size = (size ? size : 1) * type / 8
        }
        line = line " " size
      }
      kernel && /\)/ { print line; kernel = "" }' "compiled/$name.ptx" | LC_ALL=C sort
  } >"$temp/$name.txt"
  mv "$temp/$name.txt" compiled/
  echo "compiled $name.cu"
}

if [ "${1:-}" = --one ]; then
  compile "$2"
  exit
fi

stale=()
for file in *.cu; do
  fresh "${file%.cu}" || stale+=("${file%.cu}")
done
for file in compiled/*.txt; do
  name=$(basename "$file" .txt)
  [ -f "$name.cu" ] || [ ! -f "$file" ] || stale+=("$name")
done
[ ${#stale[@]} -gt 0 ] || exit 0
if [ "${1:-}" = --check ]; then
  printf 'kernels/cuda/%s.cu has changed since it was compiled: run scripts/cuda/kernels.sh\n' "${stale[@]}" >&2
  exit 1
fi

for name in "${stale[@]}"; do
  [ -f "$name.cu" ] || rm -f compiled/"$name".{ptx,fatbin,txt}
done
nvcc="$("$here/toolkit.sh" nvcc)/bin/nvcc"
export nvcc
for name in "${stale[@]}"; do
  [ ! -f "$name.cu" ] || echo "$name"
done | xargs -r -n 1 -P "$(nproc)" sh -c '"$0" --one "$1" || exit 1' "$here/kernels.sh" # at 255 xargs would stop
