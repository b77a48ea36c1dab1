#!/usr/bin/env bash
# train.sh FOLDER: measures training on a GPU for BENCHMARKS.md and leaves tables and JSON in the new FOLDER.
#
# LORA_TRAIN is the program, by default built here with the tag gpu. PEER, if set, is a command that prints the peer's figures; it runs
# between ours, so that both meet the same card in the same state. MODELS, if set, is a folder with llama2-7b and smollm2-135m as
# random_model.py makes them: then the time from a start to its first step is measured too, of models in the page cache, and how fast their
# weights reach the card. The card must be idle.
set -euo pipefail
# shellcheck source=scripts/bench/begin.sh
. "$(dirname "$0")/begin.sh"

first() { # SHAPE: the time to the first step, twice, of which the second finds the model in the page cache
  [ -d "${MODELS:-}/$1" ] || return 0
  echo "== $1: first step"
  for try in 1 2; do
    # What follows the step, measuring and exporting random weights, may fail.
    { "$program" run --backend cuda --set "model.path=$MODELS/$1" --set data.tasks=toy --set train.max_steps=1 --set eval.limit=1 \
      --out "$out/run-$1-$try" 2>&1 >/dev/null || true; } | grep '^first step' | tee -a "$out/first-$1.txt"
  done
}

loading() { # SHAPE: the rate at which weights in the page cache reach the card, that of reading them, and the memory beside the file
  [ -d "${MODELS:-}/$1" ] || return 0
  echo "== $1: weights to the card"
  local files=("$MODELS/$1"/*.safetensors) bytes begin read pid peak=0 now seconds
  bytes=$(cat "${files[@]}" | wc -c)
  begin=$(date +%s.%N)
  for f in "${files[@]}"; do dd if="$f" of=/dev/null bs=16M status=none; done
  read=$(awk "BEGIN {print $(date +%s.%N) - $begin}")
  "$program" bench train --backend cuda --model "$MODELS/$1" --batch 1 --length 64 --steps 1 --warmup 1 --json "$out/loading-$1.json" \
    >"$out/loading-$1.txt" &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    now=$(awk '/^Rss(Anon|Shmem):/ {kib += $2} END {print kib + 0}' "/proc/$pid/status" 2>/dev/null || true)
    [ "${now:-0}" -le "$peak" ] || peak=$now
    sleep 0.02
  done
  wait "$pid"
  seconds=$(sed -n 's/.*"weights": *\([0-9.e+-]*\).*/\1/p' "$out/loading-$1.json" | head -n 1)
  awk -v bytes="$bytes" -v seconds="$seconds" -v read="$read" -v peak="$peak" 'BEGIN {
    printf "%.2f GB in %.2f s: %.1f GB/s; read alone %.1f GB/s; at most %.2f GiB beside the mapped file\n",
      bytes / 1e9, seconds, bytes / 1e9 / seconds, bytes / 1e9 / read, peak / 1024 / 1024 }' | tee -a "$out/loading-$1.txt"
}

seven=(--shape llama2-7b --batch 4 --length 512)
small=(--shape smollm2-135m --batch 16 --length 512)
measure llama2-7b train "${seven[@]}" --steps 50 --profile
measure smollm2-135m train "${small[@]}" --steps 100 --profile
[ -z "${PEER:-}" ] || { eval "$PEER" 2>&1 || echo "the peer ended with status $?"; } | tee "$out/peer.txt"
# The same total rank, 64, in 8, 16, 32 and 64 experts; and the first measurement again, which shows what the card's state does.
for experts in 16 32 64; do
  measure "llama2-7b-$experts-experts" train "${seven[@]}" --steps 50 --experts "$experts" --rank $((64 / experts))
done
measure llama2-7b-again train "${seven[@]}" --steps 50
measure smollm2-135m-again train "${small[@]}" --steps 100
measure llama2-7b-recompute train "${seven[@]}" --steps 50 --recompute
measure gemm gemm "${seven[@]}"
for shape in smollm2-135m llama2-7b; do
  loading "$shape"
  first "$shape"
done
